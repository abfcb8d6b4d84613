"""Numbers as answers print them: exactly, with the unit of the last digit that is printed."""

from __future__ import annotations

import re
from fractions import Fraction

from alp.tasks.formulas import decimal
from alp.tasks.notation import Tokens

_RELATIVE = Fraction(1, 50)  # what rounding may change at most, however few digits the gold answer has
_DIGITS = 3  # significant digits a response needs for its own rounding to be taken into account
_LARGEST_EXPONENT = 400
_DECIMAL = r"(\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?"


class Number:
    """An exact value, the unit of its last printed digit (None: a fraction, printed exactly), how many digits are
    printed, and the base of a numeral that names one (its value is then that of its digits in base ten)."""

    def __init__(
        self, value: Fraction, last: Fraction | None, digits: int, percent: bool, base: str | None = None
    ) -> None:
        self.value, self.last, self.digits, self.percent, self.base = value, last, digits, percent, base

    _SHAPES = (
        ("decimal", re.compile(rf"([+-]?){_DECIMAL}(?:\*10\^\{{?([+-]?\d+)\}}?)?(%?)", re.ASCII)),
        ("power", re.compile(r"([+-]?)10\^\{?([+-]?\d+)\}?", re.ASCII)),
        ("fraction", re.compile(rf"([+-]?)\\frac\{{([+-]?){_DECIMAL}\}}\{{{_DECIMAL}\}}(%?)", re.ASCII)),
        ("fraction", re.compile(rf"([+-]?)()\(?{_DECIMAL}\)?/\(?{_DECIMAL}\)?(%?)", re.ASCII)),
        ("mixed", re.compile(r"([+-]?)(\d+)\\frac\{(\d+)\}\{(\d+)\}(%?)", re.ASCII)),
        ("repeating", re.compile(r"([+-]?)(\d*\.\d*\(\d+\))(%?)", re.ASCII)),
        ("based", re.compile(r"([+-]?)([\dA-F]+)@(\d+)", re.ASCII)),
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
        if any(len(part or "") > 8 for part in (exponent, power)):
            return None
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
        if not 0 < int(above) < int(below):  # 2 3/2 is a product, or a slip
            return None
        value = int(whole) + Fraction(int(above), int(below))
        return cls(-value if sign == "-" else value, None, 0, bool(percent))

    @classmethod
    def _repeating(cls, sign: str, digits: str, percent: str) -> Number | None:
        value = decimal(digits)
        return None if value is None else cls(-value if sign == "-" else value, None, 0, bool(percent))

    @classmethod
    def _based(cls, sign: str, digits: str, base: str) -> Number | None:
        value = Fraction(int(digits, 16))  # a value that only the same digits have
        return cls(-value if sign == "-" else value, None, 0, False, base)

    def equals(self, gold: Number) -> bool:
        """The same number. A base is part of it where both name one; a sign for per cent where only one has it is
        either a hundredth or says what the question asks for."""
        if self.base is not None or gold.base is not None:
            if self.base is not None and gold.base is not None and self.base != gold.base:
                return False
            digits = [self._digits(), gold._digits()]
            return None not in digits and digits[0] == digits[1]
        if self.value == gold.value:
            return True
        if self.percent != gold.percent:  # 10 % is 0.1, and 10 where the question asks for per cent
            fraction, percent = (gold, self) if self.percent else (self, gold)
            return fraction.value == percent.value / 100
        return False

    def _digits(self) -> int | None:
        """Sign and digits of a numeral as one number in base sixteen; None where it is no whole number."""
        if self.base is not None:
            return int(self.value)
        return int(str(self.value), 16) if self.value.denominator == 1 else None


def close(response: Number, gold: Number) -> bool:
    """Whether the two agree as far as they are printed: to half a unit of the gold answer's last digit, or of the
    response's when that has three digits; never more than 2 % apart."""
    units = [gold.last or Fraction(0), (response.last or Fraction(0)) if response.digits >= _DIGITS else Fraction(0)]
    return abs(response.value - gold.value) <= min(max(units) / 2, abs(gold.value) * _RELATIVE)


def rounds(exact: Fraction, printed: Number) -> bool:
    """Whether a printed decimal is what an exact value is rounded, or cut, to."""
    if printed.last is None or not printed.digits:
        return False
    gap = abs(exact) - abs(printed.value)
    return (exact < 0) == (printed.value < 0) and -printed.last / 2 <= gap < printed.last
