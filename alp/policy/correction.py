"""Rollout correction: weights and masks from the training-inference ratio ω = π_old / μ (specification §4)."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_choice, check_log_probs, check_mask, check_no_nan
from .ratio import LOG_RATIO_BOUND, log_ratio

KINDS = ("none", "truncate", "mask", "mask_keep_denominator")
CORRECTION_LEVELS = ("token", "sequence", "sequence_geometric")


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
    """Weights (batch, tokens), the mask after correction, and what was removed.

    ``truncate``: w = min(ω, upper). ``mask``: w = ω within [lower, upper], the rest leaves the loss and its normaliser.
    ``mask_keep_denominator``: w = ω within, 0 outside, and the mask stays as it was. ``veto``: a sequence with any
    token ratio below it leaves the mask, whatever the kind. Bounds are on π_old/μ itself; ``lower`` defaults to 0. All
    detached.

    Raises ValueError for wrong shapes, dtypes, kinds, levels, bounds that do not fit the kind, NaN on valid tokens.
    """
    check_choice("kind", kind, KINDS)
    check_choice("level", level, CORRECTION_LEVELS)
    _check_bounds(kind, upper, lower, veto)
    check_log_probs("old_log_probs", old_log_probs)
    check_log_probs("rollout_log_probs", rollout_log_probs, old_log_probs.shape)
    mask = check_mask(mask, old_log_probs.shape)
    check_no_nan("old_log_probs", old_log_probs, mask)
    check_no_nan("rollout_log_probs", rollout_log_probs, mask)
    with torch.no_grad():
        ratio = log_ratio(old_log_probs, rollout_log_probs, mask, level=level).exp()
        kept = mask
        weights = torch.ones_like(ratio)
        if kind == "truncate":
            weights = ratio.clamp(max=upper)
        elif kind != "none":
            assert upper is not None  # checked above
            inside = (ratio >= (lower or 0.0)) & (ratio <= upper)
            weights = torch.where(inside, ratio, torch.zeros_like(ratio))
            if kind == "mask":
                kept = mask & inside
        if veto is not None:
            tokens = torch.where(mask, old_log_probs - rollout_log_probs, torch.zeros_like(ratio))
            low = tokens.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp() < veto
            kept = kept & ~low.any(-1, keepdim=True)
        effective = kept & (weights > 0) if kind == "mask_keep_denominator" else kept
    return weights, kept, _removed(mask, effective)


def _check_bounds(kind: str, upper: float | None, lower: float | None, veto: float | None) -> None:
    if kind == "none" and (upper is not None or lower is not None):
        raise ValueError("upper/lower: bounds without a kind would be ignored")
    if kind != "none" and (upper is None or not upper > 0):
        raise ValueError(f"upper: kind '{kind}' needs a positive upper bound, got {upper}")
    if kind == "truncate" and lower is not None:
        raise ValueError("lower: truncation has no lower bound")
    if lower is not None and upper is not None and not 0 <= lower < upper:
        raise ValueError(f"lower: 0 <= lower < upper = {upper} expected, got {lower}")
    if veto is not None and not veto > 0:
        raise ValueError(f"veto: a positive ratio expected, got {veto}")


def _removed(before: Tensor, after: Tensor) -> dict[str, float]:
    """Fractions of valid tokens, and of sequences with a valid token, that no longer count."""
    tokens, rows = before.sum(), before.any(-1)
    lost_rows = rows & ~after.any(-1)
    lost, valid, gone, present = torch.stack([(before & ~after).sum(), tokens, lost_rows.sum(), rows.sum()]).tolist()
    return {"correction/masked_tokens": lost / max(valid, 1), "correction/masked_sequences": gone / max(present, 1)}
