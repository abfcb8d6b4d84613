"""TensorBoard, Weights & Biases and Trackio beside MLflow, through one seam: each is a view of the files of a job.

``ALP_TRACKERS`` names them (docs/tracking.md), ``<tracker>:<place>`` each, parted by spaces; without it there is none.
A process beside the job (alp/reporting/live.py, mirror.py) reads its ``metrics.jsonl`` and tells the tracker what that
has not: a second attempt, or ``alp track``, doubles nothing. Like MLflow they can fail and nothing else does. A package
is imported where it is told something; whether it is installed is asked before a job computes.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from alp.errors import UserError, nearest

VARIABLE = "ALP_TRACKERS"
# By the word in ALP_TRACKERS: where it is told from, and the package that the extra of its name installs.
TRACKERS = {
    "tensorboard": "alp.reporting.trackers_tensorboard:TensorBoard",
    "trackio": "alp.reporting.trackers_trackio:Trackio",
    "wandb": "alp.reporting.trackers_wandb:WandB",
}


@dataclass(frozen=True)
class Job:
    """What a tracker calls a run: ``group`` is the grid, ``key`` the same for the same training of a grid's arm and
    seed wherever its folder lies; ``config`` has dotted keys."""

    name: str
    group: str
    key: str
    config: dict[str, Any]

    @property
    def alone(self) -> str:
        """A name that no other training has, for trackers that know a run by its name."""
        return f"{self.name}-{self.key[:6]}"


class Tracker(Protocol):
    """One open run. Made with the place and the job, it goes on with the run of that job where there is one."""

    logged: int
    """The greatest step that the run has; -1: none."""

    def log(self, step: int, figures: dict[str, float]) -> None:
        """All figures of one step, in rising order of steps."""

    def conclude(self, figures: dict[str, float]) -> None:
        """Figures of the trained model; the same once more changes nothing."""

    def close(self, finished: bool) -> None:
        """The run ends as its job did, and everything is where it belongs."""


def asked() -> list[str]:
    """The trackers that the environment asks for. Raises UserError for an unknown one, a place that is missing, a
    package that is not installed."""
    words = os.environ.get(VARIABLE, "").split()
    for word in words:
        name, _, place = word.partition(":")
        if name not in TRACKERS:
            raise UserError(f"{VARIABLE}: unknown tracker '{name}'{nearest(name, TRACKERS)}")
        if not place:
            what = "a folder" if name == "tensorboard" else "a project"
            raise UserError(f"{VARIABLE}: {name} needs {what}: {name}:<{what.split()[1]}>")
        package = find_spec(name)
        if package is None or package.origin is None:  # a folder of that name, which W&B itself makes, is no package
            raise UserError(
                f"{VARIABLE}: the package {name} is not installed: pip install {name}, or the extra of that name"
                f" (make install EXTRAS=dev,{name})"
            )
    return words


def is_tracker(uri: str) -> bool:
    """Whether a word is of ``ALP_TRACKERS``, not an address of MLflow."""
    return uri.partition(":")[0] in TRACKERS


def opened(uri: str, job: Job) -> Tracker:
    """The job's run in that tracker, begun or taken up."""
    name, _, place = uri.partition(":")
    module, _, kind = TRACKERS[name].partition(":")
    tracker: Tracker = getattr(importlib.import_module(module), kind)(place, job)
    return tracker
