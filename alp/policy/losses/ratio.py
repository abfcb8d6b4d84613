"""The surrogate without any clip, and its probability smoothing (PSPO, arXiv 2509.21282)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Count, Terms, register

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


@register("ratio", formula="−((1 − α) r + α) A", limits={"alpha": (0.0, 0.999)})
def ratio(terms: Terms, _: Method, *, alpha: float = 0.0) -> tuple[Tensor, Count]:
    """-r A at alpha = 0; else r is drawn towards 1: the ratio of (1 - α) π + α π_denominator."""
    return -((1 - alpha) * terms.ratio + alpha) * terms.advantages, {}
