"""What a job writes line by line: ``metrics.jsonl``, ``updates.jsonl``, ``trajectories.jsonl``, ``timings.jsonl``
(docs/results.md)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from alp.reproducibility import json_line, write_text

RECORDS = ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "timings.jsonl")


class Records:
    """The files of a job's folder and their whole text: what was added line by line can be written again, complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.texts = dict.fromkeys(RECORDS, "")

    def append(self, name: str, record: dict[str, Any]) -> None:
        """One line. A figure that is not finite is missing (null): JSON has no word for it, and a job must not die of
        a diagnostic."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        line = json_line(finite)
        self.texts[name] += line
        with (self.folder / name).open("a", encoding="utf-8") as stream:
            stream.write(line)

    def write(self) -> None:
        """Every file as a whole, whatever became of the lines on the disk."""
        for name, text in self.texts.items():
            write_text(self.folder / name, text)
