"""The embedded task: right by construction, disjoint, the same from a seed and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import default_rng

from alp.configuration import compose
from alp.configuration.task_schema import Task as TaskConfig
from alp.errors import UserError
from alp.tasks.arithmetic import ALPHABET, Arithmetic, worked_solution
from alp.tasks.prepare import prepare
from alp.tasks.task import SPLITS, Problem, check_disjoint, read_problems, select


def _config(*words: str) -> TaskConfig:
    loaded: TaskConfig = compose.load("prepare", list(words)).task
    return loaded


def _problem(a: int, b: int) -> Problem:
    return Problem(f"{a}+{b}", f"{a}+{b}=", str(a + b), "test")


TASK = Arithmetic(_config())
NUMBERS = st.integers(0, 9999)


@given(NUMBERS, NUMBERS)
def test_worked_solutions_are_right_line_by_line(a: int, b: int) -> None:
    text = worked_solution(_problem(a, b))
    assert TASK.grade(_problem(a, b), text) == 1.0
    assert set(text) <= set(ALPHABET)
    *columns, answer = text.split(";")
    assert answer == f"#{a + b}"
    for column in columns:
        left, right = column.split("=")
        assert sum(map(int, left.split("+"))) == int(right)


@given(NUMBERS, NUMBERS, st.text(alphabet=ALPHABET, max_size=12))
def test_grade_is_exact(a: int, b: int, text: str) -> None:
    expected = "#" in text and text[text.rindex("#") + 1 :] == str(a + b)
    assert TASK.grade(_problem(a, b), text) == float(expected)


def test_grade_never_raises() -> None:
    for text in ("", "#", "##", "\0", "9" * 10_000, "#" + "½"):
        assert TASK.grade(_problem(1, 2), text) == 0.0


def test_demonstrations_have_the_stated_shares() -> None:
    random, problem, count = default_rng(0), _problem(47, 85), 4000
    parts = [TASK.demonstration(problem, random, worked=0.4, careless_right=0.15) for _ in range(count)]
    assert all(written for ((_, written),) in parts)
    texts = [text for ((text, _),) in parts]
    worked = [text for text in texts if "=" in text]
    careless = [text for text in texts if "=" not in text]
    right = [text for text in careless if TASK.grade(problem, text)]
    # Five standard deviations of a binomial: false alarms below 1e-6.
    assert abs(len(worked) / count - 0.4) < 5 * (0.4 * 0.6 / count) ** 0.5
    assert abs(len(right) / len(careless) - 0.15) < 5 * (0.15 * 0.85 / len(careless)) ** 0.5
    assert all(TASK.grade(problem, text) for text in worked)


def test_splits_are_disjoint_whatever_the_order_of_summands() -> None:
    pairs = [frozenset(problem.id.split("+")) for split in SPLITS for problem in TASK.problems(split)]
    assert len(pairs) == len(set(pairs)) == 4800


def test_the_longest_solution_is_as_long_as_stated() -> None:
    for digits in (1, 2, 3):
        nines = 10**digits - 1
        stated = _config(f"task.digits={digits}", "task.train=30", "task.validation=6", "task.test=8").longest_solution
        assert len(worked_solution(_problem(nines, nines))) + 1 == stated


def test_the_tokenizer_knows_the_alphabet_and_nothing_else() -> None:
    from alp.models import character_tokenizer

    tokenizer = character_tokenizer(ALPHABET)
    text = "47+85=7+5=12;#132"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    with pytest.raises(Exception, match="UNK"):
        tokenizer.encode("12-3=")


def test_a_shared_problem_is_found() -> None:
    with pytest.raises(ValueError, match=r"problem 1\+2 stands in train and in test"):
        check_disjoint({"train": [_problem(1, 2)], "test": [_problem(1, 2)]})


def test_prepared_files_give_the_same_problems(tmp_path: Path) -> None:
    summary = prepare(_config(), tmp_path)
    assert {split: entry["problems"] for split, entry in summary.items()} == {
        "train": 4500,
        "validation": 100,
        "test": 200,
    }
    from_files = Arithmetic(_config(f"task.data='{tmp_path}'"))
    for split in SPLITS:
        assert from_files.problems(split) == TASK.problems(split)
    assert prepare(_config(), tmp_path) == summary
    with pytest.raises(UserError, match=r"task.seed: 0 there, 1 here"):
        prepare(_config("task.seed=1"), tmp_path)
    assert prepare(_config("task.seed=1"), tmp_path, replace=True) != summary


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no .*test\.jsonl; build it with: alp prepare run\.dir="):
        read_problems(tmp_path, "test")
    (tmp_path / "test.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: fields id, problem, answer, source expected"):
        read_problems(tmp_path, "test")


def test_batches_visit_every_problem_once_per_pass() -> None:
    items = [_problem(n, n) for n in range(10)]
    seen = [problem for step in range(5) for problem in select(items, 4, seed=3, step=step)]
    assert sorted(seen[:10], key=items.index) == items
    assert sorted(seen[10:], key=items.index) == items
    assert seen[:10] != seen[10:]
    assert select(items, 4, seed=3, step=2) == seen[8:12]
    assert select(items, 4, seed=4, step=0) != seen[:4]
