"""Two configurations of ``alp train`` on the same rollout batches, update by update, each from the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from alp import adapters, models
from alp.configuration.train_schema import TrainConfig
from alp.diagnosis.changes import Difference, Found, Update, difference
from alp.errors import UserError
from alp.policy.method import LossInputs, LossOutputs, Method
from alp.progress import Progress
from alp.rollout.episodes import Trajectory
from alp.tasks.catalogue import load_task
from alp.training.batch import Batch
from alp.training.compiled import MULTIPLE
from alp.training.job import Job
from alp.training.scoring import padded, sample, score

BATCHES = 2  # the second is sampled by moved weights: a penalty on their distance to the first is silent before
_SAMPLING = ("task.", "rollout.", "trainer.prompts", "trainer.samples", "trainer.seed")
_OTHER_MODEL = ("model.", "trainer.precision")


def compared(
    first: TrainConfig, second: TrainConfig, folder: Path, keys: Mapping[str, tuple[Any, Any]], said: str
) -> Found:
    """What differs between both; ``keys`` are those of the configuration that do, ``said`` the same in words.

    Weights follow the first configuration: before every update the second gets its weights, not its optimizer or σ.
    Where the rewards tell no sequences apart, advantages of 1 and −1 by turns stand in. Raises UserError.
    """
    other = [key for key in keys if key.startswith(_OTHER_MODEL) and key != "model.gradient_checkpointing"]
    if other:
        raise UserError(f"check: {other[0]} makes another model: two updates of one are compared")
    with _jobs(first, second, folder) as (one, two):
        shared = not any(key.startswith(_SAMPLING) for key in keys)
        differences: list[Difference] = []
        before: list[str] = []
        count = min(job.config.trainer.updates_per_batch for job in (one, two))
        with Progress("check, updates", BATCHES * count) as progress:
            for number in range(1, BATCHES + 1):
                sampled = [sample(one, number)]
                sampled.append(sampled[0] if shared else sample(two, number))
                if not shared and number == 1:
                    before = _samples(sampled[0], sampled[1])
                batches = [scored(job, own, number) for job, own in zip((one, two), sampled, strict=True)]
                for index in range(count):
                    differences.append(_both(one, two, batches, (number - 1) * count + index, index))
                    progress.update(len(differences))
                for job in (one, two):
                    follow(one, job)
                    job.engine.sync_weights(adapters.served(job.model), version=number)
        tokens = int(batches[0].response_mask.sum())
        stands = "" if _told_apart(batches[0]) else "; their rewards say nothing: advantages of 1 and −1 stand in"
        size = f"{BATCHES} rollout batches of {len(batches[0])} sequences, the last of {tokens} tokens"
    return Found(said, f"{size}, {count} updates each{_whose(first)}{stands}", differences, before)


@contextmanager
def _jobs(first: TrainConfig, second: TrainConfig, folder: Path) -> Iterator[tuple[Job, Job]]:
    """Both as jobs that write nothing but into ``folder``, and are closed."""
    made: list[Job] = []
    path = _model(first, folder)
    try:
        for config, name in ((first, "first"), (second, "second")):
            place = folder / name
            place.mkdir()
            made.append(Job(_bare(config, path), place, scratch=place))
            made[-1].start()
        yield made[0], made[1]
    finally:
        for job in made:
            job.close()


def _bare(config: TrainConfig, path: Path) -> TrainConfig:
    """Without what stands around updates: validation, probes, checkpoints."""
    around = {"validate_every": 0, "probe_every": 0, "checkpoint_every": 0}
    return config.model_copy(
        update={
            "trainer": config.trainer.model_copy(update=around),
            "validation": config.rollout,
            "model": config.model.model_copy(update={"path": str(path)}),
        }
    )


def _model(config: TrainConfig, folder: Path) -> Path:
    """The configured model's folder, or the embedded one with random weights."""
    if config.model.path is not None or config.model.source is not None:
        return models.check_model(config.model)
    pieces = getattr(load_task(config.task), "pieces", None)
    if pieces is None:
        return models.check_model(config.model)  # says how to get one
    tokenizer = models.character_tokenizer(pieces)
    models.save_model(
        models.build_embedded(config.model, tokenizer, config.trainer.seed).eval(), tokenizer, folder / "model"
    )
    return folder / "model"


def _whose(config: TrainConfig) -> str:
    return "" if config.model.path is not None else " of the embedded model with random weights (no model.path)"


