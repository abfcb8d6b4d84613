"""The configuration of ``alp evaluate``."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from alp.configuration.fields import Name, NonNegative, Positive, PositiveFloat, Strict
from alp.configuration.model_schema import Model
from alp.configuration.rollout_schema import Rollout
from alp.configuration.run_schema import Run
from alp.configuration.task_schema import Task
from alp.errors import nearest


class Evaluation(Strict):
    """avg@k, greedy accuracy and pass@k of one model on one set, never perturbed."""

    set: Name
    """``test``, ``validation``, ``train`` or an evaluation set that the task names."""
    samples: Positive
    """Responses to each problem, the k of avg@k."""
    greedy: bool
    """Whether each problem is answered greedily too."""
    temperature: PositiveFloat
    """Of the sampling."""
    max_new_tokens: Positive
    """Tokens of a response, or of a turn, at most."""
    batch_size: Positive
    """Samples of whole problems that are asked for, and kept, at a time."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the model is; ``auto``: on a GPU where there is one."""
    threads: Positive
    """Threads of torch on the CPU."""
    seed: NonNegative
    """Of the samples."""


def check_set(task: Task, name: str, key: str) -> None:
    """Refuse a set that the task has not. Raises ValueError."""
    if name not in task.sets and not task.names_sets_late:
        raise ValueError(f"{key}: the task has no set '{name}'{nearest(name, task.sets)}")


class EvaluateConfig(Strict):
    """One model on one set."""

    task: Task
    """Problems and how answers are judged."""
    model: Model
    """The model that is evaluated."""
    rollout: Rollout
    """The engine that samples."""
    evaluation: Evaluation
    """What is sampled and counted."""
    run: Run
    """Where results go."""

    @model_validator(mode="after")
    def _said_once(self) -> EvaluateConfig:
        for key in ("temperature", "max_new_tokens"):
            said, engine = getattr(self.evaluation, key), getattr(self.rollout, key)
            if said != engine:
                raise ValueError(f"rollout.{key} = {engine} contradicts evaluation.{key} = {said}: set the latter")
        return self

    @model_validator(mode="after")
    def _long_enough(self) -> EvaluateConfig:
        check_set(self.task, self.evaluation.set, "evaluation.set")
        self.task.check_limit(self.evaluation.max_new_tokens)
        return self
