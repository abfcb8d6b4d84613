"""Two numbers below ten in words: a task that a small pretrained language model solves now and then, with answers of a
few tokens.

    seven plus five is              12
    nine minus four is              5
    the larger of two and six is    6
    the smaller of two and six is   2

Two solved examples of the same kind stand before each question; they are no problems themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations_with_replacement

from alp.configuration.task_schema import SumsInWordsTask
from alp.reproducibility import stream
from alp.tasks.task import Generated, Problem

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
_NUMBER = re.compile(rf"[0-9]+|\b(?:{'|'.join(WORDS)})\b")
_EXAMPLES = ((2, 3), (9, 4))
_OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "plus": ("{} plus {} is", lambda a, b: a + b),
    "minus": ("{} minus {} is", lambda a, b: a - b),
    "larger": ("the larger of {} and {} is", max),
    "smaller": ("the smaller of {} and {} is", min),
}


class SumsInWords(Generated[SumsInWordsTask]):
    """Every unordered pair of numbers stands in at most one split of each operation."""

    system = "Answer with a number."

    def __init__(self, config: SumsInWordsTask) -> None:
        self._config = config

    def _all(self) -> list[Problem]:
        return _all(self._config)

    def examples(self, problem: Problem) -> list[tuple[str, str]]:
        """Solved questions of the same kind, as (question, answer)."""
        operation = problem.id.split()[0]
        return [
            (example.problem, example.answer)
            for example in (_problem(operation, *_ordered(operation, *pair)) for pair in _EXAMPLES)
        ]

    def grade(self, problem: Problem, response: str) -> float:
        """1 when the last number of the response, in digits or in words, is the answer."""
        found = _NUMBER.findall(response.lower())
        return float(bool(found) and _value(found[-1]) == problem.answer)


def _value(number: str) -> str:
    return str(WORDS.index(number)) if number in WORDS else number.lstrip("0") or "0"


def _problem(operation: str, a: int, b: int) -> Problem:
    text, answer = _OPERATIONS[operation]
    return Problem(
        id=f"{operation} {a} {b}",
        problem=text.format(WORDS[a], WORDS[b]),
        answer=str(answer(a, b)),
        source="sums_in_words",
    )


def _ordered(operation: str, a: int, b: int) -> tuple[int, int]:
    return (max(a, b), min(a, b)) if operation == "minus" else (a, b)


def _all(config: SumsInWordsTask) -> list[Problem]:
    """Every problem of the chosen operations, shuffled, each in a random order of its two numbers (the larger first in
    differences)."""
    random = stream("sums in words", config.seed)
    known = {frozenset(pair) for pair in _EXAMPLES}
    found = []
    for operation in sorted(config.operations):
        for a, b in combinations_with_replacement(range(10), 2):
            swap = random.random() < 0.5
            if {a, b} not in known and (a != b or operation in ("plus", "minus")):
                found.append(_problem(operation, *_ordered(operation, *((b, a) if swap else (a, b)))))
    return [found[place] for place in random.permutation(len(found))]
