"""Whether two formulas are the same function, by their values at random points in high precision.

sympy's ``simplify`` searches for a shorter form step by step and may stop at a longer one (it turns multiples of four
in a cosine into powers of a sine, from which it finds no way back), so that what it does not reduce to 0 need not
differ. Values decide that: where two analytic expressions agree to 60 digits at points of several sizes and both signs,
complex values included, they are one; where they differ at one point, they are two. Where too few values can be had,
nothing is said.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import mpmath
import sympy
from mpmath import mp, mpf

_POINTS = (
    (0.3, 1.7, "+"),
    (0.2, 2.5, "±"),
    (0.5, 4.0, "-"),
    (3.0, 9.0, "±"),
    (10.0, 60.0, "+"),
    (60.0, 900.0, "±"),
)  # sizes and signs
_LEAST = 3  # points whose values are known
_DIGITS = (90, 180)  # a value is known when both precisions agree
_SAME = mpf(10) ** -60  # relative
_APART = mpf(10) ** -6  # relative; constants nearer than this are left to others, who know about rounded decimals
_LARGEST = 200_000  # bits of a value before the point
_PRECISE = 100  # bits before the point of what a sine or a power can still be had of

_NAMES = (
    "sin",
    "cos",
    "tan",
    "sec",
    "csc",
    "cot",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
)
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    getattr(sympy, name): getattr(mpmath, name) for name in (*_NAMES, "factorial", "gamma", "binomial")
}
_CONSTANTS = {sympy.pi: lambda: +mp.pi, sympy.E: lambda: +mp.e, sympy.I: lambda: mpmath.mpc(0, 1)}


class _UnknownError(Exception):
    """No value to be had at this point."""


class _ForeignError(Exception):
    """No value to be had at any point."""


def same(one: Any, other: Any) -> bool | None:
    """Whether two formulas have the same values; None where that cannot be told. Constants are told apart, and never
    called the same."""
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    pairs = _values(one, other, symbols)
    if not symbols:
        return False if pairs and abs(pairs[0][0] - pairs[0][1]) > _APART * max(map(abs, pairs[0])) else None
    if any(abs(left - right) > _SAME * max(abs(left), abs(right)) for left, right in pairs):
        return False
    return True if len(pairs) >= _LEAST and not _has_steps(one) and not _has_steps(other) else None


def proportional(one: Any, other: Any) -> bool | None:
    """Whether one formula is a constant multiple of the other, and neither is 0; None where that cannot be told."""
    pairs = _values(one, other, sorted(one.free_symbols | other.free_symbols, key=str))
    if len(pairs) < _LEAST:
        return None
    factors = [left / right for left, right in pairs]
    if any(abs(factor - factors[0]) > _SAME * max(abs(factor), abs(factors[0])) for factor in factors):
        return False
    return None if _has_steps(one) or _has_steps(other) else True


def _has_steps(formula: Any) -> bool:
    """Whether its values at some points say nothing of others."""
    return bool(formula.has(sympy.Abs))


def _values(one: Any, other: Any, symbols: list[Any]) -> list[tuple[Any, Any]]:
    """Pairs of values at the points where both are known and none is 0."""
    found = []
    try:
        for place, (low, high, signs) in enumerate(_POINTS if symbols else _POINTS[:1]):
            drawn = random.Random(f"{place} " + " ".join(map(str, symbols)))
            point = {
                symbol: drawn.uniform(low, high) * _sign(signs, index + place) for index, symbol in enumerate(symbols)
            }
            try:
                found.append((_value(one, point), _value(other, point)))
            except _UnknownError:
                continue
    except _ForeignError:
        return []
    return found


def _sign(signs: str, index: int) -> int:
    return {"+": 1, "-": -1}.get(signs, 1 if index % 2 else -1)


def _value(formula: Any, point: dict[Any, float]) -> Any:
    """The value at a point to 60 digits and a few more."""
    values = []
    for digits in _DIGITS:
        with mp.workdps(digits):
            try:
                values.append(_at(formula, point))
            except (ValueError, ArithmeticError, TypeError, NotImplementedError, mpmath.libmp.NoConvergence):
                raise _UnknownError from None
    if (
        values[1] == 0 or abs(values[0] - values[1]) > _SAME * abs(values[1]) / 1000
    ):  # nothing but rounding is left of it
        raise _UnknownError
    return values[1]


def _at(part: Any, point: dict[Any, float]) -> Any:
    if part in point:
        return mpf(point[part])
    if part.is_Rational:
        return _finite(mpf(int(part.p)) / int(part.q))
    if part.is_Float:  # what was written, not the nearest binary fraction
        return _finite(mpf(str(part)))
    if part in _CONSTANTS:
        return _CONSTANTS[part]()
    if part.is_Add:
        return _finite(mpmath.fsum(_at(one, point) for one in part.args))
    if part.is_Mul:
        return _finite(mpmath.fprod(_at(one, point) for one in part.args))
    if part.is_Pow or isinstance(part, sympy.exp):
        return _power(part, point)
    inside = [_at(one, point) for one in part.args]
    if isinstance(part, sympy.Abs):
        return abs(inside[0])
    if isinstance(part, sympy.log):
        return _finite(mpmath.log(*inside))
    function = _FUNCTIONS.get(part.func)
    if function is None:
        raise _ForeignError
    if any(mp.mag(one) > (17 if function in _GROWING else _PRECISE) for one in inside):
        raise _UnknownError
    return _finite(function(*inside))


_GROWING = {
    _FUNCTIONS[function]
    for function in (sympy.factorial, sympy.gamma, sympy.binomial, sympy.sinh, sympy.cosh, sympy.tanh)
}


def _power(part: Any, point: dict[Any, float]) -> Any:
    base, exponent = _at(part.base, point), _at(part.exp, point)
    if base == 0 or mp.mag(exponent) > _PRECISE:
        raise _UnknownError
    if abs(exponent) * (abs(mp.mag(base)) + 1) > _LARGEST:
        raise _UnknownError
    return _finite(mpmath.power(base, exponent))


def _finite(value: Any) -> Any:
    if not mpmath.isfinite(value) or (value != 0 and abs(mp.mag(value)) > _LARGEST):
        raise _UnknownError
    return value
