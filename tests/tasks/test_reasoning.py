"""Other people's problems: the same from a seed whatever the hash seed, judged by their own scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alp.configuration import compose
from alp.errors import UserError
from alp.tasks.catalogue import load_task
from alp.tasks.grading_pool import pool
from alp.tasks.prepare import prepare
from alp.tasks.reasoning import extracted

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: make install EXTRAS=dev,parity,reasoning")
SMALL = ["task=reasoning_gym", "task.train=6", "task.validation=2", "task.test=4"]


def _task(*words: str) -> object:
    return compose.load("prepare", [*SMALL, *words]).task


def test_problems_and_scores(tmp_path: Path) -> None:
    chosen = _task("task.options={min_terms: 2, max_terms: 2}")
    task = load_task(chosen)  # type: ignore[arg-type]
    splits = {name: task.problems(name) for name in ("train", "validation", "test")}
    prompts = [problem.problem for problems in splits.values() for problem in problems]
    assert len(set(prompts)) == len(prompts) == 12
    problem = splits["train"][0]
    assert eval(problem.problem.split(":")[1].rstrip("= ")) == int(
        problem.answer
    )  # a sum of two numbers, by the generator's own text
    right, wrong = f"Let me see. <answer>{problem.answer}</answer>", "<answer>no</answer>"
    assert task.grade_all([problem] * 4, [right, rf"\boxed{{{problem.answer}}}", problem.answer, wrong]) == [
        1.0,
        1.0,
        1.0,
        0.0,
    ]
    prepare(chosen, tmp_path)  # type: ignore[arg-type]
    assert load_task(_task(f"task.data='{tmp_path}'")).problems("test") == splits["test"]  # type: ignore[arg-type]
    other = load_task(_task("task.seed=1"))  # type: ignore[arg-type]
    assert other.problems("train") != splits["train"]


def test_partial_scores_are_cut_at_the_threshold() -> None:
    """A generator's partial credit taken for the real thing."""
    words = ["task.generator=word_sorting"]
    strict, lenient = (load_task(_task(*words, f"task.threshold={threshold}")) for threshold in (1.0, 0.01))  # type: ignore[arg-type]
    problem = strict.problems("train")[0]
    shuffled = ", ".join(reversed(problem.answer.split(", ")))
    scores = [
        pool()
        .run("alp.tasks.reasoning_jobs", "score", ["word_sorting", "{}", 0, 236, int(problem.id.split("/")[1]), text])
        .value
        for text in (problem.answer, shuffled)
    ]
    assert scores[0] == 1.0
    assert 0 < scores[1] < 1
    assert strict.grade_all([problem] * 2, [problem.answer, shuffled]) == [1.0, 0.0]
    assert lenient.grade_all([problem] * 2, [problem.answer, shuffled]) == [1.0, 1.0]


@pytest.mark.parametrize("generator", ["ransom_note"])
def test_problems_do_not_follow_the_hash_seed(generator: str, tmp_path: Path) -> None:
    """Generators that iterate over sets give other problems in every process, unless the hash seed is fixed for
    them."""
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        words = [*SMALL, f"task.generator={generator}", f"run.dir={out}"]
        subprocess.run(
            [sys.executable, "-m", "alp.cli", "prepare", *words], check=True, env=os.environ | {"PYTHONHASHSEED": seed}
        )
        found.append(
            [json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").split("\n") if line]
        )
    assert found[0] == found[1]


def test_mistakes_are_refused_in_one_line() -> None:
    with pytest.raises(
        UserError, match=r"task\.generator: reasoning-gym has no generator 'chain_sums'; did you mean 'chain_sum'"
    ):
        load_task(_task("task.generator=chain_sums"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"task\.options: the generator chain_sum fails: TypeError"):
        load_task(_task("task.options={terms: 1}")).problems("train")  # type: ignore[arg-type]
    options = "task.options={min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1, allow_negation: false}"
    small = load_task(_task(options, "task.train=300"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"= 306 problems, but chain_sum gave only \d+ different ones"):
        small.problems("train")


def test_the_answer_is_taken_from_its_tags() -> None:
    assert extracted("<answer>1</answer> no: <answer> 2 </answer>") == "2"
    assert extracted(r"so \boxed{7}") == "7"
    assert extracted(" plain ") == "plain"
