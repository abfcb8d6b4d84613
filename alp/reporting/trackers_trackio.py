"""Trackio (alp/reporting/trackers.py). Its own variables hold: ``TRACKIO_DIR``, ``TRACKIO_SPACE_ID``."""

from __future__ import annotations

import trackio
from trackio.sqlite_storage import SQLiteStorage

from alp.reporting.trackers import Job


class Trackio:
    """``place`` is a project. Trackio knows a run by its name."""

    def __init__(self, place: str, job: Job) -> None:
        self._run = trackio.init(
            place,
            name=job.alone,
            group=job.group,
            config=job.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._place = place
        self.logged = self._run._next_step - 1  # known of a run on a server too; nothing public says it

    def log(self, step: int, figures: dict[str, float]) -> None:
        """See Tracker."""
        self._run.log(figures, step=step)

    def conclude(self, figures: dict[str, float]) -> None:
        """See Tracker. They stand at the last step; of a run on a server nothing says that they are there, and the same
        values come once more."""
        known: dict[str, object] = {}
        for line in SQLiteStorage.get_logs(self._place, self._run.name, run_id=self._run.id):
            known |= line
        if new := {key: value for key, value in figures.items() if known.get(key) != value}:
            self._run.log(new, step=max(self.logged, 0))

    def close(self, finished: bool) -> None:  # noqa: ARG002 - Trackio has no word for it
        """See Tracker."""
        self._run.finish()
