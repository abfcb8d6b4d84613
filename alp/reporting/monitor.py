"""``alp monitor``: do the figures of running jobs stay where a baseline's were? Reads alone.

A step's band is the range of the baseline's runs at that step and its neighbours, widened about its middle; behind the
baseline's last step that step's band goes on. A figure is outside when it was so for several steps in a row, or at once
where it is no number.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alp import foreign
from alp.configuration.monitor_schema import MonitorConfig
from alp.errors import UserError
from alp.marks import MARKS, marks, read_mark
from alp.reporting.records import STEP

METRICS = "metrics.jsonl"
_SEED = re.compile(r"seed\d+")


def monitor(config: MonitorConfig) -> tuple[str, int]:
    """Print a line whenever a figure leaves its band or comes back, until the jobs end; returns a line for each job,
    and 1 where any figure left its band, else 0. Raises UserError where there is nothing to hold against each other."""
    if config.jobs is None or config.baseline is None:
        raise UserError("monitor: name both: jobs=<folder of a job, or of several> baseline=<the same of sound ones>")
    baseline = [Records(folder) for folder in job_folders(Path(config.baseline))]
    for run in baseline:
        run.read()
    if not any(key in line for run in baseline for line in run.steps.values() for key in config.keys):
        raise UserError(f"monitor: baseline: no {METRICS} below {config.baseline} has any of {', '.join(config.keys)}")
    followed: dict[Path, Followed] = {}
    alive = time.monotonic()
    while True:
        for folder in job_folders(Path(config.jobs)):
            if folder not in followed:
                followed[folder] = Followed(folder, Bands.of(folder, baseline, config))
                print(f"{name_of(folder)}: {followed[folder].bands.words}", flush=True)
        for job in followed.values():
            for line in job.look():
                print(line, flush=True)
        states = [state(folder, config.quiet) for folder in followed]
        if "running" in states:
            alive = time.monotonic()
        whole = states == ["finished"] and Path(config.jobs) in followed
        if config.once or whole or time.monotonic() - alive > config.quiet:
            break
        time.sleep(config.every)
    if not any(job.judged for job in followed.values()):
        raise UserError(f"monitor: jobs: no {METRICS} below {config.jobs} has a figure of the baseline's")
    code = int(any(job.left for job in followed.values()))
    return "\n".join(job.summary() for job in followed.values()), code


def job_folders(root: Path) -> list[Path]:
    """Folders of training jobs at ``root`` and below. Raises UserError where there is no such folder."""
    if not root.is_dir():
        raise UserError(f"monitor: no folder {root}")
    folders = sorted(path.parent for path in root.rglob(METRICS))
    return [folder for folder in folders if "pretrain" not in marks(folder)]


def name_of(folder: Path) -> str:
    """Of a job, as people know it."""
    folder = folder.resolve()
    return f"{folder.parent.name} {folder.name}" if _SEED.fullmatch(folder.name) else folder.name


def arm_of(folder: Path) -> str:
    """What jobs that differ in their seed alone share."""
    folder = folder.resolve()
    return folder.parent.name if _SEED.fullmatch(folder.name) else folder.name


def state(folder: Path, quiet: float) -> str:
    """``finished``, ``running`` or ``stopped``: what the job's mark and holder say; without a mark (another trainer's
    file) whether its file was written in the last ``quiet`` seconds."""
    mark = read_mark(folder, "train")
    if mark is None:
        return "running" if time.time() - (folder / METRICS).stat().st_mtime < quiet else "stopped"
    if mark["state"] == "finished":
        return "finished"
    try:
        holder = json.loads((folder / MARKS / "train" / "holder.json").read_text(encoding="utf-8"))
        if holder["host"] == socket.gethostname():
            os.kill(int(holder["process"]), 0)
    except PermissionError:  # somebody else's process
        return "running"
    except (OSError, ValueError, KeyError, TypeError):
        return "stopped"
    return "running"


@dataclass
class Records:
    """The steps of a growing ``metrics.jsonl``, each with its figures; the line being written is left for later."""

    folder: Path
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    _offset: int = 0

    def read(self) -> list[int]:
        """Take in what is new; returns the new steps. Raises UserError for a line that is none."""
        path = self.folder / METRICS
        try:
            if path.stat().st_size < self._offset:  # begun anew, or taken up from a checkpoint
                self._offset = 0
            with path.open("rb") as stream:
                stream.seek(self._offset)
                text = stream.read()
        except FileNotFoundError:
            return []
        text = text[: text.rfind(b"\n") + 1]
        self._offset += len(text)
        new = []
        for line in text.splitlines():
            try:
                figures = STEP.validate_python(foreign.parse_json(line.decode()))
                step = figures["step"]
            except (ValidationError, ValueError, KeyError, RecursionError) as error:
                raise UserError(f"monitor: {path}: no line of figures: {foreign.shortened(repr(line))}") from error
            if isinstance(step, int) and step not in self.steps:
                self.steps[step] = figures
                new.append(step)
        return new


@dataclass(frozen=True)
class Bands:
    """What the figures of a job are held against."""

    runs: list[Records]
    config: MonitorConfig
    words: str
    _last: dict[tuple[Path, str], int | None] = field(default_factory=dict)  # steps

    @classmethod
    def of(cls, folder: Path, baseline: list[Records], config: MonitorConfig) -> Bands:
        """The baseline's runs of the same arm, or all where it has none; never the job itself. Raises UserError."""
        others = [run for run in baseline if run.folder.resolve() != folder.resolve()]
        same = [run for run in others if arm_of(run.folder) == arm_of(folder)]
        runs = same or others
        if not runs or (len(runs) == 1 and not config.neighbours):
            what = "one run makes no band without neighbours" if runs else "it holds no other run"
            raise UserError(f"monitor: baseline: {name_of(folder)} cannot be held against {config.baseline}: {what}")
        arms = ", ".join(sorted({arm_of(run.folder) for run in runs}))
        return cls(runs, config, f"band: {config.widen:g} times the range of {len(runs)} runs of {arms}")

    def at(self, key: str, step: int) -> tuple[float, float] | None:
        """Lowest and highest value; None where no run of the baseline has the figure about that step."""
        values = []
        for run in self.runs:
            if (last := self._last_of(run, key)) is not None:
                middle, reach = min(step, last), self.config.neighbours
                about = (run.steps.get(near, {}).get(key) for near in range(middle - reach, middle + reach + 1))
                values += [value for value in about if value is not None]
        if not values:
            return None
        middle, half = (max(values) + min(values)) / 2, (max(values) - min(values)) / 2
        return middle - self.config.widen * half, middle + self.config.widen * half

    def _last_of(self, run: Records, key: str) -> int | None:
        """The last step at which a run has a figure."""
        if (run.folder, key) not in self._last:
            known = [step for step, figures in run.steps.items() if figures.get(key) is not None]
            self._last[run.folder, key] = max(known, default=None)
        return self._last[run.folder, key]


