"""Progress of long work: a live bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_LINE_SECONDS = 15.0


class Progress:
    """``with Progress("train grpo", 25) as p: p.update(3, "reward 0.4")``; writes to stderr only."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self._bar: Any = None
        self._last_line = 0.0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
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

    def update(self, done: int, note: str = "") -> None:
        """``done`` of the total are finished; ``note`` says where the work stands."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._last_line >= _LINE_SECONDS or done == self.total:
            self._last_line = time.monotonic()
            print(f"{self.title}: {done}/{self.total} {note}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
