"""A task of one's own: which of two words comes first in the dictionary.

    alp prepare task=custom task.module=examples.own_task 'task.options={words: 200}' run.dir=results/own_task

The module defines a class ``Task``, made with ``task.options``. It says what the problems are and what a response is
worth; everything else (prompts in batches, training, evaluation, the leakage report) is the same as for every other
task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alp.reproducibility import stream
from alp.tasks.task import SPLITS, Problem
from alp.tasks.task import Task as Base


class Task(Base):
    """Pairs of made-up words, the same from the same options. No pair stands in two splits."""

    system = "Answer with one of the two words."

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._count = int(options.get("words", 100))

    def problems(self, split: str) -> list[Problem]:
        random = stream("own task", 0)
        letters = random.integers(ord("a"), ord("z") + 1, size=(self._count, 2, 5)).tolist()
        pairs = dict.fromkeys(
            ("".join(map(chr, first)), "".join(map(chr, second))) for first, second in letters if first != second
        )
        problems = [
            Problem(f"{a}-{b}", f"Which comes first in a dictionary, {a} or {b}?", min(a, b), "own") for a, b in pairs
        ]
        return problems[SPLITS.index(split) :: len(SPLITS)]

    def grade(self, problem: Problem, response: str) -> float:
        """1 for the right word as the last one, half for any answer in one word."""
        words = response.strip(" .\n").split()
        if words[-1:] == [problem.answer]:
            return 1.0
        return 0.5 if len(words) == 1 else 0.0


def halves(response: str, answer: str) -> float:
    """A reward for another task's problems (task=mathematics task.grader=examples.own_task.halves): half a point for
    mentioning it."""
    return 1.0 if response.strip().endswith(answer) else 0.5 * (answer in response)
