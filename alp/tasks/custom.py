"""Tasks and graders of the user's own, by dotted path (docs/tasks.md, examples/own_task.py). Whatever they raise is one
line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alp import own_code
from alp.configuration.fields import NAME_RULE, is_name
from alp.configuration.task_schema import SPLITS, CustomTask
from alp.errors import Interrupted, UserError, nearest
from alp.foreign import reason
from alp.tasks.environment import Environment
from alp.tasks.task import Problem, Task, check_problems, check_set, read_problems


@contextmanager
def foreign_code(what: str) -> Iterator[None]:
    """Around a call of the user's code: what it raises becomes a UserError of one line; leaving the process is no way
    out either."""
    try:
        yield
    except (UserError, Interrupted):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {reason(error)}") from error


def module(dotted: str, key: str) -> Any:
    """The module of that name, looked for where Python looks and then in the current folder. Raises UserError naming
    ``key``."""
    try:
        return own_code.load(dotted)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except ImportError as error:
        raise UserError(
            f"{key}: cannot import {dotted}: {error} (looked in {Path.cwd()} and on the Python path)"
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}: importing {dotted} fails: {reason(error)}") from error


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


def grader(dotted: str, key: str) -> Callable[[Problem, str], Any]:
    """A function (response, answer) -> reward as one of problem and response; what it raises names the problem."""
    function = named(dotted, key)

    def grade(problem: Problem, response: str) -> Any:
        with foreign_code(f"{key}: {dotted} fails at problem '{problem.id}'"):
            return function(response, problem.answer)

    return grade


def load(config: CustomTask) -> Task:
    """The user's task. With ``task.data`` its problems come from the prepared files, as everywhere."""
    if config.module is None:
        raise UserError("task.module: name your module: task=custom task.module=my_package.my_module (docs/tasks.md)")
    make = named(f"{config.module}.Task", "task.module")
    try:
        with foreign_code(f"task.module: {config.module}.Task cannot be made"):
            task = make(config.options)
    except UserError as error:
        if isinstance(error.__cause__, TypeError):
            raise UserError(
                f"task.module: {config.module}.Task cannot be made with task.options: {error.__cause__}"
            ) from error
        raise
    if not isinstance(task, Task):
        raise UserError(f"task.module: {config.module}.Task must be a subclass of alp.tasks.task.Task")
    return _Own(task, config.module, None if config.data is None else Path(config.data))


class _Own(Task):
    """The user's task behind a guard; with a folder its problems are those that were prepared there."""

    def __init__(self, task: Task, place: str, folder: Path | None) -> None:
        self._task, self._place, self._folder = task, f"task.module: {place}", folder
        self.system, self.sets, self.environment = task.system, task.sets, task.environment
        if self.system is not None and not isinstance(self.system, str):
            raise UserError(f"{self._place}: system must be a text or None, this is a {type(self.system).__name__}")
        if self.environment is not None and not isinstance(self.environment, Environment):
            raise UserError(f"{self._place}: environment must be an alp.tasks.environment.Environment or None")
        if not isinstance(self.sets, list | tuple) or not all(
            isinstance(name, str) and is_name(name) for name in self.sets
        ):
            raise UserError(f"{self._place}: sets must be a list of names ({NAME_RULE})")
        if missing := [name for name in SPLITS if name not in self.sets]:
            raise UserError(f"{self._place}: sets has no '{missing[0]}'; train, validation and test are always there")

    def problems(self, split: str) -> list[Problem]:
        check_set(split, self.sets)
        if self._folder is not None:
            return read_problems(self._folder, split)
        with foreign_code(f"{self._place}: problems('{split}') fails"):
            found = self._task.problems(split)
        return check_problems(found, f"{self._place}: problems('{split}')")

    def prompt(self, problem: Problem) -> str:
        with foreign_code(f"{self._place}: prompt fails at problem '{problem.id}'"):
            found = self._task.prompt(problem)
        if not isinstance(found, str):
            raise UserError(
                f"{self._place}: prompt of problem '{problem.id}' must be a text, this is a {type(found).__name__}"
            )
        return found

    def examples(self, problem: Problem) -> list[tuple[str, str]]:
        with foreign_code(f"{self._place}: examples fails at problem '{problem.id}'"):
            found = [(asked, answer) for asked, answer in self._task.examples(problem)]
        if not all(isinstance(text, str) for pair in found for text in pair):
            raise UserError(f"{self._place}: examples of problem '{problem.id}' must be pairs of texts")
        return found

    def grade(self, problem: Problem, response: str) -> float:
        with foreign_code(f"{self._place}: grade fails at problem '{problem.id}'"):
            return self._task.grade(problem, response)

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
        if type(self._task).grade_all is Task.grade_all:
            return super().grade_all(problems, responses)
        with foreign_code(f"{self._place}: grade_all fails"):
            return self._task.grade_all(problems, responses)

    def steps(self, split: str) -> list[dict[str, object]]:
        with foreign_code(f"{self._place}: steps('{split}') fails"):
            return self._task.steps(split)
