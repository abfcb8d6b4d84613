"""Rollout correction: weights and masks from the training-inference ratio ω = π_old / μ (specification §4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import check_finite, check_log_probs, check_mask
from .choices import registers
from .method import Corrected, Correction
from .ratio import LOG_RATIO_BOUND, unchecked_log_ratio

Kind = Callable[[Tensor, Tensor, Correction], tuple[Tensor, Tensor, Tensor]]
"""``(ω, mask, correction)`` → weights, the mask that is left, and the tokens that still count; all (batch, tokens)."""
KINDS: dict[str, Kind] = {}


@registers(KINDS, "none")
def _none(ratio: Tensor, mask: Tensor, _: Correction) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ones_like(ratio), mask, mask


@registers(KINDS, "truncate")
def _truncate(ratio: Tensor, mask: Tensor, correction: Correction) -> tuple[Tensor, Tensor, Tensor]:
    return ratio.clamp(max=correction.upper), mask, mask


@registers(KINDS, "mask")
def _mask(ratio: Tensor, mask: Tensor, correction: Correction) -> tuple[Tensor, Tensor, Tensor]:
    inside = _inside(ratio, correction)
    return torch.where(inside, ratio, torch.zeros_like(ratio)), mask & inside, mask & inside


@registers(KINDS, "mask_keep_denominator")
def _mask_keep_denominator(ratio: Tensor, mask: Tensor, correction: Correction) -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.where(_inside(ratio, correction), ratio, torch.zeros_like(ratio))
    return weights, mask, mask & (weights > 0)


def _inside(ratio: Tensor, correction: Correction) -> Tensor:
    assert correction.upper is not None  # every kind but `none` has one
    return (ratio >= (correction.lower or 0.0)) & (ratio <= correction.upper)


def rollout_correction(
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    mask: Tensor,
    *,
    kind: str,
    level: str,
    upper: float | None = None,
    lower: float | None = None,
    veto: float | None = None,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Weights (batch, tokens), the mask after correction, and what was removed: one :class:`Correction` by its
    keywords, which says what they mean. All detached.

    Raises ValueError for wrong shapes, dtypes, kinds, levels, bounds that do not fit the kind, NaN on valid tokens.
    """
    settings: dict[str, Any] = {"kind": kind, "level": level, "upper": upper, "lower": lower, "veto": veto}
    correction = Correction(**settings)
    check_log_probs("old_log_probs", old_log_probs)
    check_log_probs("rollout_log_probs", rollout_log_probs, old_log_probs.shape)
    mask = check_mask(mask, old_log_probs.shape)
    check_finite("old_log_probs", old_log_probs, mask)
    check_finite("rollout_log_probs", rollout_log_probs, mask)
    corrected = apply_corrections([correction], old_log_probs, rollout_log_probs, mask)
    names, values = list(corrected.metrics), torch.stack(list(corrected.metrics.values())).tolist()
    return corrected.weights, corrected.mask, dict(zip(names, values, strict=True))


@torch.no_grad()
def apply_corrections(
    corrections: Sequence[Correction], old_log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor
) -> Corrected:
    """Every correction on the same checked (batch, tokens) tensors; ``mask`` is boolean and the one before any."""
    weights = torch.ones_like(old_log_probs)
    kept = counted = mask
    for correction in corrections:
        ratio = unchecked_log_ratio(old_log_probs, rollout_log_probs, mask, level=correction.level).exp()
        factor, left, counting = KINDS[correction.kind](ratio, mask, correction)
        weights, kept, counted = weights * factor, kept & left, counted & counting
        if correction.veto is not None:
            tokens = torch.where(mask, old_log_probs - rollout_log_probs, torch.zeros_like(ratio))
            low = tokens.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp() < correction.veto
            kept = kept & ~low.any(-1, keepdim=True)
    return Corrected(weights, kept, _removed(mask, kept & counted))


def _removed(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Shares of valid tokens, and of sequences with a valid token, that no longer count; 0-dim float64."""
    rows = before.any(-1)
    lost_tokens, lost_rows = (before & ~after).sum(), (rows & ~after.any(-1)).sum()
    return {
        "correction/masked_tokens": lost_tokens.double() / before.sum().clamp(min=1).double(),
        "correction/masked_sequences": lost_rows.double() / rows.sum().clamp(min=1).double(),
    }
