"""Our side: the public functions of `alp.policy`, put together as the trainer puts them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alp.policy import kl_penalty, log_ratio, policy_loss, rollout_correction

from .cases import Case

NONE = {"kind": "none", "level": "token"}


@dataclass
class Ours:
    """Loss, its gradient in the current log-probs, the mask and the weights it was computed with, clip fractions."""

    loss: Tensor
    gradient: Tensor
    kept: Tensor
    weights: Tensor
    metrics: dict[str, float]

    @property
    def tokens(self) -> int:
        """Tokens left after the correction."""
        return int(self.kept.sum())


def ours(
    case: Case,
    advantages: Tensor,
    *,
    level: str = "token",
    aggregation: str = "token-mean",
    normaliser: float | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    beta: float = 0.0,
    correction: dict[str, Any] | None = None,
) -> Ours:
    """Ratio, correction, loss and KL of one mini-batch. ``correction``: keywords of `rollout_correction`."""
    current = case.current.clone().requires_grad_()
    ratio = log_ratio(current, case.old, case.mask, level=level)
    weights, kept, _ = rollout_correction(case.old, case.rollout, case.mask, **(correction or NONE))
    loss, metrics = policy_loss(
        ratio,
        advantages,
        kept,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        weights=weights,
        normaliser=normaliser,
        aggregation=aggregation,
    )
    if beta:
        loss = loss + beta * kl_penalty(current, case.reference, kept).sum() / kept.sum()
    (gradient,) = torch.autograd.grad(loss, current)
    return Ours(loss.detach(), gradient, kept, weights, metrics)
