"""Whether two answers say the same, as a careful person would judge: numbers exactly, brackets and lists part by part,
units, words.

What is left are formulas, and those go to a :class:`Algebra` (math-verify behind the limits of
:mod:`alp.tasks.grading`). Tolerance on numbers exists in the style ``minerva`` alone, where gold answers are measured
quantities.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Protocol

from alp.tasks.notation import Tokens, closing, latex, split, tokens

_RELATIVE = Fraction(1, 50)  # what rounding may change at most, however few digits the gold answer has
_DIGITS = 3  # significant digits a response needs for its own rounding to be taken into account
_LARGEST_EXPONENT = 400
_ITEMS = 64  # longest list compared in any order
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))", re.ASCII)


class Algebra(Protocol):
    """Judges formulas."""

    def same(self, response: str, gold: str) -> bool:
        """Whether two LaTeX formulas are equal."""
        ...

    def value(self, formula: str) -> float | None:
        """The value of a constant; None when it is none."""
        ...


class UndecidedError(Exception):
    """The verdict needs algebra."""


class NoAlgebra:
    """For a first look that costs microseconds."""

    def same(self, *_: str) -> bool:
        raise UndecidedError

    def value(self, *_: str) -> float | None:
        raise UndecidedError


def equal(response: str, gold: str, style: str, algebra: Algebra) -> bool:
    """Whether ``response`` gives the answer ``gold``; both are what stands in the box. Raises what ``algebra``
    raises."""
    judge = _Judge(style == "minerva", algebra)
    readings = [(response, gold)]
    plain = tuple(_THOUSANDS.sub("", text.replace(r",\!", ",")) for text in (response, gold))
    undecided: UndecidedError | None = None
    if plain != (response, gold):
        readings.append((plain[0], plain[1]))  # 58,500 is a number or a list
    for one, other in readings:
        try:
            if judge.same(tokens(one, program_numbers=judge.minerva), tokens(other, program_numbers=judge.minerva)):
                return True
        except UndecidedError as error:
            undecided = error
    if undecided is not None:
        raise undecided
    return False


class Number:
    """An exact value, the unit of its last printed digit (None: a fraction, printed exactly) and how many digits are
    printed."""

    def __init__(self, value: Fraction, last: Fraction | None, digits: int, percent: bool) -> None:
        self.value, self.last, self.digits, self.percent = value, last, digits, percent

    _DECIMAL = r"(\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?"
    _SHAPES = (
        ("decimal", re.compile(rf"([+-]?){_DECIMAL}(?:\*10\^\{{?([+-]?\d+)\}}?)?(%?)", re.ASCII)),
        ("power", re.compile(r"([+-]?)10\^\{?([+-]?\d+)\}?", re.ASCII)),
        ("fraction", re.compile(rf"([+-]?)\\frac\{{([+-]?){_DECIMAL}\}}\{{{_DECIMAL}\}}(%?)", re.ASCII)),
        ("fraction", re.compile(rf"([+-]?)()\(?{_DECIMAL}\)?/\(?{_DECIMAL}\)?(%?)", re.ASCII)),
        ("mixed", re.compile(r"([+-]?)(\d+)\\frac\{(\d+)\}\{(\d+)\}(%?)", re.ASCII)),
    )

    @classmethod
    def read(cls, items: Tokens) -> Number | None:
        """The number that the tokens are, or None."""
        if len(items) > 16:
            return None
        text = "".join(items)
        for shape, pattern in cls._SHAPES:
            if found := pattern.fullmatch(text):
                return getattr(cls, f"_{shape}")(*found.groups())  # type: ignore[no-any-return]
        return None

    @classmethod
    def _decimal(cls, sign: str, digits: str, exponent: str | None, power: str | None, percent: str) -> Number | None:
        shift = int(exponent or 0) + int(power or 0)
        if abs(shift) > _LARGEST_EXPONENT:
            return None
        value = Fraction(digits if not digits.endswith(".") else digits[:-1]) * Fraction(10) ** shift
        last = Fraction(10) ** (shift - len(digits.partition(".")[2]))
        printed = len(digits.replace(".", "").lstrip("0"))
        return cls(-value if sign == "-" else value, last, printed, bool(percent))

    @classmethod
    def _power(cls, sign: str, power: str) -> Number | None:
        return cls._decimal(sign, "1", None, power, "")

    @classmethod
    def _fraction(
        cls, sign: str, inner: str, above: str, up: str | None, below: str, down: str | None, percent: str
    ) -> Number | None:
        top, bottom = cls._decimal("", above, up, None, ""), cls._decimal("", below, down, None, "")
        if top is None or bottom is None or bottom.value == 0:
            return None
        negative = (sign == "-") != (inner == "-")
        return cls(top.value / bottom.value * (-1 if negative else 1), None, 0, bool(percent))

    @classmethod
    def _mixed(cls, sign: str, whole: str, above: str, below: str, percent: str) -> Number | None:
        if int(below) == 0:
            return None
        value = int(whole) + Fraction(int(above), int(below))
        return cls(-value if sign == "-" else value, None, 0, bool(percent))


def close(response: Number, gold: Number) -> bool:
    """Whether the two agree as far as they are printed: to half a unit of the gold answer's last digit, or of the
    response's when that has three digits; never more than 2 % apart."""
    units = [gold.last or Fraction(0), (response.last or Fraction(0)) if response.digits >= _DIGITS else Fraction(0)]
    return abs(response.value - gold.value) <= min(max(units) / 2, abs(gold.value) * _RELATIVE)


