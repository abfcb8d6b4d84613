"""One geometric mean of clipped ratios a sequence: GMPO (arXiv 2507.20673)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Count, Terms, register

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


@register(
    "geometric",
    formula="−A exp(mean_t c_t), c_t = log r_t clipped outward",
    limits={"low": (0.0, 20.0), "high": (0.0, 20.0)},
    aggregation="seq-mean-token-mean",
)
def geometric(terms: Terms, _: Method, *, low: float = 0.4, high: float = 0.4) -> tuple[Tensor, Count]:
    """Every token has its sequence's value -A exp(mean of c), so that the mean over tokens is that value.

    c is log r, at most ``high`` where A > 0 and at least -``low`` where A <= 0: bounds in log space.
    """
    value, positive = terms.log_ratio, terms.advantages > 0
    bounded = value.clamp(max=high).where(positive, value.clamp(min=-low))
    counts = {
        "ratio/clipped_low": ((value < -low) & (terms.advantages < 0) & terms.mask).sum(),
        "ratio/clipped_high": ((value > high) & positive & terms.mask).sum(),
    }
    return -terms.advantages * terms.row_mean(bounded).exp(), counts
