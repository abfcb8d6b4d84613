"""Group-relative advantages, the sum of a loss over its tokens, and the KL penalty (docs/method.md, Objective)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from .checks import check_log_probs, check_mask
from .choices import check_choice
from .losses import Terms
from .method import Method
from .ratio import k3
from .settings import type_hints

AGGREGATIONS: tuple[str, ...] = get_args(type_hints(Method)["aggregation"])
ESTIMATORS = ("k1", "k2", "k3")
_STD_FLOOR = 1e-6


def group_advantages(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """(R - mean) / (std + 1e-6) within each group, unbiased std; exactly 0 where a group's rewards are all equal.

    ``rewards`` (sequences,) floating, ``group_ids`` (sequences,) integers, any order. Raises ValueError for NaN or
    infinite rewards, wrong shapes, and groups of one (they have no standard deviation).
    """
    if rewards.dim() != 1 or not rewards.is_floating_point():
        raise ValueError(
            f"rewards: floating of shape (sequences,) expected, got {rewards.dtype} {tuple(rewards.shape)}"
        )
    if group_ids.shape != rewards.shape or group_ids.is_floating_point():
        raise ValueError(
            f"group_ids: integers of shape {tuple(rewards.shape)} expected, got {group_ids.dtype}"
            f" {tuple(group_ids.shape)}"
        )
    if not bool(rewards.isfinite().all()):
        raise ValueError("rewards: NaN or infinite reward")
    if not rewards.numel():
        return rewards.clone()
    _, index, counts = group_ids.unique(return_inverse=True, return_counts=True)
    if bool((counts < 2).any()):
        raise ValueError("group_ids: every group needs at least 2 samples")
    groups = counts.numel()
    mean = rewards.new_zeros(groups).scatter_add(0, index, rewards) / counts
    centred = rewards - mean[index]
    std = (rewards.new_zeros(groups).scatter_add(0, index, centred.square()) / (counts - 1)).sqrt()
    # Equal rewards: the rounding of the mean must not become an advantage, so compare the extremes instead.
    high = rewards.new_full((groups,), -torch.inf).scatter_reduce(0, index, rewards, "amax")
    low = rewards.new_full((groups,), torch.inf).scatter_reduce(0, index, rewards, "amin")
    return torch.where((high == low)[index], torch.zeros_like(rewards), centred / (std[index] + _STD_FLOOR))


def policy_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    weights: Tensor | None = None,
    normaliser: float | Tensor | None = None,
    aggregation: str = "token-mean",
) -> tuple[Tensor, dict[str, float]]:
    """Clipped, dual-clipped policy loss (a scalar) and clip fractions over the valid tokens.

    ``log_ratio`` (batch, tokens); ``advantages`` (batch,) or (batch, tokens); ``mask`` after correction; ``weights`` of
    the rollout correction. ``normaliser`` is what the sum is divided by: valid tokens for ``token-mean``, sequences
    with a valid token for the others; pass the mini-batch's count so that micro-batches and ranks add up to the
    mini-batch's loss. With nothing valid the loss is 0. Raises ValueError for wrong shapes, clips, aggregation.
    """
    settings: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
    method = Method(**settings, aggregation=aggregation)  # type: ignore[arg-type]  # which checks it
    check_log_probs("log_ratio", log_ratio)
    mask = check_mask(mask, log_ratio.shape)
    if normaliser is None:
        normaliser = loss_normaliser(mask, aggregation)
    terms = terms_of(log_ratio, log_ratio, advantages, mask)  # the clipped loss reads no log-prob
    loss, shares = aggregate(method, terms, weights, float(normaliser))
    values = torch.stack(list(shares.values())).tolist()
    return loss, dict(zip(shares, values, strict=True))


def terms_of(
    log_ratio: Tensor,
    log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    rewards: Tensor | None = None,
    figures: Mapping[str, Tensor] | None = None,
) -> Terms:
    """What a loss is made of, from a checked ``log_ratio`` and ``log_probs`` under a boolean ``mask``.

    Raises ValueError for advantages of another shape.
    """
    advantages = per_token("advantages", advantages, log_ratio)
    # Select before computing: a masked NaN would reach the gradient as 0 · NaN.
    zero = log_ratio.new_zeros(())
    log_ratio = torch.where(mask, log_ratio, zero)
    advantages = torch.where(mask, advantages.to(log_ratio.dtype), zero)
    log_probs = torch.where(mask, log_probs, zero)
    return Terms(log_ratio, log_ratio.exp(), advantages, mask, log_probs, rewards, figures or {})


def aggregate(
    method: Method, terms: Terms, weights: Tensor | None, normaliser: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of ``terms``, and the shares of its tokens, 0-dim float64.

    Raises ValueError for weights of another shape.
    """
    mask, zero = terms.mask, terms.log_ratio.new_zeros(())
    losses, counts = method.token_loss(terms, method)
    if weights is not None:
        if weights.shape != mask.shape:
            raise ValueError(f"weights: shape {tuple(mask.shape)} expected, got {tuple(weights.shape)}")
        losses = losses * torch.where(mask, weights.detach(), zero)
    if method.log_square:
        losses = losses + method.log_square * terms.log_ratio.square()
    total = _sum(torch.where(mask, losses, zero), mask, method.aggregation)
    loss = total / (normaliser or 1.0)  # a count of nothing goes with a sum of nothing
    tokens = mask.sum().clamp(min=1).double()
    return loss, {name: number.double() / tokens for name, number in counts.items()}


def loss_normaliser(mask: Tensor, aggregation: str) -> int:
    """What ``policy_loss`` divides by: valid tokens, or sequences with any."""
    check_choice("aggregation", aggregation, AGGREGATIONS)
    return int(loss_count(mask, aggregation))


def loss_count(mask: Tensor, aggregation: str) -> Tensor:
    """:func:`loss_normaliser` on the device, 0-dim."""
    valid = mask.bool()
    return valid.sum() if aggregation == "token-mean" else valid.any(-1).sum()


def kl_penalty(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, *, estimator: str = "k3") -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref), (batch, tokens), 0 where masked; x = log π - log π_ref.

    k1 = x, k2 = x²/2, k3 = e^{-x} + x - 1 (:func:`alp.policy.ratio.k3` says what it is below x = -20). The gradient
    flows through ``log_probs`` alone.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_log_probs("log_probs", log_probs)
    check_log_probs("ref_log_probs", ref_log_probs, log_probs.shape)
    mask = check_mask(mask, log_probs.shape)
    x = torch.where(mask, log_probs - ref_log_probs.detach(), log_probs.new_zeros(()))
    if estimator == "k1":
        return x
    if estimator == "k2":
        return x.square() / 2
    return k3(-x)


def per_token(name: str, value: Tensor, like: Tensor) -> Tensor:
    """``value`` (batch,) or (batch, tokens) as the latter, detached. Raises ValueError for another shape or dtype."""
    if value.shape == like.shape[:1]:
        value = value.unsqueeze(-1).expand_as(like)
    if value.shape != like.shape:
        raise ValueError(
            f"{name}: shape {tuple(like.shape[:1])} or {tuple(like.shape)} expected, got {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise ValueError(f"{name}: floating expected, got {value.dtype}")
    return value.detach()


def _sum(losses: Tensor, mask: Tensor, aggregation: str) -> Tensor:
    if aggregation == "seq-mean-token-mean":
        return (losses.sum(-1) / mask.sum(-1).clamp(min=1)).sum()
    return losses.sum()
