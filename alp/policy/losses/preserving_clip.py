"""The clip of CE-GPPO, which keeps a bounded gradient outside (arXiv 2509.20712)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Count, Terms, register
from .clip import clipped

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


@register(
    "preserving_clip",
    formula="clip's inside, outside −β b (r / sg(r)) A at the bound b it passed; A < 0: at most −c A",
    reads=("ratio", "clip_low", "clip_high", "dual_clip"),
    limits={"beta_low": (0.0, 1e3), "beta_high": (0.0, 1e3)},
)
def preserving_clip(
    terms: Terms, method: Method, *, beta_low: float = 0.75, beta_high: float = 1.0
) -> tuple[Tensor, Count]:
    """Where ``clip`` has no gradient (below, with A < 0; above, with A > 0) the gradient is that of β b A log π, b the
    bound: it neither stops nor grows with the ratio. β = 0 is ``clip`` but for the value outside."""
    assert method.clip_low is not None  # which the method checked
    assert method.clip_high is not None
    lowest, highest = 1 - method.clip_low, 1 + method.clip_high
    losses, counts = clipped(terms, lowest, highest, method.dual_clip)
    held = -terms.advantages * (terms.log_ratio - terms.log_ratio.detach()).exp()
    low = (terms.ratio < lowest) & (terms.advantages < 0)
    high = (terms.ratio > highest) & (terms.advantages > 0)
    losses = (beta_low * lowest * held).where(low, losses)
    return (beta_high * highest * held).where(high, losses), counts
