"""How large a formula is, by its form alone: a rule every machine applies alike, so that time and memory decide
nothing.

``check(formula)`` raises :class:`BeyondError` before anything is computed with it. Sizes are decimal digits of the
numbers that a formula would become, estimated from above; a variable counts as 1.
"""

from __future__ import annotations

import math
from typing import Any

from sympy import (
    Add,
    Basic,
    Float,
    Integral,
    Limit,
    MatrixBase,
    Mul,
    NumberSymbol,
    Pow,
    Product,
    Rational,
    Sum,
    Symbol,
    binomial,
    exp,
    factorial,
    gamma,
    preorder_traversal,
)

MOST_DIGITS = 20_000  # of a number, written out; 2004! has 5,740
MOST_PARTS = 2_000  # numbers, variables and operations
MOST_TERMS = 20_000  # of a power or product of sums, multiplied out
MOST_DEGREE = 10_000  # of a variable's power
MOST_RANGE = 10_000  # terms of a sum or product over numbers
MOST_CHOICES = 1_000  # of a binomial coefficient of other things than whole numbers
MOST_CELLS = 25  # of a matrix
MOST_CALCULUS = (
    12  # parts of what is integrated, or followed to a limit; sums, integrals and limits within each other are none
)
MOST_SIGNS = 500  # of a formula as it is written; the longest gold answer has 155
MOST_DEEP = 12  # brackets within brackets of it; the deepest gold answer has 4

_RANGED, _LIMITS = (Sum, Product), (Integral, Limit)
_FACTORIALS = (factorial, gamma)


class BeyondError(BaseException):
    """The formula is beyond the limits; the message says which. No Exception: libraries that swallow those must not
    swallow this one."""


class RuleError(BaseException):
    """A fault of these rules, which must not pass for a fault of the formula."""


def check_text(signs: str) -> None:
    """Raise BeyondError where a formula, as signs with spaces between, is too long or too deep for the parser to read
    it in a second."""
    depth = 0
    for place, sign in enumerate(signs.split()):
        depth += sum((char in "{([") - (char in "})]") for char in sign)
        if depth > MOST_DEEP:
            raise BeyondError(f"a formula of more than {MOST_DEEP} brackets within each other")
        if place >= MOST_SIGNS:
            raise BeyondError(f"a formula of more than {MOST_SIGNS} signs")


def check(formula: Any) -> None:
    """Raise BeyondError where ``formula`` has too many parts, or would become too large a number or too long a sum."""
    try:
        _Measure().of(formula)
    except RecursionError:
        raise BeyondError("too deep for Python") from None
    except MemoryError:
        raise
    except Exception as error:
        raise RuleError(f"{type(error).__name__}: {error}") from error


class _Measure:
    """Sizes of the parts of one formula, each looked at once for every place where it stands."""

    def __init__(self) -> None:
        self._parts = 0

    def of(self, part: Any) -> tuple[float, float]:
        """Digits, and terms when multiplied out."""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise BeyondError(f"more than {MOST_PARTS} parts")
        if isinstance(part, (*_FACTORIALS, binomial)) and not _is_plain(part):
            raise BeyondError("a factorial or binomial coefficient of more than sums, products and powers")
        if isinstance(part, (*_RANGED, *_LIMITS)):
            _check_calculus(part)
        if isinstance(part, MatrixBase):
            if part.rows * part.cols > MOST_CELLS:
                raise BeyondError(f"a matrix of more than {MOST_CELLS} cells")
            return max((self.of(cell)[0] for cell in part.flat()), default=0.0), 1.0
        if not isinstance(part, Basic):  # a list of columns or the like
            return max((self.of(one)[0] for one in part), default=0.0) if isinstance(part, (list, tuple)) else 0.0, 1.0
        inside = [self.of(one) for one in part.args] if not isinstance(part, (Rational, Float)) else []
        digits, terms = self._whole(part, inside)
        if digits > MOST_DIGITS:
            raise BeyondError(f"a number of more than {MOST_DIGITS} digits")
        if terms > MOST_TERMS:
            raise BeyondError(f"more than {MOST_TERMS} terms when multiplied out")
        return digits, terms

    def _whole(self, part: Basic, inside: list[tuple[float, float]]) -> tuple[float, float]:
        digits = [one for one, _ in inside]
        if isinstance(part, Rational):
            return _digits(part.p) + _digits(part.q), 1.0
        if isinstance(part, Float):
            return 15.0 + max(0.0, abs(part._mpf_[2] + part._mpf_[3]) * math.log10(2)) if part._mpf_[1] else 15.0, 1.0
        if isinstance(part, Add):
            return max(digits) + math.log10(len(digits)), sum(terms for _, terms in inside)
        if isinstance(part, Mul):
            return sum(digits), math.prod(terms for _, terms in inside)
        if isinstance(part, (Pow, exp)):
            return _power(part, inside)
        if isinstance(part, _FACTORIALS):
            number = _number(digits[0])
            return float(number * math.log10(number + 1)), 1.0
        if isinstance(part, binomial):
            return _choices(part, digits), 1.0
        if isinstance(part, NumberSymbol):
            return _digits(4), 1.0
        if isinstance(part, _RANGED) and max(digits[1:]) > math.log10(MOST_RANGE):
            raise BeyondError(f"a sum or product over more than {MOST_RANGE}")
        return max(digits, default=0.0), 1.0


