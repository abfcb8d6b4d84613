"""Problems and how they are graded. Tasks know prompts and answers; they know no model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from alp.configuration.task_schema import SPLITS, ArithmeticTask, CalculatorTask, ReasoningGymTask, SumsInWordsTask
from alp.errors import UserError, nearest
from alp.foreign import is_file, read_lines, shown
from alp.reproducibility import json_line, stream

if TYPE_CHECKING:
    from numpy.random import Generator

    from alp.tasks.environment import Environment

__all__ = [
    "SPLITS",
    "Generated",
    "Problem",
    "Task",
    "Teachable",
    "check_disjoint",
    "check_problems",
    "check_set",
    "content_hash",
    "is_blank",
    "read_problems",
    "select",
]

Config = TypeVar("Config", ArithmeticTask, CalculatorTask, SumsInWordsTask, ReasoningGymTask)


@dataclass(frozen=True)
class Problem:
    """One problem: ``problem`` is what is asked, ``answer`` the gold answer, ``source`` where it comes from."""

    id: str
    problem: str
    answer: str
    source: str


def content_hash(problems: Sequence[Problem]) -> str:
    """SHA-256 over everything that problems say, in their order."""
    return hashlib.sha256("".join(json_line(asdict(problem)) for problem in problems).encode()).hexdigest()


class Task(ABC):
    """What training and evaluation need of a task. ``system`` is what a chat model is told before the prompt, if
    anything; ``environment`` what answers it between turns (docs/tools.md), None where one response is all."""

    system: str | None = None
    sets: Sequence[str] = SPLITS
    environment: Environment | None = None

    @abstractmethod
    def problems(self, split: str) -> list[Problem]:
        """All problems of a set, always in the same order."""

    def prompt(self, problem: Problem) -> str:
        """What a user asks, or the text to be continued; chat markup is the model's business."""
        return problem.problem

    def examples(self, problem: Problem) -> list[tuple[str, str]]:
        """Solved problems that stand before this one, as (question, answer)."""
        del problem
        return []

    @abstractmethod
    def grade(self, problem: Problem, response: str) -> float:
        """Reward of a response's text in [0, 1]; never raises."""

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
        """``grade`` of many at once, in order."""
        return [self.grade(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def steps(self, split: str) -> list[dict[str, object]]:
        """How a set came about: what was read, left out and merged, with counts. Nothing where problems are simply
        made."""
        del split
        return []


class Teachable(Protocol):
    """What the embedded model is taught of a task. ``pieces``: the texts that are its tokens."""

    pieces: Sequence[str]

    def problems(self, split: str) -> list[Problem]:
        """See Task."""
        ...

    def prompt(self, problem: Problem) -> str:
        """See Task."""
        ...

    def demonstration(
        self, problem: Problem, random: Generator, *, worked: float, careless_right: float
    ) -> list[tuple[str, bool]]:
        """What follows a prompt, as (text, whether the model writes it): careful with probability ``worked``, else
        careless, and then right with ``careless_right``."""
        ...


class Generated(Task, Generic[Config]):
    """A task that makes its problems itself; splits are consecutive stretches of them, as long as the configuration
    says."""

    _config: Config

    @abstractmethod
    def _all(self) -> Sequence[Problem]:
        """The problems of all splits end to end, always in the same order; perhaps more behind them."""

    def problems(self, split: str) -> list[Problem]:
        """All problems of a split, read from the prepared folder or generated from the seed: the same ones."""
        check_set(split, self.sets)
        if self._config.data is not None:
            return read_problems(Path(self._config.data), split)
        sizes = [getattr(self._config, name) for name in SPLITS]
        start = sum(sizes[: SPLITS.index(split)])
        return list(self._all()[start : start + sizes[SPLITS.index(split)]])


def check_set(name: str, known: Sequence[str]) -> None:
    """Raise UserError for a set that the task does not have."""
    if name not in known:
        raise UserError(f"the task has no set '{name}'{nearest(name, known)}")


def problem_file(folder: Path, split: str) -> Path:
    """The file of a prepared split. Raises UserError where there is none."""
    path = folder / f"{split}.jsonl"
    if not is_file(path):
        raise UserError(f"task.data: no {path}; build it with: alp prepare run.dir={folder}")
    return path


def read_problems(folder: Path, split: str, *, answered: bool = False) -> list[Problem]:
    """Problems of a prepared split; with ``answered`` none may lack its answer. Raises UserError naming the file and
    what is wrong with it."""
    path = problem_file(folder, split)
    problems = []
    for number, row in read_lines("task.data", path):
        faults = [f"'{name}' is missing" for name in Problem.__annotations__ if name not in row]
        faults += [f"'{name}' is none of them" for name in row if name not in Problem.__annotations__]
        faults += [f"'{name}' is {shown(value)}" for name, value in row.items() if not isinstance(value, str)]
        if faults:
            raise UserError(
                f"task.data: {path}, line {number}: fields id, problem, answer, source expected, each a text;"
                f" {', '.join(faults)}"
            )
        if answered and is_blank(row["answer"]):
            raise UserError(f"task.data: {path}, line {number}: 'answer' is empty: write one, or delete the line")
        problems.append(Problem(**row))
    if not problems:
        raise UserError(f"task.data: {path} holds no problem")
    return check_problems(problems, f"task.data: {path}")


def is_blank(text: str) -> bool:
    """Whether nothing in a text can be seen: spaces, breaks and control characters alone."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def check_problems(problems: object, where: str) -> list[Problem]:
    """A set's problems as a list. Raises UserError, beginning with ``where``, unless they are Problems of texts with an
    id each."""
    if not isinstance(problems, list | tuple):
        raise UserError(f"{where}: a list of problems is needed, this is a {type(problems).__name__}")
    seen: set[str] = set()
    for place, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            raise UserError(f"{where}: number {place} is a {type(problem).__name__}, not an alp.tasks.task.Problem")
        for name, value in asdict(problem).items():
            if not isinstance(value, str):
                raise UserError(f"{where}: number {place}: {name} must be a text, this is a {type(value).__name__}")
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise UserError(f"{where}: number {place}: {name} holds half a character that is no text")
        if not problem.id or problem.id in seen:
            raise UserError(
                f"{where}: number {place}: its id '{problem.id[:80]}' is {'used twice' if problem.id else 'empty'}"
            )
        seen.add(problem.id)
    return list(problems)


def check_disjoint(splits: dict[str, list[Problem]]) -> None:
    """Raise ValueError when a problem stands twice, in one split or in two."""
    seen: dict[str, str] = {}
    for split, problems in splits.items():
        for problem in problems:
            if problem.id in seen:
                raise ValueError(f"problem {problem.id} stands in {seen[problem.id]} and in {split}")
            seen[problem.id] = split


def select(items: Sequence[Problem], count: int, seed: int, step: int) -> list[Problem]:
    """``count`` problems for rollout batch ``step`` (from 0): consecutive slices of a fresh shuffle per pass over the
    data.

    A pure function of its arguments, so that a resumed job sees what an undisturbed one saw.
    """
    places = [divmod(place, len(items)) for place in range(step * count, (step + 1) * count)]
    orders = {turn: _shuffle(seed, turn, len(items)) for turn in {turn for turn, _ in places}}
    return [items[orders[turn][offset]] for turn, offset in places]


def _shuffle(seed: int, turn: int, size: int) -> list[int]:
    return stream("order of problems", seed, turn).permutation(size).tolist()  # type: ignore[no-any-return]