class _Judge:
    """Compares token lists; ``minerva`` allows rounding."""

    def __init__(self, minerva: bool, algebra: Algebra) -> None:
        self.minerva, self._algebra = minerva, algebra

    def same(self, response: Tokens, gold: Tokens) -> bool:
        """Every rule, from the cheapest."""
        response, gold = _bare(response), _bare(gold)
        if not response or not gold:
            return False
        if response == gold:
            return True
        for rule in (
            self._words,
            self._numbers,
            self._units,
            self._lists,
            self._relations,
            self._unions,
            self._brackets,
            self._matrices,
        ):
            verdict = rule(response, gold)
            if verdict is not None:
                return verdict
        return self._formulas(response, gold)

    # Each rule returns None where it does not apply.

    def _words(self, response: Tokens, gold: Tokens) -> bool | None:
        if not _is_text(gold):
            return False if len(response) == 1 and _is_text(response) else None
        return _letters(response) == _letters(gold)

    def _numbers(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = Number.read(response), Number.read(gold)
        if one is None or other is None:
            return None
        if one.value == other.value:
            return True
        if one.percent != other.percent:  # 10 % is 0.1, and 10 where the question asks for per cent
            fraction, percent = (other, one) if one.percent else (one, other)
            return fraction.value == percent.value / 100
        return self.minerva and close(one, other)

    def _units(self, response: Tokens, gold: Tokens) -> bool | None:
        (value, unit), (gold_value, gold_unit) = _measured(response), _measured(gold)
        if (
            self.minerva
            and not unit
            and not gold_unit
            and len(response) > 1
            and Number.read(gold)
            and response[-1] in _SYMBOLS
        ):
            value, unit = response[:-1], response[-1:]
        if not unit and not gold_unit:
            return None
        if unit and gold_unit and _unit(unit) != _unit(gold_unit):
            return False
        return self.same(value, gold_value)

    def _lists(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = _elements(response), _elements(gold)
        if len(one) == 1 and len(other) == 1 and one[0] == response and other[0] == gold:
            return None
        return self._in_any_order(one, other)

    def _relations(self, response: Tokens, gold: Tokens) -> bool | None:
        response_in, gold_in = split(response, {r"\in"}), split(gold, {r"\in"})
        if (len(response_in), len(gold_in)) in ((2, 1), (1, 2)):
            return self.same(response_in[-1], gold_in[-1])
        one, other = split(response, {"="}), split(gold, {"="})
        if len(one) == 1 and len(other) == 1:
            return None
        if len(other) == 1:
            return self.same(one[-1], gold)
        if len(one) == 1:
            return self.same(response, other[-1]) if len(other) == 2 and _is_name(other[0]) else False
        if len(one) == 2 and len(other) == 2:
            if _is_name(one[0]) and one[0] == other[0]:
                return self.same(one[1], other[1])
            for left, right in (one, one[::-1]):
                if self.same(left, other[0]) and self.same(right, other[1]):
                    return True
        return None

    def _unions(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = split(response, {r"\cup"}), split(gold, {r"\cup"})
        return None if len(one) == 1 and len(other) == 1 else self._in_any_order(one, other)

    def _brackets(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = _enclosed(response), _enclosed(gold)
        if one is None and other is None:
            return None
        if one is None or other is None or (response[0], response[-1]) != (gold[0], gold[-1]):
            return False
        return len(one) == len(other) and all(self.same(left, right) for left, right in zip(one, other, strict=True))

    def _matrices(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = _cells(response), _cells(gold)
        if one is None or other is None:
            return None
        if [len(row) for row in one] != [len(row) for row in other]:
            return False
        pairs = ((a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))
        return all(self.same(a, b) for a, b in pairs)

    def _formulas(self, response: Tokens, gold: Tokens) -> bool:
        if self._algebra.same(latex(response), latex(gold)):
            return True
        if not self.minerva:
            return False
        one, other = Number.read(response), Number.read(gold)
        if one is None and other is None:
            return False
        one, other = one or self._constant(response), other or self._constant(gold)
        return one is not None and other is not None and close(one, other)

    def _constant(self, items: Tokens) -> Number | None:
        value = self._algebra.value(latex(items))
        return None if value is None else Number(Fraction(value), None, 0, False)

    def _in_any_order(self, response: list[Tokens], gold: list[Tokens]) -> bool:
        """Each gold element found once. Equality is an equivalence, so the first partner found is as good as any."""
        if len(response) != len(gold) or len(gold) > _ITEMS:
            return False
        rest = list(response)
        for element in sorted(gold, key=lambda item: item not in response):  # what is equal to the letter costs nothing
            place = (
                rest.index(element)
                if element in rest
                else next((i for i, item in enumerate(rest) if self.same(item, element)), None)
            )
            if place is None:
                return False
            del rest[place]
        return True


_SYMBOLS = set("KJNmsgWVCATFHL")  # single letters that are units behind a number
_UNIT_NAMES = {
    "inch": "in",
    "inche": "in",
    "centimeter": "cm",
    "centimetre": "cm",
    "meter": "m",
    "metre": "m",
    "kilometer": "km",
}
_UNIT_NAMES |= {
    "foot": "ft",
    "feet": "ft",
    "hour": "h",
    "hr": "h",
    "minute": "min",
    "second": "s",
    "sec": "s",
    "gram": "g",
    "unit": "",
}
_UNIT_NAMES |= {
    "kilogram": "kg",
    "erg": "erg",
    "kelvin": "K",
    "joule": "J",
    "newton": "N",
    "watt": "W",
    "cent": "cent",
    "square": "^2",
}


def _is_text(items: Tokens) -> bool:
    return len(items) >= 1 and all(item.startswith(r"\text{") for item in items)


def _letters(items: Tokens) -> str:
    """Letters and digits alone, whatever their case: (B) is B."""
    return "".join(char for item in items for char in item.removeprefix(r"\text") if char.isalnum()).casefold()


def _is_name(items: Tokens) -> bool:
    """y, f(x), m_{max}, M: what an answer may be called."""
    head = items[:-3] if len(items) > 3 and items[-3] == "(" and items[-1] == ")" else items
    if len(head) == 1:
        return head[0].isalpha() or head[0].startswith("\\")
    return len(head) > 2 and head[1] == "_" and len(split(head, {"+", "-", "/"})) == 1


def _bare(items: Tokens) -> Tokens:
    """Without braces or round brackets around the whole, unless they hold a list."""
    while len(items) > 1 and items[0] in ("{", "(") and closing(items, 0) == len(items) - 1 and items[-1] in ("}", ")"):
        if items[0] == "(" and len(split(items[1:-1], {",", ";"})) > 1:
            break
        items = items[1:-1]
    return items[1:] if items[:1] == ["+"] else items


def _measured(items: Tokens) -> tuple[Tokens, Tokens]:
    """Value and unit: the words, powers and slashes at the end, when something stands before them."""
    start = len(items)
    while start > 0 and (
        _is_text(items[start - 1 : start]) or items[start - 1] in ("/", "*", "^", "-") or _power(items, start - 1)
    ):
        start -= 1
    while start < len(items) and not _is_text(items[start : start + 1]):
        start += 1
    if start == 0 or start == len(items) or items[start - 1] in ("_", "^", "="):
        return items, []
    return items[:start], items[start:]


def _power(items: Tokens, place: int) -> bool:
    return place > 0 and items[place].isdigit() and items[place - 1] in ("^", "-")


def _unit(items: Tokens) -> str:
    """A unit's short name: square inches and in^2 are one."""
    names = [name for item in items for name in re.findall(r"[A-Za-z]+|[\^/\-\d]+", item.removeprefix(r"\text"))]
    short = [_UNIT_NAMES.get(name.lower().removesuffix("s"), _UNIT_NAMES.get(name.lower(), name)) for name in names]
    powers = [name for name in short if name.startswith("^")]
    return "".join(name for name in short if not name.startswith("^")) + "".join(powers)


def _elements(items: Tokens) -> list[Tokens]:
    """Elements of a set or of a bare list; ± is two of them."""
    inside = (
        items[1:-1] if items[:1] == [r"\{"] and items[-1:] == [r"\}"] and closing(items, 0) == len(items) - 1 else items
    )
    found: list[Tokens] = []
    for element in (part for part in split(inside, {",", ";"}) if part):
        signs = [place for place, item in enumerate(element) if item == r"\pm"]
        if len(signs) == 1:
            found += [[*element[: signs[0]], sign, *element[signs[0] + 1 :]] for sign in "+-"]
        else:
            found.append(element)
    return found


def _enclosed(items: Tokens) -> list[Tokens] | None:
    """Parts of a tuple or an interval, or None."""
    if items[0] not in ("(", "[") or items[-1] not in (")", "]") or closing(items, 0) != len(items) - 1:
        return None
    parts = split(items[1:-1], {",", ";"})
    return parts if len(parts) > 1 else None


def _cells(items: Tokens) -> list[list[Tokens]] | None:
    """Rows of cells of a matrix, or None."""
    if items[0] != r"\begin" or closing(items, 0) != len(items) - 1:
        return None
    rows = [split(row, {"&"}) for row in split(items[1:-1], {"\\\\"})]
    return [row for row in rows if row != [[]]]
