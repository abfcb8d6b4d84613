"""What became of the policy itself: log π_θ − log μ without noise, for every method; names and meanings in
docs/results.md.

Nothing here draws a random number or writes to the model: training is the same with it and without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alp.policy.diagnostics import ratio_diagnostics
from alp.policy.ratio import k3
from alp.training.batch import Batch
from alp.training.scoring import frozen

if TYPE_CHECKING:
    from alp.training.job import Job
    from alp.training.pending import PendingStep


def unperturbed(job: Job, mini: Batch) -> Tensor | None:
    """log π_θ of a mini-batch without noise, (batch, tokens), with the weights that its update is about to start from:
    one forward without gradient. None where no noise acts: the update's own forward says it."""
    return frozen(job, job.model, mini, job.head, job.compiled)[0] if _noisy(job) else None


def against_rollout(job: Job, mini: Batch, log_probs: Tensor | None, raw: Tensor) -> Tensor:
    """log π_θ − log μ, (batch, tokens), 0 where masked; where ``log_probs`` is None, from the update's log-ratio
    ``raw``."""
    if log_probs is None:
        return _numerator(job, mini, raw)
    return torch.where(mini.response_mask, log_probs - mini.rollout_log_probs, 0.0)


def metrics(job: Job, pending: PendingStep) -> dict[str, float]:
    """``clean/…`` of the step's last mini-batch, under noise ``perturbed/…`` of the same tokens and weights, and every
    ``trainer.probe_every`` steps ``clean_batch/…``: the whole rollout batch after its last update."""
    trainer, batch = job.config.trainer, pending.batch
    mini_batches = list(batch.split(len(batch) // trainer.updates_per_batch))
    rows, mini = mini_batches[-1]
    assert pending.clean is not None
    figures = ratio_diagnostics(pending.clean, mini.response_mask, prefix="clean")
    if _noisy(job):
        perturbed = _numerator(job, mini, pending.raw[rows, : mini.input_ids.shape[1]])
        figures |= ratio_diagnostics(perturbed, mini.response_mask, prefix="perturbed")
    if trainer.probe_every and pending.step % trainer.probe_every == 0:
        ratio = torch.zeros_like(batch.rollout_log_probs)
        for rows, mini in mini_batches:
            log_probs, _ = frozen(job, job.model, mini, job.head, job.compiled)
            ratio[rows, : mini.input_ids.shape[1]] = log_probs - mini.rollout_log_probs
        figures |= ratio_diagnostics(ratio, batch.response_mask, prefix="clean_batch")
        figures["clean_batch/k3_kl"] = _mean_k3(ratio, batch.response_mask)
        if trainer.old_log_probs:
            stale = ratio + batch.rollout_log_probs - batch.old_log_probs
            figures["clean_batch/k3_kl_old"] = _mean_k3(stale, batch.response_mask)
    return figures


def _mean_k3(log_ratio: Tensor, mask: Tensor) -> float:
    """Mean of e^x − x − 1 over valid tokens; 0 without any."""
    values = k3(log_ratio[mask].double())
    return float(values.mean()) if values.numel() else 0.0


def _noisy(job: Job) -> bool:
    return job.perturbation is not None and job.perturbation.enabled


def _numerator(job: Job, mini: Batch, raw: Tensor) -> Tensor:
    """The numerator of the update against μ, whatever its denominator."""
    if job.config.method.denominator == "rollout":
        return raw
    return raw + torch.where(mini.response_mask, mini.old_log_probs - mini.rollout_log_probs, 0.0)
