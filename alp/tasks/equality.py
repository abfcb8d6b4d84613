"""Whether two answers say the same, as a careful person would judge: numbers exactly, brackets and lists part by part,
units, words, sets of numbers.

What is left are formulas: values at random points tell most of them apart (:mod:`alp.tasks.values`), and the rest goes
to an :class:`Algebra` (math-verify behind the limits of :mod:`alp.tasks.grading`). Tolerance on numbers exists in the
style ``minerva`` alone, where gold answers are measured quantities.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

from alp.tasks import operators, shapes, units
from alp.tasks.formulas import UnreadError
from alp.tasks.latex import latex
from alp.tasks.lexicon import UNIT_LETTERS
from alp.tasks.notation import ECHO, Tokens, joined, split, tokens
from alp.tasks.numerals import Number, close, rounds
from alp.tasks.regions import Region, region
from alp.tasks.values import alike, constant, differ

_ITEMS = 64  # longest list compared in any order
_STEPS = 4  # sides of an equation


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


def equal(response: str, gold: str, style: str, algebra: Algebra, prompt: str | None = None) -> bool:
    """Whether ``response`` gives the answer ``gold``; both are what stands in the box. Raises what ``algebra`` raises.

    ``prompt``: the question, whose own formulas are no answers to it (:mod:`alp.tasks.operators`).
    """
    judge = _Judge(style == "minerva", algebra)
    readings = [(response, gold)]
    plain = (joined(response), joined(gold))
    undecided: UndecidedError | None = None
    if plain != (response, gold):
        readings.append(plain)  # 58,500 is a number or a list
    for one, other in readings:
        pair = (tokens(one, program_numbers=judge.minerva), tokens(other, program_numbers=judge.minerva))
        try:
            if not operators.undone(*pair, prompt) and judge.same(*pair) and not judge.echoes(*pair, prompt):
                return True
        except UndecidedError as error:
            undecided = error
    if undecided is not None:
        raise undecided
    return False


class _Judge:
    """Compares token lists; ``minerva`` allows rounding."""

    def __init__(self, minerva: bool, algebra: Algebra) -> None:
        self.minerva, self._algebra = minerva, algebra

    def echoes(self, response: Tokens, gold: Tokens, prompt: str | None) -> bool:
        """Whether an answer that is right is a formula of the question with ornaments: 0 + x, 2x/2, |x|."""
        rest = operators.ornaments(response, gold, prompt)
        return any(alike(each, [ECHO]) or self.same(each, [ECHO]) for each in rest)

    def same(self, response: Tokens, gold: Tokens) -> bool:
        """Every rule, from the cheapest."""
        response, gold = shapes.bare(response), shapes.bare(gold)
        if not response or not gold:
            return False
        if response == gold:
            return True
        for rule in (
            self._approximations,
            self._choices,
            self._words,
            self._numbers,
            self._units,
            self._regions,
            self._coordinates,
            self._lists,
            self._relations,
            self._unions,
            self._brackets,
            self._matrices,
            self._ratios,
        ):
            verdict = rule(response, gold)
            if verdict is not None:
                return verdict
        return self._formulas(response, gold)

    # Each rule returns None where it does not apply.

    def _approximations(self, response: Tokens, gold: Tokens) -> bool | None:
        """5/7 ≈ 0.714: every side says the same, and one of them is the answer."""
        one, other = ([part for part in split(items, {r"\approx"}) if part] for items in (response, gold))
        if len(one) == 1 and len(other) == 1:
            return None if r"\approx" not in (*response, *gold) else self.same(one[0], other[0])
        if not one or not other or not _agree(one) or not _agree(other):
            return False
        return any(self.same(left, right) for left in one[:3] for right in other[:3])

    def _choices(self, response: Tokens, gold: Tokens) -> bool | None:
        """(B) 5 is B, and 5."""
        one, other = shapes.choice(response), shapes.choice(gold)
        if one is None and other is None:
            return None
        letter, text = one or (None, response)
        gold_letter, gold_text = other or (None, gold)
        if letter and gold_letter:
            return letter == gold_letter and self.same(text, gold_text)
        if shapes.single_letter(gold if letter else response) is not None:
            return (letter or gold_letter) == shapes.single_letter(gold if letter else response)
        return self.same(text, gold_text)

    def _words(self, response: Tokens, gold: Tokens) -> bool | None:
        if not shapes.is_words(gold) and not shapes.is_words(response):
            return None
        one, other = shapes.spoken(response), shapes.spoken(gold)
        if one == other:
            return True
        if shapes.is_words(gold) and shapes.is_words(response):
            return None if len(split(gold, {","})) > 1 and len(split(response, {","})) > 1 else False
        return None if Number.read(response) or Number.read(gold) or units.measured(gold)[1] else False

    def _numbers(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = Number.read(response), Number.read(gold)
        if one is None or other is None:
            return None
        return one.equals(other) or (self.minerva and one.base is None and other.base is None and close(one, other))

    def _units(self, response: Tokens, gold: Tokens) -> bool | None:
        (value, unit), (gold_value, gold_unit) = units.measured(response), units.measured(gold)
        bare = self.minerva and not unit and not gold_unit and len(response) > 1 and Number.read(gold)
        if bare and response[-1] in UNIT_LETTERS:
            value, unit = response[:-1], [rf"\text{{{response[-1]}}}"]
        if not unit and not gold_unit:
            return None
        if unit and gold_unit:
            return bool(units.alike(unit, gold_unit)) and self.same(value, gold_value)
        if units.read(unit or gold_unit) is None:
            return False
        return self.same(value, gold_value)

    def _regions(self, response: Tokens, gold: Tokens) -> bool | None:
        """Sets of numbers of which one at least is not written with brackets alone."""
        one, other = region(response), region(gold)
        if one is None or other is None or (one.plain and other.plain):
            return None
        if one.name and other.name and one.name != other.name:
            return False
        return self._same_pieces(one, other)

    def _same_pieces(self, one: Region, other: Region) -> bool:
        rest = list(other.pieces)
        if len(one.pieces) != len(rest) or len(rest) > _ITEMS:
            return False
        for piece in one.pieces:
            partner = next(
                (
                    each
                    for each in rest
                    if piece.closed == each.closed
                    and self._same_ends(piece.low, each.low)
                    and self._same_ends(piece.high, each.high)
                ),
                None,
            )
            if partner is None:
                return False
            rest.remove(partner)
        return True

    def _same_ends(self, one: Tokens | None, other: Tokens | None) -> bool:
        return one is other if one is None or other is None else self.same(one, other)

    def _coordinates(self, response: Tokens, gold: Tokens) -> bool | None:
        """x = 4, y = -1 for (4, -1), and back."""
        one, other = shapes.named(response), shapes.named(gold)
        if (one is None) == (other is None):
            return None
        values, rest = (one or other or []), shapes.enclosed(gold if other is None else response)
        if rest is None or len(rest) != len(values) or (gold if other is None else response)[0] != "(":
            return None
        pairs = zip(values, rest, strict=True)
        return all(self.same(*((left, right) if other is None else (right, left))) for left, right in pairs)

    def _lists(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = shapes.elements(response), shapes.elements(gold)
        names = [name for name in map(shapes.listed_name, (response, gold)) if name]
        if len(names) == 2 and names[0] != names[1]:
            return False
        if len(one) == 1 and len(other) == 1 and one[0] == response and other[0] == gold:
            return None
        return self._in_any_order(one, other)

    def _relations(self, response: Tokens, gold: Tokens) -> bool | None:
        response_in, gold_in = split(response, {r"\in"}), split(gold, {r"\in"})
        if (len(response_in), len(gold_in)) in ((2, 1), (1, 2)):
            name = response_in[0] if len(response_in) == 2 else gold_in[0]
            return self.same(response_in[-1], gold_in[-1]) if shapes.is_name(name) else False
        one, other = split(response, {"="}), split(gold, {"="})
        if len(one) == 1 and len(other) == 1:
            return None
        if not all(one) or not all(other):
            one, other = ([part for part in parts if part] for parts in (one, other))
            return self.same(one[0], other[0]) if len(one) == 1 and len(other) == 1 else False
        if len(other) == 1 or len(one) == 1:
            return self._value_of(one, other)
        if len(one) == 2 and len(other) == 2:
            if shapes.is_name(one[0]) and one[0] == other[0]:
                return self.same(one[1], other[1])
            for left, right in (one, one[::-1]):
                if self.same(left, other[0]) and self.same(right, other[1]):
                    return True
            return None
        return self._chains(one, other)

    def _value_of(self, one: list[Tokens], other: list[Tokens]) -> bool:
        """x = 5 for 5, and back: everything that is not a name, nor what was to be worked out, says the same."""
        values = one if len(one) == 1 else _values(one)
        golds = other if len(other) == 1 else _values(other)
        if not 0 < len(values) <= _STEPS or len(golds) != 1 or len(other) > 2:
            return False
        return all(self.same(value, golds[0]) for value in values)

    def _chains(self, one: list[Tokens], other: list[Tokens]) -> bool:
        """a = b = c, side by side; a name and its value, worked out in steps."""
        if len(one) == len(other):
            return all(self.same(left, right) for left, right in zip(one, other, strict=True))
        if len(other) == 2 and shapes.is_name(other[0]) and one[0] == other[0] and len(one) <= _STEPS:
            return all(self.same(value, other[1]) for value in one[1:])
        return False

    def _unions(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = split(response, {r"\cup"}), split(gold, {r"\cup"})
        return None if len(one) == 1 and len(other) == 1 else self._in_any_order(one, other)

    def _brackets(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = shapes.enclosed(response), shapes.enclosed(gold)
        if one is None and other is None:
            return None
        if one is None or other is None or (response[0], response[-1]) != (gold[0], gold[-1]):
            return False
        return len(one) == len(other) and all(self.same(left, right) for left, right in zip(one, other, strict=True))

    def _matrices(self, response: Tokens, gold: Tokens) -> bool | None:
        one, other = shapes.cells(response), shapes.cells(gold)
        if one is None or other is None:
            return None if one is None and other is None else False
        if [len(row) for row in one] != [len(row) for row in other]:
            return False
        pairs = ((a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))
        return all(self.same(a, b) for a, b in pairs)

    def _ratios(self, response: Tokens, gold: Tokens) -> bool | None:
        """2 : 3, and the time of day."""
        one, other = split(response, {":"}), split(gold, {":"})
        if len(one) == 1 and len(other) == 1:
            return None
        return len(one) == len(other) and all(self.same(left, right) for left, right in zip(one, other, strict=True))

    def _formulas(self, response: Tokens, gold: Tokens) -> bool:
        if not shapes.is_formula(response) or not shapes.is_formula(gold):
            return False
        if not differ(response, gold) and self._algebra.same(latex(response), latex(gold)):
            return True
        if not self.minerva:
            return False
        left, right = Number.read(response), Number.read(gold)
        if left is None and right is None:
            return False
        left, right = left or self._constant(response), right or self._constant(gold)
        return left is not None and right is not None and close(left, right)

    def _constant(self, items: Tokens) -> Number | None:
        try:
            exact = constant(items)
        except UnreadError:
            if any(len(item) == 1 and item.isalpha() and item not in "ei" for item in items):
                return None  # a variable
            value = self._algebra.value(latex(items))
            exact = None if value is None else Fraction(value)
        return None if exact is None else Number(exact, None, 0, False)

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


def _values(parts: list[Tokens]) -> list[Tokens]:
    """The sides of an equation without names, and without what its last side is worked out from."""
    open_work = operators.unfinished(parts[-1])
    steps = [part for part in parts[:-1] if not operators.unfinished(part) - open_work]
    return [part for part in (*steps, parts[-1]) if not shapes.is_name(part)]


def _agree(parts: list[Tokens]) -> bool:
    """Whether the sides of an approximation are one number, rounded."""
    try:
        values = [constant(split(units.measured(part)[0], {"="})[-1]) for part in parts]
    except UnreadError:
        return len(parts) == 1
    if len(parts) > 3 or any(value is None for value in values[1:]):
        return len(parts) == 1
    if values[0] is None:
        return False
    for part, value in zip(parts[1:], values[1:], strict=True):
        printed = Number.read(units.measured(part)[0])
        if printed is None or value is None or not rounds(values[0], printed):
            return False
    return True
