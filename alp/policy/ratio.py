"""Log-ratios of two policies at six levels (docs/method.md, Ratios)."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from .checks import check_finite, check_log_probs, check_mask
from .choices import check_choice
from .method import Level

LEVELS: tuple[str, ...] = get_args(Level)
LOG_RATIO_BOUND = 20.0  # the finished log-ratio is clamped to ± this; outside, its gradient is 0


def log_ratio(
    numerator: Tensor, denominator: Tensor, mask: Tensor, *, level: str, turn_ids: Tensor | None = None
) -> Tensor:
    """Log importance ratio of each token, (batch, tokens); 0 where ``mask`` is 0.

    ``numerator`` and ``denominator`` are log-probabilities (batch, tokens) of the sampled tokens under the two
    policies, at the sampling temperature. Above the token level the aggregate is detached and the gradient of a token
    flows through its own log-probability only. ``mask`` is the response mask before any correction; values under 0 are
    never read. ``turn_ids`` (batch, tokens) integers, needed at the levels of turns, count turns from 0.

    Raises ValueError for a wrong shape, dtype or level, for NaN or an infinity in the denominator on a valid token, and
    for an infinity in the numerator. NaN in the numerator propagates.
    """
    check_choice("level", level, LEVELS)
    check_log_probs("numerator", numerator)
    check_log_probs("denominator", denominator, numerator.shape)
    mask = check_mask(mask, numerator.shape)
    check_finite("denominator", denominator, mask)
    check_finite("numerator", numerator.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf), mask)
    return unchecked_log_ratio(numerator, denominator, mask, level=level, turn_ids=turn_ids)


def unchecked_log_ratio(
    numerator: Tensor, denominator: Tensor, mask: Tensor, *, level: str, turn_ids: Tensor | None = None
) -> Tensor:
    """:func:`log_ratio` of what was checked before, with a boolean mask: looking for NaN would wait for the device."""
    denominator = denominator.detach()
    zero = numerator.new_zeros(())
    # Select, never multiply: masked positions may hold -inf or NaN.
    difference = torch.where(mask, numerator - denominator, zero)
    # A clamp would make a weight of an infinity; NaN is what an update is skipped for.
    difference = difference.masked_fill(difference.isinf(), torch.nan)
    if level == "token":
        return difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    through = torch.where(mask, numerator, zero)  # what the gradient flows through
    aggregate = _aggregate(difference.detach(), mask, level, turn_ids)
    # The bracket is exactly 0: added to the aggregate in any other order, it would round it to a log-prob's last digit.
    finished = (aggregate + (through - through.detach())).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return torch.where(mask, finished, zero)


def k3(log_ratio: Tensor) -> Tensor:
    """e^x − x − 1 of log-ratios x, never negative; beyond x = 20 its tangent there.

    So a finite log-ratio has a finite figure and a gradient that still pulls, in every dtype. Specification §3 and §6
    leave the exponential to overflow.
    """
    inside = log_ratio.clamp(max=LOG_RATIO_BOUND)
    beyond = (log_ratio - LOG_RATIO_BOUND).relu()  # no difference of two gradients of size e^20 inside
    return torch.expm1(inside) - inside + math.expm1(LOG_RATIO_BOUND) * beyond


def _aggregate(difference: Tensor, mask: Tensor, level: str, turn_ids: Tensor | None) -> Tensor:
    """Detached sums of the token differences, broadcastable to (batch, tokens)."""
    if level == "sequence":
        return difference.sum(-1, keepdim=True)
    if level == "sequence_geometric":
        return difference.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    if level == "prefix":
        return difference.cumsum(-1)
    if turn_ids is None:
        raise ValueError(f"turn_ids: level '{level}' needs the turn of every token")
    if turn_ids.shape != mask.shape or turn_ids.is_floating_point():
        raise ValueError(
            f"turn_ids: integers of shape {tuple(mask.shape)} expected, got {turn_ids.dtype} {tuple(turn_ids.shape)}"
        )
    if bool(((turn_ids < 0) & mask).any()):
        raise ValueError("turn_ids: negative on a valid token")
    _, turns = torch.where(mask, turn_ids, 0).unique(return_inverse=True)  # masked positions may carry any filler
    if level == "turn_geometric":
        wide = difference.to(torch.promote_types(difference.dtype, torch.float32))  # as a sum along a row is taken
        empty = wide.new_zeros(mask.shape[0], int(turns.max()) + 1 if turns.numel() else 1)
        sums, counts = empty.scatter_add(1, turns, wide), empty.scatter_add(1, turns, mask.to(wide))
        return (sums / counts.clamp(min=1)).gather(1, turns).to(difference)
    prefix = difference.cumsum(-1)
    position = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    last = position.new_zeros(mask.shape[0], int(turns.max()) + 1 if turns.numel() else 1)
    last = last.scatter_reduce(1, turns, torch.where(mask, position, 0), "amax")
    return prefix.gather(1, last.gather(1, turns))
