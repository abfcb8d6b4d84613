"""What building a grid will cost, said before it starts: its training jobs in steps and updates, and how long those
took where runs of the same task and model were timed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from alp.configuration.grid import Grid
from alp.reporting.arms import job_of

_RUNS = 50  # timed ones to read: a mean needs no more


def cost(grid: Grid, arms: Iterable[str], results: str | Path) -> str:
    """One line about training jobs of ``arms``, one entry a job."""
    jobs = [job_of(grid, grid.arm(name)).trainer for name in arms]
    if not jobs:
        return ""
    steps = sum(trainer.steps for trainer in jobs)
    responses = sum(trainer.steps * trainer.prompts * trainer.samples for trainer in jobs)
    updates = sum(trainer.steps * trainer.updates_per_batch for trainer in jobs)
    words = f"{len(jobs)} training jobs: {steps:,} steps, {responses:,} responses, {updates:,} updates"
    timed = _timed(grid, Path(results))
    if not timed:
        return f"{words}; no run of this task and model has been timed in {results}"
    seconds = sum(timed) / len(timed) * steps
    return f"{words}; about {seconds / 60:,.0f} minutes of one core, by {len(timed):,} steps timed in {results}"


def _timed(grid: Grid, results: Path) -> list[float]:
    """Seconds of steps of any grid's runs of the same task and model, as they were measured; damaged files give
    none."""
    runs = sorted(results.glob(f"*/{grid.task}/{grid.model}/*/seed*/timings.jsonl"))
    seconds = []
    for path in islice(runs, _RUNS):
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            seconds += [sum(value for key, value in line.items() if key.startswith("seconds/")) for line in lines]
        except (OSError, ValueError, AttributeError, TypeError):
            continue
    return seconds
