"""The loop: sample → score → update × k → sync → log → checkpoint (``alp train``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from alp import adapters
from alp.configuration.compose import to_yaml
from alp.configuration.train_schema import TrainConfig
from alp.errors import Interrupted
from alp.lifetime import StopRequest
from alp.ownership import Claim
from alp.policy.diagnostics import ratio_diagnostics
from alp.progress import Progress
from alp.reproducibility import json_bytes
from alp.sharing import TakenOver, twins_of
from alp.training import clean, trajectories
from alp.training.distributed import World, joined
from alp.training.job import OUTPUTS, Job
from alp.training.metrics import envelope, noise_metrics, rollout_metrics, update_metrics
from alp.training.pending import Clock, PendingStep
from alp.training.scoring import padded, score

Observer = Callable[[], None]


def train(config: TrainConfig, on_step: Observer = lambda: None) -> Path:
    """Run (or continue) one training job; returns its folder. ``on_step`` is called after every logged step.

    Raises Interrupted when a signal asked for it: at the next update, after a checkpoint. Of several ranks each calls
    this; the first one's is the job that is claimed, recorded and followed.
    """
    with joined(config.trainer.devices, config.trainer.device) as world:
        if world.first:
            _lead(config, world, on_step)
        else:
            _follow(config, world)
    return Path(config.run.dir)


def _lead(config: TrainConfig, world: World, on_step: Observer) -> None:
    run_dir, stop = Path(config.run.dir), StopRequest()
    rewrites = {
        "config.yaml": lambda _: to_yaml(config).encode(),
        "active.json": lambda there: json_bytes(json.loads(there) | {"arm": config.run.arm}),
    }
    twins = twins_of(
        run_dir, config.run.grid, share=config.run.share, rewrites=rewrites, stop_signal=lambda: stop.signal
    )
    claim = Claim(run_dir, "train", outputs=OUTPUTS, replace=config.run.replace, dependents="evaluate", twins=twins)

    def accept(origin: dict[str, Any]) -> None:
        try:
            claim.accept(origin)
        except TakenOver:
            world.share(True)
            raise
        world.share(False)

    with claim, stop:
        try:
            job = Job(config, run_dir, stop, accept=accept, scratch=claim.scratch, world=world)
        except TakenOver:
            return
        claim.begin(job.origin)
        try:
            run(job, on_step)
        finally:
            job.close()
        claim.finish()


def _follow(config: TrainConfig, world: World) -> None:
    """The same of another rank: what it writes goes to a folder that nobody keeps."""

    def accept(_origin: dict[str, Any]) -> None:
        if world.share(False):
            raise TakenOver

    with StopRequest() as stop, TemporaryDirectory(prefix="alp-rank-") as folder, suppress(TakenOver):
        job = Job(config, Path(folder), stop, accept=accept, scratch=Path(folder), world=world)
        try:
            run(job)
        finally:
            job.close()


def run(job: Job, on_step: Observer = lambda: None) -> None:
    """Every step, then the final model."""
    trainer = job.config.trainer
    job.start()
    title = f"train {job.config.run.arm or job.config.method.name} seed {trainer.seed}"
    with Progress(title, trainer.steps, "step") as bar:
        bar.keep(job.done)
        while job.done < trainer.steps:
            metrics = step(job, job.done + 1)
            job.records.append("metrics.jsonl", metrics)
            job.done, job.pending = job.done + 1, None
            bar.update(job.done, f"reward {metrics['reward/mean']:.3f}")
            if trainer.checkpoint_every and job.done % trainer.checkpoint_every == 0 and job.done < trainer.steps:
                job.save()
            on_step()
        job.finish()


def step(job: Job, number: int) -> dict[str, Any]:
    """One rollout batch and its updates, or what is left of them; returns the step's metrics."""
    pending = job.pending = job.pending or begin(job, number)
    clock = Clock(pending.seconds)
    update(job, pending)
    clock.lap("update")
    metrics = pending.metrics | update_metrics(pending.results)
    metrics |= ratio_diagnostics(pending.raw, pending.batch.response_mask)
    metrics |= noise_metrics(job.perturbation, pending.results)
    metrics |= clean.metrics(job, pending)
    clock.lap("probe")
    job.ahead.settle()
    clock.lap("rollout")  # what the updates did not hide of it
    synced = job.engine.sync_weights(adapters.served(job.model), version=number)
    clock.lap("sync")
    metrics |= job.validation.figures(job.model, number)
    clock.lap("probe")
    tokens = int(pending.batch.response_mask.sum())
    job.records.append("timings.jsonl", {"step": number, "response_tokens": tokens} | clock.seconds | synced)
    return {"step": number} | metrics


def begin(job: Job, number: int) -> PendingStep:
    """Sample and score a rollout batch."""
    stop_if_asked(job)
    clock = Clock({})
    taken = job.ahead.take(number, partial(between_turns, job))
    sampled = taken.trajectories
    clock.lap("rollout")
    batch, metrics = score(job, padded(job, sampled, number))
    metrics |= rollout_metrics(sampled, job.config.trainer.samples)
    if job.config.trainer.lag:
        metrics["rollout/versions_behind"] = float(taken.versions_behind)
    clock.lap("score")
    shown, raw = trajectories.chosen(job, sampled, number), torch.zeros_like(batch.rollout_log_probs)
    return PendingStep(number, batch, metrics, raw, seconds=clock.seconds, shown=shown)


def update(job: Job, pending: PendingStep) -> None:
    """The mini-batches that are left of the rollout batch, whole groups each; a signal stops before any of them, or
    after the last."""
    trainer, batch = job.config.trainer, pending.batch
    mini_batches = list(batch.split(len(batch) // trainer.updates_per_batch))
    for index in range(len(pending.results), len(mini_batches)):
        stop_if_asked(job)
        rows, mini = mini_batches[index]
        last = index + 1 == len(mini_batches)
        log_probs = clean.unperturbed(job, mini) if last else None
        raw, result = job.updater.update(mini, (pending.step - 1) * trainer.updates_per_batch + index)
        pending.raw[rows, : mini.input_ids.shape[1]] = raw
        if last:
            pending.clean = clean.against_rollout(job, mini, log_probs, raw)
        pending.results.append(result)
    stop_if_asked(job)
    if trainer.probe_every and pending.step % trainer.probe_every == 0:
        logged = {"step": pending.step, "update": pending.step * trainer.updates_per_batch}
        rows, mini = mini_batches[-1]
        raw = pending.raw[rows, : mini.input_ids.shape[1]]
        assert pending.clean is not None
        job.records.append("updates.jsonl", logged | envelope(mini, raw, pending.clean))
    for line in trajectories.records(job, pending):
        job.records.append("trajectories.jsonl", line)


def between_turns(job: Job, state: Callable[[], dict[str, Any]]) -> None:
    """A signal stops here too: what was said so far, tools included, goes into the checkpoint."""
    if job.stop.signal is not None:
        job.under_way = state()
        stop_if_asked(job)


def stop_if_asked(job: Job) -> None:
    """Save and raise Interrupted once a signal has come."""
    signal = job.world.any_signal(job.stop.signal)
    if signal is None:
        return
    reached = f"{job.done} steps" + (f" and {len(job.pending.results)} updates" if job.pending else "")
    reached += " and some turns of the next batch" if job.under_way else ""
    kept = "what is done is saved" if job.save() else "the checkpoint before stays"
    raise Interrupted(
        f"{job.run_dir}: stopped by {signal} after {reached}; {kept}, the same command goes on from there"
    )
