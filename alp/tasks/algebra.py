"""The jobs of grading workers: formulas by math-verify. Imported by workers alone; sympy takes seconds to import."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from sympy import Basic, Derivative, Equality, Expr, I, Symbol, simplify
from sympy.core.relational import Relational

from alp.tasks.equality import equal

logging.disable(logging.CRITICAL)  # math-verify warns about every answer it cannot parse

_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
_RELATIVE = 1e-6  # constants this close were compared as decimals of six digits
_WARM = (r"\frac{1}{2}", r"\sqrt{x}+2^{3}", r"x^{2}-3x+\pi", r"\sin(x) e^{-2 t}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}")


class MathVerify:
    """Equality and values of LaTeX formulas."""

    def same(self, response: str, gold: str) -> bool:
        """Equal by math-verify. No timeouts of the library's own: they go by the clock and count on the main thread."""
        one, other = _parsed(response), _parsed(gold)
        if one is None or other is None or isinstance(one, Relational) != isinstance(other, Relational):
            return False
        if isinstance(one, Equality) and isinstance(other, Equality):
            return self._same_equation(one, other)
        if not verify([other], [one], timeout_seconds=None) and not self._cancels(one, other):
            return False
        left, right = self._number(one), self._number(other)
        if left is None or right is None:
            return True
        # math-verify rounds decimals to six places, which makes small numbers equal; sympy's numbers have exponents of any size
        return bool(abs(left - right) <= _RELATIVE * max(abs(left), abs(right)))

    def value(self, formula: str) -> float | None:
        """A real constant's value, where a float can hold it."""
        number = self._number(_parsed(formula))
        if number is None or not number.is_real or not 1e-300 < abs(number) < 1e300:
            return None
        return float(number)

    @staticmethod
    def _same_equation(one: Any, other: Any) -> bool:
        """Whether one side minus the other is the same up to a factor. (math-verify solves both, and finds two without solutions equal.)"""
        if not one.free_symbols or not other.free_symbols or other.lhs - other.rhs == 0:  # true or false of itself: no equation
            return False
        factor = simplify((one.lhs - one.rhs) / (other.lhs - other.rhs))
        return bool(factor.is_number and factor.is_finite and factor != 0)

    @staticmethod
    def _cancels(one: Any, other: Any) -> bool:
        """Whether the difference is nothing where one is a single letter: math-verify then looks at its name alone."""
        if not any(isinstance(side, Symbol) for side in (one, other)) or not all(isinstance(side, Expr) for side in (one, other)):
            return False
        return bool(simplify(one - other) == 0)

    @staticmethod
    def _number(expression: Any) -> Any:
        """The value of a constant as a number of sympy's, or None."""
        if not isinstance(expression, Expr) or not expression.is_number:
            return None
        value = expression.evalf(20)
        return value if abs(value).is_Float or abs(value).is_Integer or value == 0 else None


def _parsed(formula: str) -> Any:
    """The formula as sympy reads it, or None.

    Straight to math-verify's parser: what that library does to a text before is for answers in prose; it lowers the case of variables and
    reads 2(3) as a mixed number.
    """
    try:
        found = latex2sympy(formula, is_real=True, convert_degrees=False, normalization_config=None, conversion_config=_CONVERSION)
        if not isinstance(found, Basic):
            return found
        names: dict[Any, Any] = {symbol: I for symbol in found.free_symbols if symbol.name == "i"}
        names |= {rate: Symbol(str(rate)) for rate in found.atoms(Derivative)}  # of an unknown function: sympy would make it 0
        return found.xreplace(names) if names else found
    except Exception:  # it raises whatever its grammar, sympy or the recursion limit raise
        return None


def grade(response: str, gold: str, style: str) -> bool:
    """Whether the answers are equal."""
    return equal(response, gold, style, MathVerify())


@cache
def _learn() -> None:
    algebra = MathVerify()
    for formula in _WARM:
        algebra.same(formula, formula + "+1")


def warm(*_: Any) -> None:
    """Once per worker: what the parser learns from a few formulas is there in every fork."""
    _learn()


JOBS = {"grade": grade}
