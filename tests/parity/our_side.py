"""Our side: the composition that the trainer calls, `Method.loss`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alp.policy import Correction, LossInputs, Method
from alp.policy.composition import count, survey
from alp.policy.method import Level

from .cases import Case


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
    level: Level = "token",
    aggregation: Any = "token-mean",
    normaliser: int | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    beta: float = 0.0,
    correction: dict[str, Any] | None = None,
) -> Ours:
    """Ratio, correction, loss and KL of one mini-batch. ``correction``: fields of a `Correction`."""
    method = Method(
        level=level,
        aggregation=aggregation,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        corrections=[Correction(**correction)] if correction else [],
    )
    return of_method(method, case, advantages, normaliser=normaliser, beta=beta)


def of_method(
    method: Method, case: Case, advantages: Tensor, *, normaliser: int | None = None, beta: float = 0.0
) -> Ours:
    """The same of a method as it is; ``normaliser`` in place of what it divides by."""
    current = case.current.clone().requires_grad_()
    corrected = method.correct(case.old, case.rollout, case.mask)
    given = LossInputs(
        log_probs=current,
        old_log_probs=case.old,
        rollout_log_probs=case.rollout,
        ref_log_probs=case.reference if beta else None,
        response_mask=case.mask,
        advantages=advantages,
        rewards=torch.tensor(case.rewards, dtype=torch.float64),
        kl=beta,
        weights=corrected.weights,
        loss_mask=corrected.mask,
    )
    counts = count(method, corrected.mask)
    counts = survey(method, given, counts) if method.surveys else counts
    counts = counts if normaliser is None else replace(counts, normaliser=normaliser)
    outputs = method.loss(replace(given, counts=counts))
    (gradient,) = torch.autograd.grad(outputs.loss, current)
    return Ours(outputs.loss.detach(), gradient, corrected.mask, corrected.weights, outputs.floats())