def _samples(first: list[Trajectory], second: list[Trajectory]) -> list[str]:
    """Whether two engines gave the same."""
    if len(first) != len(second):
        return [f"samples: {len(first)} against {len(second)} sequences"]
    pairs = list(zip(first, second, strict=True))
    other = sum(one.prompt_ids + one.response_ids != two.prompt_ids + two.response_ids for one, two in pairs)
    if other:
        return [f"samples: {other} of {len(pairs)} sequences hold other tokens"]
    told = sum(one.rollout_log_probs != two.rollout_log_probs for one, two in pairs)
    return [f"samples: the same tokens; log-probs of the engine differ in {told} sequences"] if told else []


def _told_apart(batch: Batch) -> bool:
    return bool((batch.rewards != batch.rewards[0]).any())


def scored(job: Job, sampled: list[Trajectory], number: int) -> Batch:
    """A rollout batch as the job would train on it, with something to learn from."""
    batch, _ = score(job, padded(job, sampled, number))
    if _told_apart(batch):
        return batch
    turns = torch.arange(len(batch), device=batch.rewards.device) % 2
    return batch.with_(rewards=turns.to(batch.rewards), advantages=(2 * turns - 1).to(batch.advantages))


def follow(leader: Job, job: Job) -> None:
    """The leader's weights."""
    if job is leader:
        return
    state = adapters.state(leader.model) | (leader.masters.state() if leader.masters is not None else {})
    adapters.load_state(job.model, state)
    if job.masters is not None:
        job.masters.load_state(state)


def _both(one: Job, two: Job, batches: list[Batch], update: int, index: int) -> Difference:
    """The same update of both, the second's first: it needs weights that the first has not stepped yet."""
    follow(one, two)
    second = updated(two, part(two, batches[1], index), update)
    return difference(updated(one, part(one, batches[0], index), update), second)


def part(job: Job, batch: Batch, index: int) -> Batch:
    """A mini-batch of a rollout batch."""
    return list(batch.split(len(batch) // job.config.trainer.updates_per_batch))[index][1]


def updated(job: Job, mini: Batch, update: int) -> Update:
    """One update of a job, watched."""
    weights = _weights(job)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with _watched(job) as watched:
        _, result = job.updater.update(mini, update)
    norm = result.metrics.get("policy/grad_norm", 0.0)
    held = 1.0 if result.skipped else min(1.0, job.config.trainer.max_grad_norm / (norm + 1e-6))
    clipped = {id(weight) for weight in job.updater.clipped}
    return Update(
        result.metrics.get("policy/loss", 0.0),
        {
            name: weight.grad.detach() / (held if id(weight) in clipped else 1.0)
            for name, weight in weights.items()
            if weight.grad is not None
        },
        {name: weight.detach() - before[name] for name, weight in weights.items()},
        _of_rows(job, mini, watched.pushes),
    )


def _weights(job: Job) -> dict[str, Tensor]:
    """What the optimizer steps, by name; σ among it."""
    named = job.model.named_parameters() if job.masters is None else job.masters.weights.items()
    weights = {name: weight for name, weight in named if weight.requires_grad}
    noise = [] if job.perturbation is None else list(job.perturbation.parameters())
    return weights | {f"noise.{row}.log_std" if len(noise) > 1 else "noise": weight for row, weight in enumerate(noise)}


class Watched:
    """A method whose losses say how they push on each token: ``pushes`` has −∂loss/∂log π of one micro-batch after
    another."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.pushes: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def loss(self, inputs: LossInputs) -> LossOutputs:
        """:meth:`Method.loss`."""
        inputs.log_probs.register_hook(lambda gradient: self.pushes.append(-gradient.detach()))
        return self._method.loss(inputs)


@contextmanager
def _watched(job: Job) -> Iterator[Watched]:
    method = job.updater.method
    watched = Watched(method)
    job.updater.method = cast(Method, watched)
    try:
        yield watched
    finally:
        job.updater.method = method


def _of_rows(job: Job, mini: Batch, pushes: list[Tensor]) -> Tensor:
    """Those of micro-batches as (rows, tokens) of the mini-batch."""
    trainer = job.config.trainer
    pieces = mini.micro_batches(trainer.micro_batch, trainer.micro_tokens, 1 if job.compiled is None else MULTIPLE)
    whole = torch.zeros_like(mini.rollout_log_probs)
    for (rows, _), part in zip(pieces, pushes, strict=True):
        width = min(part.shape[1], whole.shape[1])
        whole[rows, :width] = part[:, :width].to(whole.dtype)
    return whole
