"""The clipped loss of PPO with the dual clip (specification §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import Count, Terms, register

if TYPE_CHECKING:
    from ..method import Method


@register("clip")
def clip(terms: Terms, method: Method) -> tuple[Tensor, Count]:
    """-min(r A, clip(r) A); where A < 0 at most -c A. Counts the tokens whose gradient each of them holds back."""
    ratio, advantages, mask = terms.ratio, terms.advantages, terms.mask
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - method.clip_low, 1 + method.clip_high) * advantages
    losses = torch.maximum(plain, clipped)
    negative = advantages < 0
    dual = torch.zeros_like(mask)
    if method.dual_clip is not None:
        ceiling = -method.dual_clip * advantages
        dual = negative & (losses > ceiling) & mask
        losses = torch.where(negative, torch.minimum(ceiling, losses), losses)
    low = (ratio < 1 - method.clip_low) & negative & mask
    high = (ratio > 1 + method.clip_high) & (advantages > 0) & mask
    counts = {"ratio/clipped_low": low.sum(), "ratio/clipped_high": high.sum(), "ratio/dual_clipped": dual.sum()}
    return losses, counts
