"""Tasks by name, and their problems as files (``alp prepare``). A new task is a module beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alp.reproducibility import json_line, sha256_file, write_json, write_text
from alp.schema_tasks import Task as TaskConfig
from alp.tasks.arithmetic import Arithmetic
from alp.tasks.sums_in_words import SumsInWords
from alp.tasks.task import SPLITS, Task, check_disjoint

TASKS: dict[str, Callable[[Any], Task]] = {"arithmetic": Arithmetic, "sums_in_words": SumsInWords}


def load_task(config: TaskConfig) -> Task:
    """The task of a configuration; its problems are read from ``config.data`` when that is set."""
    return TASKS[config.name](config)


def prepare(config: TaskConfig, folder: Path) -> dict[str, dict[str, object]]:
    """Write every split as JSONL and ``summary.json`` with counts and content hashes; refuse splits that share a problem."""
    task = load_task(config)
    splits = {split: task.problems(split) for split in SPLITS}
    check_disjoint(splits)
    summary: dict[str, dict[str, object]] = {}
    for split, problems in splits.items():
        path = folder / f"{split}.jsonl"
        write_text(path, "".join(json_line(asdict(problem)) for problem in problems))
        summary[split] = {"problems": len(problems), "sha256": sha256_file(path)}
    write_json(folder / "summary.json", summary)
    return summary
