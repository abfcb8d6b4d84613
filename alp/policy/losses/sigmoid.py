"""The soft gate of SAPO (arXiv 2511.20347)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Count, Terms, register

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


@register(
    "sigmoid",
    formula="−(4/τ) σ(τ (r − 1)) A",
    limits={"tau_positive": (1e-3, 1e3), "tau_negative": (1e-3, 1e3)},
)
def sigmoid(terms: Terms, _: Method, *, tau_positive: float = 1.0, tau_negative: float = 1.05) -> tuple[Tensor, Count]:
    """-(4/τ) σ(τ (r - 1)) A, τ by the sign of A: the gradient 4 σ (1 - σ) r A is that of r A at r = 1, and fades."""
    positive = terms.advantages > 0
    tau = terms.ratio.new_full((), tau_positive).where(positive, terms.ratio.new_full((), tau_negative))
    return -(4 / tau) * (tau * (terms.ratio - 1)).sigmoid() * terms.advantages, {}
