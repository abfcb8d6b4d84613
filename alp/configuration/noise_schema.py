"""The configuration of ``alp noise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from alp.configuration.evaluate_schema import EvaluateConfig, Evaluation, check_set
from alp.configuration.fields import Name, NonNegative, Positive, Strict
from alp.configuration.method_schema import MethodField, filled
from alp.configuration.model_schema import Model
from alp.configuration.rollout_schema import Rollout, with_behaviour_policy
from alp.configuration.run_schema import Run
from alp.configuration.task_schema import Task


class Noise(Strict):
    """What the noise is measured on: ``samples`` responses to each of the first ``problems`` of a set."""

    set: Name
    """The set whose problems are answered: ``test``, ``validation``, ``train`` or one that the task names."""
    problems: Positive
    """The first so many problems of the set."""
    samples: Positive
    """Responses to each of them."""
    draws: Annotated[int, Field(ge=2)]
    """Of the noise, for each layer and for all together; one has no standard error."""
    batch_size: Positive
    """Sequences of a forward."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the model is; ``auto``: on a GPU where there is one."""
    threads: Positive
    """Threads of torch on the CPU."""
    seed: NonNegative
    """Of responses and noise."""


class NoiseConfig(Strict):
    """The noise of ``method`` on a model, on responses that ``rollout`` samples; no training. ``output`` is a
    folder."""

    task: Task
    """Problems and how answers are judged."""
    model: Model
    """The model that the noise is put on."""
    method: MethodField
    """The method whose noise it is."""
    rollout: Annotated[Rollout, AfterValidator(with_behaviour_policy)]
    """The engine that samples the responses."""
    noise: Noise
    """What the noise is measured on."""
    output: str
    """The folder that page and tables go into."""
    replace: bool = False
    """Whether a budget of something else in ``output`` gives way; without it that is refused."""

    @classmethod
    def filled(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Every field of the method: a preset holds only what differs from the defaults."""
        plain, preset = super().filled(plain), plain.get("method")
        return plain | {"method": filled(preset)} if isinstance(preset, dict) else plain

    @model_validator(mode="after")
    def _has_noise(self) -> NoiseConfig:
        noise = self.method.perturbation
        if noise is None:
            raise ValueError(f"method '{self.method.name}' has no perturbation: choose token_alp or seq_alp")
        if not noise.std:
            raise ValueError("method.perturbation.std = 0 switches the noise off: there is nothing to measure")
        return self

    @model_validator(mode="after")
    def _can_be_sampled(self) -> NoiseConfig:
        check_set(self.task, self.noise.set, "noise.set")
        self.task.check_limit(self.rollout.max_new_tokens)
        return self

    @property
    def sampling(self) -> EvaluateConfig:
        """The evaluation that samples the responses."""
        settings, rollout = self.noise, self.rollout
        evaluation = Evaluation(
            set=settings.set,
            samples=settings.samples,
            greedy=False,
            temperature=rollout.temperature,
            max_new_tokens=rollout.max_new_tokens,
            batch_size=settings.batch_size,
            device=settings.device,
            threads=settings.threads,
            seed=settings.seed,
        )
        return EvaluateConfig(
            task=self.task, model=self.model, rollout=rollout, evaluation=evaluation, run=Run.of(Path(self.output))
        )
