"""The jobs of grading workers: formulas by math-verify. Imported by workers alone; sympy takes seconds to import."""

from __future__ import annotations

import logging
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic

from alp.tasks.equality import equal

logging.disable(logging.CRITICAL)  # math-verify warns about every answer it cannot parse

_EXTRACT = [LatexExtractionConfig(boxed_match_priority=0)]
_RELATIVE = 1e-6  # constants this close were compared as decimals of six digits
_WARM = (r"\frac{1}{2}", r"\sqrt{x}+2^{3}", r"x^{2}-3x+\pi", r"\sin(x) e^{-2 t}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}")


class MathVerify:
    """Equality and values of LaTeX formulas."""

    def same(self, response: str, gold: str) -> bool:
        """Equal by math-verify, gold and response wrapped in a box: bare LaTeX often fails to parse there."""
        one, other = _parsed(response), _parsed(gold)
        if not one or not other:
            return False
        # No timeouts of the library's own: they are by the clock, and need the main thread; the process has its limits.
        if not verify(other, one, timeout_seconds=None):
            return False
        values = self._number(one[0]), self._number(other[0])
        if values[0] is None or values[1] is None:
            return True
        return abs(values[0] - values[1]) <= _RELATIVE * max(abs(values[0]), abs(values[1]))

    def value(self, formula: str) -> float | None:
        """A real constant's value."""
        parsed = _parsed(formula)
        number = self._number(parsed[0]) if parsed else None
        return number.real if number is not None and abs(number.imag) < _RELATIVE * abs(number) and abs(number) < 1e300 else None

    @staticmethod
    def _number(expression: Any) -> complex | None:
        if not isinstance(expression, Basic) or expression.free_symbols:
            return None
        try:
            return complex(expression.evalf(15))  # type: ignore[attr-defined]
        except (TypeError, ValueError, AttributeError, OverflowError):
            return None


def _parsed(formula: str) -> list[Any]:
    return parse(rf"\boxed{{{formula}}}", extraction_config=_EXTRACT, parsing_timeout=None)  # type: ignore[no-any-return]


def grade(response: str, gold: str, style: str) -> bool:
    """Whether the answers are equal."""
    return equal(response, gold, style, MathVerify())


def warm(job: str, arguments: list[Any]) -> None:
    """Once per worker: what the parser learns from these is there in every fork."""
    if _WARM_DONE:
        return
    _WARM_DONE.append(True)
    algebra = MathVerify()
    for formula in _WARM:
        algebra.same(formula, formula + "+1")


_WARM_DONE: list[bool] = []
JOBS = {"grade": grade}
