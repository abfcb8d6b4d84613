"""What the files of a job say, told to a tracker (alp/reporting/trackers.py)."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alp.configuration.grid import Grid
from alp.foreign import read_yaml
from alp.nested import leaves
from alp.reporting import tracking
from alp.reporting.trackers import Job, Tracker, asked, opened

LOG = logging.getLogger("alp.reporting.tracking")
BEHIND = "%s is behind the files of %s, everything else goes on: %s"


def track(grid: Grid, results: Path, *, replace: bool = False) -> Path:
    """:func:`alp.reporting.tracking.track`, and every run of the grid in the trackers that are asked for too. Raises
    UserError."""
    uris = asked()
    path = tracking.track(grid, results, replace=replace)
    for uri in uris:
        for arm in grid.arms:
            for seed in grid.seeds:
                folder = grid.run_dir(results, arm.name, seed)
                Mirror(folder, uri=uri, **tracking.describe(folder)).conclude()
    return path


def job_of(run_dir: Path, identity: tracking.Identity) -> Job:
    """The job of a folder. Of equal trainings in two grids each has a run."""
    tags = identity["tags"]
    parts = (identity["experiment"], identity["name"], tags.get("alp.identity", tags["config_hash"]))
    return Job(
        name=identity["name"],
        group=identity["experiment"],
        key=hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16],
        config=dict(leaves(read_yaml("run", run_dir / "config.yaml"))) | {"commit": tags.get("commit")},
    )


class Mirror:
    """Keeps a run current during training: the ways of :class:`alp.reporting.tracking.Live`."""

    def __init__(
        self,
        run_dir: Path,
        *,
        uri: str,
        experiment: str,
        name: str,
        tags: dict[str, str],
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_dir, self._uri = run_dir, uri
        self._job = job_of(run_dir, tracking.Identity(experiment=experiment, name=name, tags=tags))
        self._interval, self._clock = interval, clock
        self._tracker: Tracker | None = None
        self._due, self._warned = -math.inf, False
        self.step()

    def step(self) -> None:
        """Log what is new, unless the last call began less than ``interval`` seconds ago."""
        if self._clock() >= self._due:
            self._due = self._clock() + self._interval
            self._attempt()

    def close(self, finished: bool) -> None:
        """Make the last call, with how the job ended."""
        self._attempt(lambda tracker: tracker.close(finished))

    def conclude(self) -> bool:
        """Everything that the folder of a finished training holds, evaluations too; returns whether that worked."""

        def last(tracker: Tracker) -> None:
            tracker.conclude(finite(tracking.evaluated(self._run_dir / "evaluation")))
            tracker.close(True)

        return self._attempt(last)

    def _attempt(self, then: Callable[[Tracker], None] | None = None) -> bool:
        try:
            self._tracker = self._tracker or opened(self._uri, self._job)
            for record in tracking.records(self._run_dir / "metrics.jsonl"):
                if record["step"] > self._tracker.logged:
                    self._tracker.log(record["step"], finite(record))
                    self._tracker.logged = record["step"]
            if then is not None:
                then(self._tracker)
        except Exception as error:  # whatever a package, a network or the disk may raise: results never depend on it
            if not self._warned:
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                LOG.warning(BEHIND, self._uri.partition(":")[0], self._run_dir, said)
            self._warned = True
            return False
        self._warned = False
        return True


def finite(record: dict[str, Any]) -> dict[str, float]:
    """Figures of a line of ``metrics.jsonl`` or of an evaluation: null, NaN and infinities are left out."""
    plain = {key: value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
    return {key: float(value) for key, value in plain.items() if math.isfinite(value) and not isinstance(value, bool)}
