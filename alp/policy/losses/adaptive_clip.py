"""The clipped loss whose bounds are moved until positive advantages carry their share: BAPO (arXiv 2510.18927)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import Count, Terms, register
from .clip import clipped

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


def _bounds(
    terms: Terms,
    *,
    share: float = 0.5,
    low_first: float = 0.6,
    low_last: float = 0.9,
    high_first: float = 1.2,
    high_last: float = 3.0,
    step: float = 0.05,
) -> dict[str, Tensor]:
    """The first bounds under which P >= ``share`` (P + N), raising the lower one first; the last ones if none do.

    P = Σ min(r, high) A over A >= 0 and N = Σ max(r, low) |A| over A < 0. Waits for the device.
    """
    ratio, advantages = terms.ratio.detach(), terms.advantages
    positive, negative = (advantages > 0) & terms.mask, (advantages < 0) & terms.mask
    tried = [(low, high_first) for low in _steps(low_first, low_last, step)]
    tried += [(low_last, high) for high in _steps(high_first, high_last, step)[1:]]
    for low, high in tried:
        gain = (ratio[positive].clamp(max=high) * advantages[positive]).sum()
        loss = -(ratio[negative].clamp(min=low) * advantages[negative]).sum()
        if bool(gain >= share * (gain + loss)):
            break
    return {"low": ratio.new_tensor(low), "high": ratio.new_tensor(high)}


def _steps(first: float, last: float, step: float) -> list[float]:
    """``first``, ``first`` + ``step``, … up to ``last``, which is the end of it."""
    count = max(0, math.ceil((last - first) / step - 1e-9))
    return [first + step * number for number in range(count)] + [last]


@register(
    "adaptive_clip",
    formula="−min(r A, clip(r) A) in [c_low, c_high], moved until P ≥ ρ_0 (P + N); A < 0: at most −c A",
    reads=("ratio", "dual_clip"),
    limits={
        "share": (0.0, 1.0),
        "step": (1e-3, 10.0),
        "low_first": (0.0, 1.0),
        "low_last": (0.0, 1.0),
        "high_first": (1.0, 1e3),
        "high_last": (1.0, 1e3),
    },
    survey=_bounds,
)
def adaptive_clip(terms: Terms, method: Method) -> tuple[Tensor, Count]:
    """The clipped loss in the bounds that the survey of the mini-batch found."""
    return clipped(terms, terms.figures["low"], terms.figures["high"], method.dual_clip)
