"""Tasks and graders of the user's own, by dotted path (docs/tasks.md, examples/own_task.py)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alp.errors import UserError, nearest
from alp.schema_tasks import CustomTask
from alp.tasks.task import Problem, Task, read_problems


def module(dotted: str, key: str) -> Any:
    """The module of that name, looked for where Python looks and in the current folder. Raises UserError naming ``key``."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(dotted)
    except ImportError as error:
        raise UserError(f"{key}: cannot import {dotted}: {error} (looked in {Path.cwd()} and on the Python path)") from None
    except Exception as error:
        raise UserError(f"{key}: importing {dotted} fails: {type(error).__name__}: {error}") from None


def named(dotted: str, key: str) -> Callable[..., Any]:
    """The function or class at a dotted path."""
    place, _, name = dotted.rpartition(".")
    if not place:
        raise UserError(f"{key}: '{dotted}' is no dotted path to a function: write my_package.my_module.my_function")
    found = module(place, key)
    if not callable(getattr(found, name, None)):
        known = [each for each in vars(found) if not each.startswith("_")]
        raise UserError(f"{key}: {place} has no function '{name}'{nearest(name, known)}")
    return getattr(found, name)  # type: ignore[no-any-return]


def load(config: CustomTask) -> Task:
    """The user's task. With ``task.data`` its problems come from the prepared files, as everywhere."""
    if config.module is None:
        raise UserError("task.module: name your module: task=custom task.module=my_package.my_module (docs/tasks.md)")
    make = named(f"{config.module}.Task", "task.module")
    try:
        task = make(config.options)
    except TypeError as error:
        raise UserError(f"task.module: {config.module}.Task cannot be made with task.options: {error}") from None
    if not isinstance(task, Task):
        raise UserError(f"task.module: {config.module}.Task must be a subclass of alp.tasks.task.Task")
    return task if config.data is None else _Prepared(task, Path(config.data))


class _Prepared(Task):
    """A task whose problems were written before."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._task, self._folder = task, folder
        self.system, self.sets = task.system, task.sets
        self.prompt, self.grade, self.grade_all = task.prompt, task.grade, task.grade_all  # type: ignore[method-assign]

    def problems(self, split: str) -> list[Problem]:
        return read_problems(self._folder, split)

    def grade(self, problem: Problem, response: str) -> float:
        return self._task.grade(problem, response)
