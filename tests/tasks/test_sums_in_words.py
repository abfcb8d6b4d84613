"""Sums in words: right answers, disjoint splits, examples that are no problems, the last number of a response."""

from __future__ import annotations

from typing import Any

import pytest

from alp.configuration import compose
from alp.errors import UserError
from alp.tasks.catalogue import load_task
from alp.tasks.sums_in_words import WORDS
from alp.tasks.task import SPLITS, Problem


def _task(*words: str) -> Any:
    return load_task(compose.load("prepare", ["task=sums_in_words", *words]).task)


def test_answers_are_those_of_the_words() -> None:
    task = _task()
    for problem in (problem for split in SPLITS for problem in task.problems(split)):
        words = problem.problem.removeprefix("the ").removesuffix(" is").split()
        a, b = [WORDS.index(word) for word in words if word in WORDS]
        operation = next(word for word in words if word in ("plus", "minus", "larger", "smaller"))
        assert (
            int(problem.answer)
            == {"plus": a + b, "minus": a - b, "larger": max(a, b), "smaller": min(a, b)}[operation]
            >= 0
        )


def test_a_pair_of_numbers_stands_in_one_split_of_its_operation() -> None:
    task = _task()
    place: dict[tuple[str, frozenset[str]], str] = {}
    for split in SPLITS:
        problems = task.problems(split)
        for problem in problems:
            operation, *numbers = problem.id.split()
            assert place.setdefault((operation, frozenset(numbers)), split) == split
            assert problem.problem not in {question for question, _ in task.examples(problem)}
    assert len(place) == 112 + 30 + 50 == sum(len(task.problems(split)) for split in SPLITS)
    assert _task("task.seed=1").problems("test") != task.problems("test")


def test_examples_are_solved_and_of_the_same_kind() -> None:
    task = _task("task.operations=[minus]", "task.train=20", "task.validation=10", "task.test=10")
    problem = task.problems("train")[0]
    assert task.examples(problem) == [("three minus two is", "1"), ("nine minus four is", "5")]
    assert all(
        task.grade(Problem(id="", problem=question, answer=answer, source=""), answer)
        for question, answer in task.examples(problem)
    )


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (" 12", 1.0),
        ("twelve.", 1.0),
        ("Seven plus five is Twelve", 1.0),
        ("7 + 5 = 012", 1.0),
        ("12 or 13", 0.0),
        ("112", 0.0),
        ("", 0.0),
        ("٣", 0.0),
        ("seventeen", 0.0),
    ],
)
def test_the_last_number_counts(response: str, reward: float) -> None:
    assert (
        _task().grade(Problem(id="plus 7 5", problem="seven plus five is", answer="12", source=""), response) == reward
    )


def test_more_problems_than_there_are_is_one_line() -> None:
    with pytest.raises(UserError, match="give only 53"):
        _task("task.operations=[plus]", "task.train=30", "task.validation=20", "task.test=10")
    with pytest.raises(UserError, match="names one twice"):
        _task("task.operations=[plus,plus]")
