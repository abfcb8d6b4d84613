"""The jobs of grading workers: formulas by math-verify. Imported by workers alone; sympy takes seconds to import.

A formula is judged by its form first (:mod:`alp.tasks.size`), then by its values (:mod:`alp.tasks.identity`), and by
math-verify where those say nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from math_verify import grader, verify
from sympy import Basic, Derivative, Equality, Expr, I, Symbol, binomial, simplify
from sympy.core.relational import Relational

from alp.tasks import identity
from alp.tasks.equality import equal
from alp.tasks.size import BeyondError, check, check_text

logging.disable(logging.CRITICAL)  # math-verify warns about every answer it cannot parse

LIBRARIES = {
    "math_verify": "math-verify",
    "sympy": "sympy",
    "latex2sympy2_extended": "latex2sympy2_extended",
    "mpmath": "mpmath",
}
_TROUBLES = (MemoryError, ImportError, OSError, SystemError)  # of the machine: no property of an answer
_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_RELATIVE = 1e-6  # constants this close were compared as decimals of six digits
_WARM = (
    r"\frac{1}{2}",
    r"\sqrt{x}+2^{3}",
    r"x^{2}-3x+\pi",
    r"\sin(x) e^{-2 t}",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
)


class MathVerify:
    """Equality and values of LaTeX formulas."""

    def __init__(self) -> None:
        self.unread = ""  # a response that is no formula

    def same(self, response: str, gold: str) -> bool:
        """Equal by values, or by math-verify."""
        one, other = _parsed(response), _parsed(gold)
        self.unread = response if one is None else self.unread
        if one is None or other is None or isinstance(one, Relational) != isinstance(other, Relational):
            return False
        if isinstance(one, Equality) and isinstance(other, Equality):
            return self._same_equation(one, other)
        verdict = identity.same(one, other) if isinstance(one, Expr) and isinstance(other, Expr) else None
        named = isinstance(one, Symbol) or isinstance(other, Symbol)  # math-verify then looks at names alone
        if verdict is not None and (verdict or not named):
            return verdict
        if not _verified(other, one) and not (verdict is None and named and self._cancels(one, other)):
            return False
        left, right = self._number(one), self._number(other)
        if left is None or right is None:
            return True
        # math-verify rounds decimals to six places, which makes small numbers equal; sympy's numbers have exponents of
        # any size
        return bool(abs(left - right) <= _RELATIVE * max(abs(left), abs(right)))

    def value(self, formula: str) -> float | None:
        """A real constant's value, where a float can hold it."""
        number = self._number(_parsed(formula))
        if number is None or not number.is_real or not 1e-300 < abs(number) < 1e300:
            return None
        return float(number)

    @staticmethod
    def _same_equation(one: Any, other: Any) -> bool:
        """Whether one side minus the other is the same up to a factor. (math-verify solves both, and finds two without
        solutions equal.)"""
        if (
            not one.free_symbols or not other.free_symbols or other.lhs - other.rhs == 0
        ):  # true or false of itself: no equation
            return False
        verdict = identity.proportional(one.lhs - one.rhs, other.lhs - other.rhs)
        if verdict is not None:
            return verdict
        factor = simplify((one.lhs - one.rhs) / (other.lhs - other.rhs))
        return bool(factor.is_number and factor.is_finite and factor != 0)

    @staticmethod
    def _cancels(one: Any, other: Any) -> bool:
        """Whether the difference is nothing."""
        return all(isinstance(side, Expr) for side in (one, other)) and bool(simplify(one - other) == 0)

    @staticmethod
    def _number(expression: Any) -> Any:
        """The value of a constant as a number of sympy's, or None."""
        if not isinstance(expression, Expr) or not expression.is_number:
            return None
        value = expression.evalf(20)
        return value if abs(value).is_Float or abs(value).is_Integer or value == 0 else None


class _Reader(_Latex2Sympy):  # type: ignore[misc]
    """math-verify's parser, which computes some things while it reads: their size is looked at before."""

    def convert_expr(self, expr: Any) -> Any:
        found = super().convert_expr(expr)
        check(found)
        return found

    def convert_binom(self, binom: Any) -> Any:
        above, below = self.convert_expr(binom.upper), self.convert_expr(binom.lower)
        check(binomial(above, below, evaluate=False))
        return binomial(above, below)

    def convert_matrix(self, matrix: Any) -> Any:
        found = super().convert_matrix(matrix)
        check(found)
        return found

    def handle_gcd_lcm(self, f: str, args: Any) -> Any:
        for one in args:
            check(one)
        return super().handle_gcd_lcm(f, args)


@lru_cache(maxsize=256)  # a list in any order compares each with many
def _parsed(formula: str) -> Any:
    """The formula as sympy reads it, or None. Raises BeyondError.

    Straight to math-verify's parser: what that library does to a text before is for answers in prose; it lowers the
    case of variables and reads 2(3) as a mixed number.
    """
    check_text(formula)
    try:
        found = _Reader(is_real=True, convert_degrees=False, config=_CONVERSION).parse(formula)
        check(found)
        if not isinstance(found, Basic):
            return found
        names: dict[Any, Any] = {symbol: I for symbol in found.free_symbols if symbol.name == "i"}
        names |= {
            rate: Symbol(str(rate)) for rate in found.atoms(Derivative)
        }  # of an unknown function: sympy would make it 0
        return found.xreplace(names) if names else found
    except _TROUBLES:
        raise
    except Exception:  # it raises whatever its grammar, sympy or the recursion limit raise
        return None


_swallowed: list[Exception] = []


def _noticed(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, whose troubles with the machine are kept: math-verify takes every exception for a difference."""

    def noticed(*arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except _TROUBLES as error:
            _swallowed.append(error)
            raise

    return noticed


grader.simplify, grader.solve = _noticed(grader.simplify), _noticed(grader.solve)


def _verified(gold: Any, response: Any) -> bool:
    """Equal by math-verify. No timeouts of the library's own: they go by the clock and count on the main thread."""
    verdict = verify([gold], [response], timeout_seconds=None)
    if _swallowed and not verdict:
        raise _swallowed.pop()
    return bool(verdict)


def grade(response: str, gold: str, style: str, prompt: str | None) -> tuple[bool, str | None, str]:
    """Whether the answers are equal; where they are not, whether that is for ``large`` or ``unreadable`` formulas, and
    which."""
    judge = MathVerify()
    try:
        right = equal(response, gold, style, judge, prompt)
    except BeyondError as error:
        return False, "large", str(error)
    return (right, "unreadable", judge.unread[:200]) if judge.unread and not right else (right, None, "")


@cache
def _learn() -> None:
    algebra = MathVerify()
    for formula in _WARM:
        algebra.same(formula, formula + "+1")


def warm(*_: Any) -> None:
    """Once per worker: what the parser learns from a few formulas is there in every fork."""
    _learn()


JOBS = {"grade": grade}
