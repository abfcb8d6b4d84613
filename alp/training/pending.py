"""A rollout batch between its sampling and its line in ``metrics.jsonl``: what a job can be stopped in the middle
of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alp.training.batch import Batch
from alp.training.update import UpdateResult


@dataclass
class PendingStep:
    """Step ``step``.

    ``batch`` is scored; ``results`` are those of the mini-batches that are done, ``raw`` their log-ratios (batch,
    tokens); ``clean`` is that of the last mini-batch without noise, against μ (``clean.py``); ``metrics`` and
    ``seconds`` are what the step has so far; ``shown`` are facts of trajectories to be written (``trajectories.py``).
    """

    step: int
    batch: Batch
    metrics: dict[str, float]
    raw: Tensor
    results: list[UpdateResult] = field(default_factory=list)
    clean: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        results = [vars(result) for result in self.results]
        return vars(self) | {"batch": vars(self.batch), "results": results}

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device) -> PendingStep:
        """The inverse of ``state_dict``, with its tensors on ``device``."""
        batch = Batch(**{name: value.to(device) for name, value in state["batch"].items()})
        results = [UpdateResult(**result) for result in state["results"]]
        tensors = {name: value.to(device) for name in ("raw", "clean") if (value := state[name]) is not None}
        return cls(**(state | tensors | {"batch": batch, "results": results}))


class Clock:
    """Seconds of each phase of a step, for ``timings.jsonl`` alone; ``before`` are those of an earlier attempt."""

    def __init__(self, before: dict[str, float]) -> None:
        self.seconds = dict(before)
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The phase ``name`` ends now."""
        now = time.perf_counter()
        self.seconds[f"seconds/{name}"] = self.seconds.get(f"seconds/{name}", 0.0) + now - self._last
        self._last = now
