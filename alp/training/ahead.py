"""Rollout batches that are sampled before the updates of earlier ones (``trainer.lag``): asynchronous training.

With a lag of L, the batch of step t is sampled when step t − L begins: with the weights after step t − L − 1, or the
initial ones, whichever are newer. So it is up to L versions older than the weights that its own updates start from,
and which ones it was sampled with follows from its step alone. π_old is scored when its updates begin; what the lag
does stands in π_old/μ.

An engine that keeps weights of its own in a process of its own (``EngineSettings.apart``) samples while the updates
run. Any other samples the same batches with the same weights before them: a result never depends on what was ready
first.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from alp.rollout.episodes import Trajectory
from alp.rollout.play import Pause

if TYPE_CHECKING:
    from alp.configuration.train_schema import TrainConfig
    from alp.training.job import Job

Sample = Callable[["Job", int, Pause], list[Trajectory]]


@dataclass(frozen=True)
class Sampled:
    """The trajectories of ``step``, and how many steps the weights had behind them that they were sampled with."""

    step: int
    version: int
    trajectories: list[Trajectory]

    @property
    def versions_behind(self) -> int:
        """How much older they are than the weights that the step's updates start from, in steps."""
        return self.step - 1 - self.version


def overlaps(config: TrainConfig) -> bool:
    """Whether batches that are sampled ahead are sampled while the updates run. Several ranks do one thing at a time:
    what they gather from each other has to come in one order on all."""
    return config.trainer.lag > 0 and config.rollout.apart and config.trainer.devices == 1


class Ahead:
    """The batches of a job that wait for their step, the oldest first. ``sample`` gives those of one."""

    def __init__(self, job: Job, sample: Sample) -> None:
        self._job, self._sample = job, sample
        self._waiting: list[Sampled] = []
        self._sampling: Future[None] | None = None

    def take(self, step: int, pause: Pause = bool) -> Sampled:
        """The batch of ``step``, whose weights the engine has; those that its lag asks for are sampled, or begun.

        ``pause`` is called between the turns of what is waited for here.
        """
        trainer = self._job.config.trainer
        begun = [waiting.step for waiting in self._waiting]
        missing = range(max([step - 1, *begun]) + 1, min(step + trainer.lag, trainer.steps) + 1)
        at_once = [number for number in missing if number == step or not overlaps(self._job.config)]
        for number in at_once:
            self._add(number, step - 1, pause)
        if later := [number for number in missing if number not in at_once]:
            self._begin(later, step - 1)
        return self._waiting.pop(0)

    def settle(self) -> None:
        """Wait for what is being sampled: before the engine gets other weights, and before a checkpoint. Raises what
        became of it."""
        if self._sampling is not None:
            sampling, self._sampling = self._sampling, None
            try:
                sampling.result()
            finally:
                self._detach(apart=False)

    def state(self) -> list[dict[str, Any]]:
        """Plain data for a checkpoint."""
        self.settle()
        return [asdict(waiting) for waiting in self._waiting]

    def load_state(self, state: list[dict[str, Any]]) -> None:
        """The inverse of :meth:`state`."""
        self._waiting = [
            Sampled(item["step"], item["version"], [Trajectory.of(plain) for plain in item["trajectories"]])
            for item in state
        ]

    def _add(self, step: int, version: int, pause: Pause) -> None:
        self._waiting.append(Sampled(step, version, self._sample(self._job, step, pause)))
        self._job.under_way = None

    def _begin(self, steps: list[int], version: int) -> None:
        """Sample them in a thread, one after the other."""

        def run() -> None:
            for step in steps:
                self._add(step, version, bool)

        self._detach(apart=True)
        thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._sampling = thread.submit(run)
        thread.shutdown(wait=False)

    def _detach(self, *, apart: bool) -> None:
        """Tell the engine that the model it serves changes meanwhile."""
        engine: Any = self._job.engine
        engine.detached = apart
