"""A rollout batch: sampled by the engine, then scored by the training model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alp.policy.diagnostics import mismatch_diagnostics, ratio_diagnostics
from alp.policy.objective import group_advantages
from alp.rollout.engine import Purpose
from alp.rollout.episodes import Trajectory, collect
from alp.rollout.play import Pause
from alp.tasks.task import Problem, select
from alp.training.batch import Batch, collate
from alp.training.compiled import CompiledLayers
from alp.training.forward import frozen_log_probs
from alp.training.head import Head

if TYPE_CHECKING:
    from alp.training.job import Job

FIGURES_OF_OLD = ("policy/entropy", "rollout_corr/…")  # what a job without π_old does not log


def sample(job: Job, step: int, pause: Pause = bool) -> list[Trajectory]:
    """The trajectories that ``step`` trains on, or the rest of them where it was stopped between their turns.

    Of several ranks each samples to its own problems, and none stops between turns: they would not be at the same.
    """
    trainer, alone = job.config.trainer, job.world.size == 1

    def to(problems: list[Problem], first: int) -> list[Trajectory]:
        return collect(
            job.engine,
            job.task,
            job.tokenizer,
            problems,
            model=job.config.model,
            samples=trainer.samples,
            sampling=job.sampling,
            purpose=Purpose.TRAINING,
            seed=trainer.seed,
            step=step,
            first_problem=first,
            vocabulary=job.limits.vocabulary,
            ends=job.ends,
            under_way=job.under_way if alone else None,
            pause=pause if alone else bool,
        )

    return job.world.spread(select(job.problems, trainer.prompts, trainer.seed, step - 1), to)


def padded(job: Job, trajectories: list[Trajectory], step: int) -> Batch:
    """The responses of ``step`` as tensors; sequence ids are unique in a run."""
    trainer = job.config.trainer
    return collate(
        trajectories,
        pad_token_id=job.tokenizer.pad_token_id,
        first_sequence=(step - 1) * trainer.prompts * trainer.samples,
        device=job.device,
    )


def score(job: Job, batch: Batch) -> tuple[Batch, dict[str, float]]:
    """Advantages, π_old, the reference, and what the rollout corrections leave; with the figures of the mismatch."""
    trainer = job.config.trainer
    advantages = group_advantages(batch.rewards, batch.groups).to(batch.rollout_log_probs.dtype)
    old, entropy = torch.zeros_like(batch.old_log_probs), torch.zeros_like(batch.entropy)
    reference = torch.zeros_like(batch.ref_log_probs)
    for rows, mini in batch.split(len(batch) // trainer.updates_per_batch):
        width = mini.input_ids.shape[1]
        if trainer.old_log_probs:
            old[rows, :width], entropy[rows, :width] = frozen(job, job.model, mini, job.head, job.compiled)
        if trainer.kl:
            with job.initial_policy() as (initial, head):
                reference[rows, :width], _ = frozen(job, initial, mini, head, job.reference_compiled)
    corrected = job.config.method.correct(
        old if trainer.old_log_probs else None, batch.rollout_log_probs, batch.response_mask
    )
    metrics = _of_old(batch, old, entropy) if trainer.old_log_probs else {}
    metrics |= {name: float(value) for name, value in corrected.metrics.items()}
    scored = batch.with_(
        advantages=advantages,
        old_log_probs=old,
        entropy=entropy,
        ref_log_probs=reference,
        weights=corrected.weights,
        loss_mask=corrected.mask,
    )
    return scored, metrics


def _of_old(batch: Batch, old: Tensor, entropy: Tensor) -> dict[str, float]:
    """The figures of π_old and of its mismatch to μ."""
    metrics = mismatch_diagnostics(old, batch.rollout_log_probs, batch.response_mask)
    metrics |= ratio_diagnostics(old - batch.rollout_log_probs, batch.response_mask, prefix="rollout_corr")
    return metrics | {"policy/entropy": float(entropy[batch.response_mask].double().mean())}


def frozen(
    job: Job, model: Any, mini: Batch, head: Head | None, compiled: CompiledLayers | None
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy of a mini-batch, in the pieces that its update takes."""
    trainer = job.config.trainer
    return frozen_log_probs(
        model,
        mini,
        job.config.rollout.temperature,
        trainer.micro_batch,
        head,
        micro_tokens=trainer.micro_tokens,
        compiled=compiled,
        world=job.world,
    )
