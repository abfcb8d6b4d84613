"""``task=mathematics``: problems of any source, answers compared by :mod:`alp.tasks.grading`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

from alp.configuration.task_schema import MathematicsTask, Source
from alp.errors import UserError
from alp.reproducibility import stream
from alp.tasks import sources
from alp.tasks.custom import grader
from alp.tasks.grading import grade_all
from alp.tasks.sources import Step
from alp.tasks.task import Problem, Task, check_set, read_problems


class Mathematics(Task):
    """Merged training sources, problems held out of them, and named evaluation sets."""

    def __init__(self, config: MathematicsTask) -> None:
        self._config = config
        self.system, self.sets = config.system, config.sets
        self._grader = None if config.grader is None else grader(config.grader, "task.grader")
        self._names = _names(config.train, config.test)
        self._styles = dict(zip(self._names, (source.style for source in config.train), strict=True))
        self._styles |= {name: source.style for name, source in config.test.items()}
        self._loaded: dict[str, tuple[list[Problem], Step]] = {}

    def problems(self, split: str) -> list[Problem]:
        """A set's problems: from the prepared folder, or from the sources of that set alone."""
        check_set(split, self.sets)
        if self._config.data is not None:
            return read_problems(Path(self._config.data), split, answered=True)
        if split in ("train", "validation"):
            return self._training[split]
        return [problem for name in self._members(split) for problem in self._evaluation(name)[0]]

    def grade(self, problem: Problem, response: str) -> float:
        """1 when the final answer is the gold one; or what the task's own grader says."""
        return self.grade_all([problem], [response])[0]

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
        """Many at once: formulas are spread over processes."""
        if self._grader is not None:
            return [self._grader(problem, response) for problem, response in zip(problems, responses, strict=True)]
        rewards = [0.0] * len(problems)
        for style in dict.fromkeys(map(self._style, problems)):
            places = [place for place, problem in enumerate(problems) if self._style(problem) == style]
            verdicts = grade_all(
                [responses[place] for place in places],
                [problems[place].answer for place in places],
                style=style,
                prompts=[problems[place].problem for place in places],
            )
            for place, verdict in zip(places, verdicts, strict=True):
                rewards[place] = float(verdict)
        return rewards

    def steps(self, split: str) -> list[Step]:
        """What was read and left out on the way to a set."""
        if split in ("train", "validation"):
            return self._training_steps if split == "train" else []
        return [self._evaluation(name)[1] for name in self._members(split)]

    def _style(self, problem: Problem) -> str:
        return self._styles.get(problem.id.partition(":")[0], "math")

    def _members(self, split: str) -> list[str]:
        return [split] if split in self._config.test else list(self._config.test)

    def _evaluation(self, name: str) -> tuple[list[Problem], Step]:
        if name not in self._loaded:  # every problem of an evaluation set counts: no filter but its own, no merging
            self._loaded[name] = sources.load(self._config.test[name], name, None, f"task.test.{name}", evaluated=True)
        return self._loaded[name]

    @cached_property
    def _training(self) -> dict[str, list[Problem]]:
        parts = []
        self._training_steps: list[Step] = []
        for place, (name, source) in enumerate(zip(self._names, self._config.train, strict=True)):
            problems, step = sources.load(source, name, self._config.length, f"task.train.{place}")
            parts.append(problems)
            self._training_steps.append(step)
        problems, step = sources.merged(parts, self._config.keep)
        if parts and self._config.validation >= len(problems):
            raise UserError(
                f"task.validation: {self._config.validation} problems are to be held out of {len(problems)}, none is"
                " left to train on: hold fewer out, or add training problems"
            )
        held = set(
            stream("held out problems", self._config.seed)
            .permutation(len(problems))[: self._config.validation]
            .tolist()
        )
        self._training_steps.append(step | {"held_out": len(held)})
        return {
            "train": [problem for place, problem in enumerate(problems) if place not in held],
            "validation": [problem for place, problem in enumerate(problems) if place in held],
        }


def _names(train: Sequence[Source], taken: Collection[str]) -> list[str]:
    """A short name for each training source: its file's or dataset's, numbered where two agree or an evaluation set
    (``taken``) has it. No path: ids are the same anywhere, and each leads to one source's style."""
    found: list[str] = []
    for place, source in enumerate(train):
        name = (Path(source.place).stem if source.path else Path(source.place).name).replace(":", "_")
        while name in found or name in taken:
            name = f"{name}-{place}"
        found.append(name)
    return found
