"""Weights & Biases (alp/reporting/trackers.py). Its own variables hold: ``WANDB_MODE=offline``, ``WANDB_DIR``."""

from __future__ import annotations

import os
from pathlib import Path

import wandb

from alp.reporting.trackers import Job


class WandB:
    """``place`` is a project, or ``<entity>/<project>``. A run has its job's key for an id."""

    def __init__(self, place: str, job: Job) -> None:
        entity, _, project = place.rpartition("/")
        folder = Path(os.environ.get("WANDB_DIR") or "results")  # not the checkout, where a file would be a change
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            dir=folder,
            entity=entity or None,
            project=project,
            id=job.key,
            name=job.name,
            group=job.group,
            config=job.config,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True),
        )
        self.logged = self._run.step - 1

    def log(self, step: int, figures: dict[str, float]) -> None:
        """See Tracker."""
        self._run.log(figures, step=step)

    def conclude(self, figures: dict[str, float]) -> None:
        """See Tracker."""
        self._run.summary.update(figures)

    def close(self, finished: bool) -> None:
        """See Tracker."""
        self._run.finish(exit_code=0 if finished else 1)
