"""What the jobs of a grid say of themselves (alp/progress.py), for the grid's own log."""

from __future__ import annotations

import re
from pathlib import Path

_JOB_LINE = re.compile(r"(train|evaluate|pretrain) [^:]+: (\w+ \d+/\d+|done)\b.*")


class JobLines:
    """What the jobs of a grid have said of themselves in their logs since it was last asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[int, str]] = {}  # when it was written, and its last such line
        self.news()

    def news(self) -> list[str]:
        """The newest line of each job that has a new one: where it stands, or that it is done."""
        said = []
        for path in sorted(self._folder.rglob("*.log")):
            try:
                written = path.stat().st_mtime_ns
                before = self._read.get(path, (0, ""))
                if written == before[0]:
                    continue
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:  # a job that starts anew takes its log away
                continue
            last = next((line for line in reversed(lines) if _JOB_LINE.fullmatch(line)), "")
            self._read[path] = (written, last)
            if last and last != before[1]:
                said.append(last)
        return said