class Followed:
    """One job and what became of its figures."""

    def __init__(self, folder: Path, bands: Bands) -> None:
        self.bands, self._records = bands, Records(folder)
        self.judged = 0  # values
        self.left: set[str] = set()  # keys that were outside at any time
        self._outside: dict[str, int] = {}  # how many steps in a row

    def look(self) -> list[str]:
        """A line for every figure that left its band since, or came back."""
        lines = []
        for step in self._records.read():
            for key in self.bands.config.keys:
                if key in self._records.steps[step]:
                    lines += self._judge(step, key, self._records.steps[step][key])
        return lines

    def _judge(self, step: int, key: str, value: float | None) -> list[str]:
        band, where = self.bands.at(key, step), f"{name_of(self._records.folder)} step {step}: {key}"
        if band is None:
            return []
        self.judged += 1
        low, high = band
        needed, before = self.bands.config.in_a_row, self._outside.get(key, 0)
        if value is not None and low <= value <= high:
            self._outside[key] = 0
            return [f"{where} {value:.4g} is back in the band"] if before >= needed else []
        self._outside[key] = before + 1 if value is not None else max(before + 1, needed)
        if before >= needed or self._outside[key] < needed:
            return []
        self.left.add(key)
        if value is None:
            return [f"{where} is no number"]
        side = "above" if value > high else "below"
        return [f"{where} {value:.4g} is {side} the band, {low:.4g} to {high:.4g}, for {self._outside[key]} steps"]

    def summary(self) -> str:
        """The job in one line."""
        steps = self._records.steps
        silent = [key for key in self.bands.config.keys if not any(key in figures for figures in steps.values())]
        said = f"left its band: {', '.join(sorted(self.left))}" if self.left else "inside the band"
        said = said if self.judged else "nothing to compare"
        unsaid = f"; not logged: {', '.join(silent)}" if silent else ""
        return f"{name_of(self._records.folder)}: {max(steps, default=0)} steps, {said}{unsaid}"
