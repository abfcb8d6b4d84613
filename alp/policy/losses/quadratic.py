"""A quadratic penalty on the ratio in place of the clip: SPO (arXiv 2401.16025)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Count, Terms, register

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


@register("quadratic", formula="−(r A − abs(A) (r − 1)² / (2 ε))", limits={"epsilon": (1e-3, 10.0)})
def quadratic(terms: Terms, _: Method, *, epsilon: float = 0.2) -> tuple[Tensor, Count]:
    """-(r A - |A| (r - 1)²/(2 ε)): least at r = 1 + ε sgn(A), from where it pulls back."""
    ratio, advantages = terms.ratio, terms.advantages
    return -(ratio * advantages - advantages.abs() * (ratio - 1).square() / (2 * epsilon)), {}
