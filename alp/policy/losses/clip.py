"""The clipped loss of PPO with the dual clip (docs/method.md, Objective)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import Count, Terms, register

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


@register(
    "clip",
    formula="−min(r A, clip(r) A); A < 0: at most −c A",
    reads=("ratio", "clip_low", "clip_high", "dual_clip"),
)
def clip(terms: Terms, method: Method) -> tuple[Tensor, Count]:
    """-min(r A, clip(r) A); where A < 0 at most -c A. Counts the tokens whose gradient each of them holds back."""
    assert method.clip_low is not None  # which the method checked
    assert method.clip_high is not None
    return clipped(terms, 1 - method.clip_low, 1 + method.clip_high, method.dual_clip)


def clipped(terms: Terms, lowest: Any, highest: Any, dual_clip: float | None) -> tuple[Tensor, Count]:
    """The same with the bounds of the ratio itself: floats, or 0-dim tensors."""
    ratio, advantages, mask = terms.ratio, terms.advantages, terms.mask
    plain = -ratio * advantages
    losses = plain.maximum(-ratio.clamp(lowest, highest) * advantages)
    negative = advantages < 0
    dual = mask.new_zeros(mask.shape)
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        dual = negative & (losses > ceiling) & mask
        losses = ceiling.minimum(losses).where(negative, losses)
    low = (ratio < lowest) & negative & mask
    high = (ratio > highest) & (advantages > 0) & mask
    counts = {"ratio/clipped_low": low.sum(), "ratio/clipped_high": high.sum(), "ratio/dual_clipped": dual.sum()}
    return losses, counts
