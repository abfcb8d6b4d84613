"""Progress of long work: a live bar in a terminal, a line now and then in a log, one at the end."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from types import TracebackType
from typing import Any

_LINE_SECONDS = 15.0


class Progress:
    """``with Progress("train grpo seed 0", 25, "step") as p: p.update(3, "reward 0.4")``; writes to stderr only.

    In a log: ``train grpo seed 0: step 3/25, reward 0.4, 2 min left``, and at the end ``train grpo seed 0: done, 25
    steps in 3 min, reward 0.7``. Times are of this process, nobody else's.
    """

    def __init__(self, title: str, total: int, unit: str = "") -> None:
        self.title, self.total, self.unit = title, total, unit
        self._bar: Any = None
        self._last_line = float("-inf")
        self._note = ""
        self._started = time.monotonic()
        self._kept, self._since = 0, self._started  # done before, and since when the rest is

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and find_spec("rich"):  # which the small distribution does not ask for
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def keep(self, done: int) -> None:
        """``done`` of the total were there already: they say nothing of the time that the rest takes."""
        self._kept, self._since = done, time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """``done`` of the total are finished; ``note`` says where the work stands."""
        self._note = note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif done < self.total and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            self._say(f"{self.unit} {done}/{self.total}".strip(), note, self._left(done))

    def _left(self, done: int) -> str:
        new = done - self._kept
        return f"{span((time.monotonic() - self._since) / new * (self.total - done))} left" if new > 0 else ""

    def _say(self, *parts: str) -> None:
        print(f"{self.title}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:  # what ends a job otherwise has a line of its own
            count = f"{self.total} {self.unit}{'s' if self.unit and self.total != 1 else ''}".rstrip()
            self._say("done", f"{count} in {span(time.monotonic() - self._started)}", self._note)


def span(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