def _digits(number: int) -> float:
    """log10 of an integer's size; of 0 and 1: 0."""
    size = abs(int(number))
    rest = max(0, size.bit_length() - 60)
    return rest * math.log10(2) + math.log10(max(1, size >> rest))


def _number(digits: float) -> float:
    return float(10.0 ** min(digits, 300.0))


def _power(part: Any, inside: list[tuple[float, float]]) -> tuple[float, float]:
    """Digits of the base times the exponent; a sum to a power has as many terms as the exponent can be shared out."""
    if isinstance(part, exp):
        return _number(inside[0][0]) * 0.5 if not part.free_symbols else inside[0][0], 1.0
    (digits, terms), (exponent, _) = inside
    times = float(abs(part.exp)) if isinstance(part.exp, Rational) and exponent < 300 else _number(exponent)
    if part.base.free_symbols and times > MOST_DEGREE:
        raise BeyondError(f"a power of more than {MOST_DEGREE}")
    if terms > 1.0 and isinstance(part.exp, Rational):
        count = math.floor(times)
        if count > MOST_TERMS:
            raise BeyondError(f"more than {MOST_TERMS} terms when multiplied out")
        shared = math.lgamma(count + terms) - math.lgamma(count + 1) - math.lgamma(terms)
        terms = math.exp(min(shared, 300.0)) if count else 1.0
    return float(digits * max(times, 1.0)), float(terms)


def _is_plain(part: Any) -> bool:
    """Whether a factorial's arguments are made of variables and numbers; of numbers alone they may have factorials in
    them."""
    kinds = (Add, Mul, Pow, Rational, Symbol, *(() if part.free_symbols else (*_FACTORIALS, binomial)))
    return all(isinstance(one, kinds) for argument in part.args for one in preorder_traversal(argument))


def _choices(part: Any, digits: list[float]) -> float:
    above, below = (_number(size) for size in digits)
    if not all(one.is_Integer and one >= 0 for one in part.args) and max(above, below) > MOST_CHOICES:
        raise BeyondError(f"a binomial coefficient of more than {MOST_CHOICES} things")
    return float(min(above, max(below, 1.0)) * math.log10(above + 1))


def _check_calculus(part: Any) -> None:
    inside = list(preorder_traversal(part.args[0]))
    several = len(part.args) > 2 and not isinstance(part, Limit)  # sympy makes one of two within each other
    if several or any(isinstance(one, (*_RANGED, *_LIMITS)) for one in inside):
        raise BeyondError("sums, integrals or limits within each other")
    if any(limit.has(*_FACTORIALS, binomial) for limit in part.args[1:]):
        raise BeyondError("a sum, integral or limit whose ends have factorials")
    endless = any(end.is_infinite for limit in part.args[1:] for end in getattr(limit, "args", ()))
    if (isinstance(part, _LIMITS) or endless) and len(inside) > MOST_CALCULUS:
        raise BeyondError(f"an integral, limit or series of more than {MOST_CALCULUS} parts")
