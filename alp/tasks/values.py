"""Values of formulas at random points, from tokens alone: most wrong answers are told from the right one by a number.

Arithmetic is that of floats, and whatever stands near to a pole, to a branch, or to what rounding leaves of a
difference has no value here. Nothing in this module says that two formulas are equal; what it calls different differs
by far more than rounding. Only the standard library takes part: this runs in the user's own process.
"""

from __future__ import annotations

import cmath
import math
import random
from collections.abc import Callable
from fractions import Fraction

from alp.tasks.formulas import Node, UnreadError, formula, names
from alp.tasks.latex import explicit
from alp.tasks.lexicon import TRIGONOMETRIC
from alp.tasks.notation import Tokens

_APART = 1e-6  # relative: constants nearer than this may be rounded decimals of one another
_NOISE = 1e-9  # of the largest number on the way: below it a difference may be rounding alone
_LARGEST = 1e60  # no value beyond it is looked at
_POINTS = 2
_TROUBLES = (UnreadError, RecursionError, ArithmeticError, ValueError)
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    r"\sin": math.sin,
    r"\cos": math.cos,
    r"\tan": math.tan,
    r"\cot": lambda value: math.cos(value) / math.sin(value),
    r"\sec": lambda value: 1 / math.cos(value),
    r"\csc": lambda value: 1 / math.sin(value),
    r"\sinh": math.sinh,
    r"\cosh": math.cosh,
    r"\tanh": math.tanh,
    r"\arcsin": math.asin,
    r"\arccos": math.acos,
    r"\arctan": math.atan,
    r"\ln": math.log,
}
Value = float | complex


def differ(one: Tokens, other: Tokens) -> bool:
    """Whether the two certainly have different values at some point. False says nothing."""
    return _apart(one, other) is True


def alike(one: Tokens, other: Tokens) -> bool:
    """Whether no point with positive variables tells the two apart. They may differ elsewhere, as x and |x|."""
    return _apart(one, other) is False


def _apart(one: Tokens, other: Tokens) -> bool | None:
    """Whether some point tells the two apart; None where a value cannot be had."""
    try:
        left, right = formula(explicit(one)), formula(explicit(other))
        variables = sorted(names(left) | names(right))
        for draw in range(_POINTS if variables else 1):
            drawn = random.Random(f"{draw} {' '.join(variables)}")
            walk = _Walk({name: drawn.uniform(0.3, 2.2) for name in variables})
            a, b = walk.value(left), walk.value(right)
            gap = abs(a - b)
            if gap > _APART * max(abs(a), abs(b)) and gap > _NOISE * walk.largest:
                return True
    except _TROUBLES:
        return None
    return False


def constant(items: Tokens) -> Fraction | None:
    """The value of a formula to nine digits; None where it has variables or is not real. Raises UnreadError where it
    cannot be had here."""
    node = formula(explicit(items))
    if names(node):
        return None
    walk = _Walk({})
    try:
        value = walk.value(node)
    except _TROUBLES:
        raise UnreadError from None
    if value != 0 and abs(value) < _NOISE * walk.largest:
        raise UnreadError
    return Fraction(value.real) if value.imag == 0 else None


class _Walk:
    """The value of a formula at a point, and the largest number met on the way. Raises one of ``_TROUBLES``."""

    def __init__(self, point: dict[str, float]) -> None:
        self._point, self.largest = point, 1.0

    def value(self, node: Node) -> Value:
        """Of a node; UnreadError where it is too large, or stands too near to where there is none."""
        found: Value = getattr(self, f"_{_METHODS.get(node[0], node[0])}")(*node[1:])
        size = abs(found)
        if not size <= _LARGEST:
            raise UnreadError
        self.largest = max(self.largest, size)
        return found

    def _known(self, value: Value) -> Value:
        """A value that is not only rounding: what has a pole or a branch at 0 may be taken of it."""
        if abs(value) < _NOISE * self.largest:
            raise UnreadError
        return value

    def _real(self, node: Node) -> float:
        value = self.value(node)
        if value.imag != 0:
            raise UnreadError
        return value.real

    def _number(self, value: Fraction) -> Value:
        return value.numerator / value.denominator

    def _pi(self) -> Value:
        return math.pi

    def _e(self) -> Value:
        return math.e

    def _i(self) -> Value:
        return 1j

    def _name(self, name: str) -> Value:
        return self._point[name]

    def _sum(self, *terms: Node) -> Value:
        return sum(self.value(term) for term in terms)

    def _neg(self, term: Node) -> Value:
        return -self.value(term)

    def _product(self, *factors: Node) -> Value:
        return math.prod(self.value(factor) for factor in factors)

    def _inverse(self, node: Node) -> Value:
        return 1 / self._known(self.value(node))

    def _fraction(self, above: Node, below: Node) -> Value:
        return self.value(above) / self._known(self.value(below))

    def _power(self, base: Node, exponent: Node) -> Value:
        if base[0] == "e":
            return cmath.exp(self.value(exponent)) if self.value(exponent).imag else math.exp(self._real(exponent))
        bottom, top = self.value(base), self._real(exponent)
        if abs(top) > 1000:
            raise UnreadError
        if top == int(top):
            return (bottom if top >= 0 else self._known(bottom)) ** int(top)
        if bottom.imag != 0 or self._known(bottom).real < 0:
            raise UnreadError
        return math.pow(bottom.real, top)

    def _root(self, node: Node, order: Node) -> Value:
        value, degree = self.value(node), self._real(order)
        if value == 0:
            return value
        self._known(value)
        if value.imag != 0 or degree != int(degree) or degree < 1 or (value.real < 0 and degree != 2):
            raise UnreadError
        return math.sqrt(-value.real) * 1j if value.real < 0 else float(value.real ** (1 / degree))

    def _absolute(self, node: Node) -> Value:
        return abs(self.value(node))

    def _factorial(self, node: Node) -> Value:
        value = self._real(node)
        if value != int(value) or not 0 <= value <= 40:
            raise UnreadError
        return float(math.factorial(int(value)))

    def _binomial(self, above: Node, below: Node) -> Value:
        values = [self._real(node) for node in (above, below)]
        if not all(value == int(value) and 0 <= value <= 150 for value in values):
            raise UnreadError
        return float(math.comb(int(values[0]), int(values[1])))

    def _call(self, name: str, node: Node) -> Value:
        value = self._real(node)
        if name not in _FUNCTIONS:  # \log: to base e or 10
            raise UnreadError
        if name == r"\ln":
            self._known(value)
        elif name in TRIGONOMETRIC and name not in (r"\sin", r"\cos"):
            self._known(math.cos(value) if name in (r"\tan", r"\sec") else math.sin(value))
        return _FUNCTIONS[name](value)

    def _logarithm(self, node: Node, base: Node) -> Value:
        value, bottom = self._real(node), self._real(base)
        self._known(value)
        return math.log(value) / self._known(math.log(self._known(bottom).real))


_METHODS = {r"\pi": "pi"}
