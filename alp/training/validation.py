"""Figures of a model in training that no update sees: accuracy on the validation set, the sharpness probe, and the
noise budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alp import adapters
from alp.configuration.train_schema import TrainConfig
from alp.policy.flatness import sharpness
from alp.policy.perturbation import LayerwisePerturbation
from alp.rollout.contract import Limits
from alp.rollout.ends import Ends
from alp.rollout.engine import Engine, Purpose, Sampling
from alp.rollout.episodes import Trajectory, collect
from alp.tasks.task import Problem, Task
from alp.training.batch import Batch, collate
from alp.training.budget import probe_metrics
from alp.training.distributed import ALONE, World
from alp.training.forward import token_log_probs
from alp.training.head import Head


class Validation:
    """Samples ``problems`` with ``engine``, whose weights are synced before each use unless it is the training's own.

    ``sampling`` is that of validation; ``load_initial`` reads the model that the job started from; ``head`` and
    ``perturbation`` are of the model in training.
    """

    def __init__(
        self,
        config: TrainConfig,
        engine: Engine,
        task: Task,
        problems: list[Problem],
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        ends: Ends,
        limits: Limits,
        device: torch.device,
        *,
        shared: bool,
        load_initial: Callable[[], Any],
        head: Head | None = None,
        perturbation: LayerwisePerturbation | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.engine, self.task, self.problems = config, engine, task, problems
        self.tokenizer, self.sampling, self.limits, self.device = tokenizer, sampling, limits, device
        self.ends = ends
        self.shared, self.load_initial, self.head = shared, load_initial, head
        self.perturbation, self.world = perturbation, world
        self._kept: Batch | None = None

    def figures(self, model: Any, step: int) -> dict[str, float]:
        """What ``trainer.probe_every`` and ``trainer.validate_every`` ask for after ``step``."""
        trainer, values = self.config.trainer, {}
        if trainer.probe_every and step % trainer.probe_every == 0:
            values["sharpness"] = self.sharpness(model)
            values |= self.budget(model)
        if trainer.validate_every and (step % trainer.validate_every == 0 or step == trainer.steps):
            values |= self.accuracy(model, step)
        return values

    def accuracy(self, model: Any, step: int) -> dict[str, float]:
        """Mean reward and length of ``trainer.validation_samples`` responses to each problem."""
        if not self.shared:
            self.engine.sync_weights(adapters.served(model), version=step)
        trajectories = self._sample(self.engine, self.sampling, step, self.config.trainer.validation_samples)
        return {
            "validation/accuracy": sum(item.reward for item in trajectories) / len(trajectories),
            "validation/length": sum(item.length for item in trajectories) / len(trajectories),
        }

    def sharpness(self, model: Any) -> float:
        """Specification §6, on a batch that stays the same."""
        probe, temperature = self._probe, self.config.rollout.temperature
        return sharpness(
            model,
            lambda: token_log_probs(model, probe, temperature, head=self.head)[0],
            probe.response_mask,
            sequence_ids=probe.sequence_ids,
            attention_mask=probe.attention_mask,
            seed=self.config.trainer.seed,
        )

    def budget(self, model: Any) -> dict[str, float]:
        """What each layer's noise does to log π of the same batch; nothing where there is none (docs/noise.md)."""
        noise, settings = self.perturbation, self.config.method.perturbation
        if noise is None or settings is None or not noise.enabled:
            return {}
        return probe_metrics(
            model,
            noise,
            settings,
            self._probe,
            temperature=self.config.rollout.temperature,
            seed=self.config.trainer.seed,
            head=self.head,
        )

    @property
    def _probe(self) -> Batch:
        if self._kept is None:
            self._kept = self._probe_batch()
        return self._kept

    def _probe_batch(self) -> Batch:
        """Responses of the *initial* model to the problems: the same batch whenever the job is started, and whatever
        engines it has."""
        from alp.rollout.hf import HFEngine

        with torch.random.fork_rng():  # whenever it is loaded
            initial = self.load_initial()
        batch_size = self.config.validation.local_batch
        engine = HFEngine(initial, dtype="float32", device=self.device, batch_size=batch_size)
        engine.sync_weights(initial.named_parameters(), version=0)
        rollout = self.config.rollout
        sampling = replace(self.sampling, temperature=rollout.temperature, max_new_tokens=rollout.max_new_tokens)
        trajectories = self._sample(engine, sampling, step=0, samples=1)
        pad = self.tokenizer.pad_token_id
        return collate(trajectories, pad_token_id=pad, first_sequence=0, device=self.device, for_loss=False)

    def _sample(self, engine: Engine, sampling: Sampling, step: int, samples: int) -> list[Trajectory]:
        def to(problems: list[Problem], first: int) -> list[Trajectory]:
            return collect(
                engine,
                self.task,
                self.tokenizer,
                problems,
                model=self.config.model,
                samples=samples,
                sampling=sampling,
                purpose=Purpose.VALIDATION,
                seed=self.config.trainer.seed,
                step=step,
                first_problem=first,
                vocabulary=self.limits.vocabulary,
                ends=self.ends,
            )

        return self.world.spread(self.problems, to)
