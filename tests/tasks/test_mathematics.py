"""Problems from files and datasets: every row is read, filtered, merged and counted as the configuration says, or
refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alp.configuration import compose
from alp.errors import UserError
from alp.tasks.catalogue import load_task
from alp.tasks.leakage import leakage
from alp.tasks.prepare import prepare
from alp.tasks.task import Problem

LONG = (
    "A train leaves the station at noon and travels with a constant speed of sixty kilometres per hour until it stops."
)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _row(number: int, problem: str, answer: str = "1", **more: Any) -> dict[str, Any]:
    return {"id": str(number), "problem": problem, "answer": answer, "source": "own", **more}


def _task(train: str, test: str = "{}", *words: str) -> Any:
    return compose.load(
        "prepare", ["task=mathematics", f"task.train={train}", f"task.test={test}", "task.validation=0", *words]
    ).task


def test_merging_keeps_what_the_configuration_says(tmp_path: Path) -> None:
    """The wrong one of two equal prompts, or a count that is not what happened."""
    one = _write(
        tmp_path / "one.jsonl", [_row(1, "What is  1+1?", "2"), _row(2, "What is 2+2?", "4"), _row(3, "Only here", "9")]
    )
    two = _write(tmp_path / "two.jsonl", [_row(1, "What is 1+1?\n", "two"), _row(2, "What is 2+2?", "4")])
    sources = f"[{{path: '{one}'}}, {{path: '{two}'}}]"
    last = load_task(_task(sources, "{}", "task.keep=last"))
    assert [problem.id for problem in last.problems("train")] == ["one:3", "two:1", "two:2"]
    first = load_task(_task(sources, "{}", "task.keep=first"))
    assert [problem.id for problem in first.problems("train")] == ["one:1", "one:2", "one:3"]
    assert last.steps("train")[-1] == {
        "merged": 5,
        "different_prompts": 3,
        "dropped_with_another_answer": 1,
        "folded": {"spaces": 1, "characters": 0},
        "keep": "last",
        "held_out": 0,
    }


def test_filters_count_every_step(tmp_path: Path) -> None:
    """Bounds taken as inclusive, a mean of scores that is no mean, a length in the wrong unit."""
    rows = [
        _row(1, "kept", scores=[0, 1]),
        _row(2, "all right", scores=[1, 1]),
        _row(3, "all wrong", scores=[0, 0]),
        _row(4, "no scores", scores=[]),
        _row(5, "much too long for the limit", scores=[0, 1]),
        _row(6, "no answer", answer="", scores=[0, 1]),
        _row(7, "kept too", scores=[0, 0, 0, 1]),
    ]
    path = _write(tmp_path / "scored.jsonl", rows)
    task = load_task(
        _task(
            f"[{{path: '{path}', fields: {{score: scores}}, score_above: 0.0, score_below: 1.0}}]",
            "{}",
            "task.length.max=10",
        )
    )
    assert [problem.problem for problem in task.problems("train")] == ["kept", "kept too"]
    step = task.steps("train")[0]
    assert step == {"source": "scored.jsonl", "rows": 7, "within_score": 4, "with_answer": 3, "within_length": 2}


def test_lengths_in_tokens_of_a_tokenizer(tmp_path: Path, base_model: Path) -> None:
    path = _write(tmp_path / "sums.jsonl", [_row(1, "1+1="), _row(2, "10+10="), _row(3, "1;1;1;1;")])
    words = [f"task.length.tokenizer='{base_model}'", "task.length.min=5", "task.length.max=7"]  # one token a character
    assert [
        problem.problem for problem in load_task(_task(f"[{{path: '{path}'}}]", "{}", *words)).problems("train")
    ] == ["10+10="]


def test_fields_are_found_at_any_depth(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": "What is 3? Box it."}],
            "reward_model": {"ground_truth": [3, "4"]},
            "uid": 7,
        }
    ]
    path = _write(tmp_path / "nested.jsonl", rows)
    fields = "fields: {id: uid, problem: prompt.0.content, answer: reward_model.ground_truth}, remove: ' Box it.'"
    found = load_task(_task(f"[{{path: '{path}', {fields}}}]")).problems("train")
    assert found == [Problem("nested:7", "What is 3?", "3, 4", "nested.jsonl")]
    with pytest.raises(
        UserError, match=r"task\.train\.0\.fields: a row has no 'prompt\.0\.contents'; did you mean 'content'"
    ):
        load_task(_task(f"[{{path: '{path}', fields: {{problem: prompt.0.contents, answer: uid}}}}]")).problems("train")


def test_other_line_breaks_stay_in_a_problem(tmp_path: Path) -> None:
    """Python's splitlines would cut a JSON text in two."""
    path = _write(tmp_path / "breaks.jsonl", [_row(1, "one\u2028two\x85three\x1cfour", "5\u2029")])
    config_ = _task("[]", f"{{breaks: {{path: '{path}'}}}}")
    task = load_task(config_)
    assert task.problems("breaks")[0].problem == "one\u2028two\x85three\x1cfour"
    prepare(config_, tmp_path / "data")
    assert load_task(config_.model_copy(update={"data": str(tmp_path / "data")})).problems("breaks") == task.problems(
        "breaks"
    )


def test_prepared_sets_leakage_and_hashes(tmp_path: Path) -> None:
    training = [_row(n, f"{LONG} How far does train {n} get in {n} hours?", str(60 * n)) for n in range(1, 9)]
    train = _write(tmp_path / "train.jsonl", training)
    easy = _write(tmp_path / "easy.jsonl", [_row(1, "Something else entirely."), {**training[2], "id": "copy"}])
    hard = _write(tmp_path / "hard.jsonl", [_row(1, LONG.upper().replace(",", "") + " Where is it?"), _row(1, "x^2=4")])
    configured = _task(
        f"[{{path: '{train}'}}]",
        f"{{easy: {{path: '{easy}'}}, hard: {{path: '{hard}', style: minerva}}}}",
        "task.validation=2",
    )
    assert configured.sets == ["train", "validation", "test", "easy", "hard"]
    summary = prepare(configured, tmp_path / "data")
    assert {name: entry["problems"] for name, entry in summary.items()} == {
        "train": 6,
        "validation": 2,
        "test": 4,
        "easy": 2,
        "hard": 2,
    }
    report = json.loads((tmp_path / "data" / "leakage.json").read_text(encoding="utf-8"))
    # LONG stands in every problem of the training file
    assert report["sets"]["validation"]["shared_13_words"].keys() == {
        p.id for p in load_task(configured).problems("validation")
    }
    trained = {problem.id for problem in load_task(configured).problems("train")}
    assert report["sets"]["easy"]["exact"] == ({"easy:copy": "train:3"} if "train:3" in trained else {})
    assert list(report["sets"]["hard"]["shared_13_words"]) == ["hard:1"]
    assert report["sets"]["hard"]["shorter_than_13_words"] == 1
    assert "| hard | 2 | 0 | 1 | 1 |" in (tmp_path / "data" / "leakage.md").read_text(encoding="utf-8")
    assert prepare(configured, tmp_path / "again") == summary
    read = load_task(configured.model_copy(update={"data": str(tmp_path / "data")}))
    for name in configured.sets:
        assert read.problems(name) == load_task(configured).problems(name)
    assert [problem.id for problem in read.problems("test")] == ["easy:1", "easy:copy", "hard:1", "hard:1#1"]


def test_a_run_of_13_words_and_not_of_12() -> None:
    def problem(name: str, words: str) -> Problem:
        return Problem(name, words, "1", "own")

    words = [f"w{n}" for n in range(13)]
    training = [problem("t", "so " + " ".join(words) + " end")]
    evaluation = [
        problem("13", " ".join(words).upper()),
        problem("12", " ".join(words[:12]) + " other"),
        problem("0", "short"),
    ]
    found = leakage(training, {"set": evaluation})["sets"]["set"]
    assert found == {"problems": 3, "shorter_than_13_words": 1, "exact": {}, "shared_13_words": {"13": "t"}}


def test_the_embedded_task_leaks_nothing(tmp_path: Path) -> None:
    prepare(compose.load("prepare", []).task, tmp_path)
    for entry in json.loads((tmp_path / "leakage.json").read_text(encoding="utf-8"))["sets"].values():
        assert entry["exact"] == entry["shared_13_words"] == {}


def test_each_set_is_graded_in_its_style(tmp_path: Path) -> None:
    rows = [_row(1, "p", "0.1234")]
    path = _write(tmp_path / "p.jsonl", rows)
    task = load_task(_task("[]", f"{{rough: {{path: '{path}', style: minerva}}, strict: {{path: '{path}'}}}}"))
    problems = task.problems("test")
    assert [problem.id for problem in problems] == ["rough:1", "strict:1"]
    assert task.grade_all(problems, [r"\boxed{0.123}"] * 2) == [1.0, 0.0]
    assert task.grade(problems[1], r"\boxed{.1234}") == 1.0
    assert task.system == r"Please reason step by step, and put your final answer within \boxed{}."


def test_datasets_come_through_the_same_loader(tmp_path: Path) -> None:
    """A folder in the form of a hub's dataset, read by the library that reads the hub."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    pandas.DataFrame({"question": ["What is 1?", "What is 2?"], "final_answer": [["1"], ["2", "3"]]}).to_parquet(
        folder / "test.parquet"
    )
    source = f"{{hub: '{folder}', revision: main, split: test, fields: {{problem: question, answer: final_answer}}}}"
    script = (
        "import sys; from alp.configuration import compose; from alp.tasks.catalogue import load_task\ntask ="
        " load_task(compose.load('prepare', ['task=mathematics', 'task.train=[]', \"task.test={x:"
        f" {source}}}\"]).task)\nprint([(p.id, p.answer) for p in task.problems('x')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.strip() == "[('x:0', '1'), ('x:1', '2, 3')]", done.stderr


def test_without_a_network_one_line_says_so(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    done = subprocess.run(
        [sys.executable, "-m", "alp.cli", "prepare", "task=mathematics", f"run.dir={tmp_path}"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("alp: error:")]
    assert len(lines) == 1
    assert "task.train.0.hub: cannot load weqweasdas/from_default_filtered_openr1_with_scores at main" in lines[0]
    assert "a local JSONL by path" in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("task.train=[{path: a, hub: b}]", r"task\.train\.0: name one of path"),
        ("task.train=[{hub: a/b}]", r"hub = a/b needs a revision"),
        ("task.train=[{paht: a}]", r"unknown key 'task\.train\.0\.paht'; did you mean 'path'"),
        ("task.train=[{path: a, score_above: 0.5}]", r"need fields\.score"),
        ("task.test={train: {path: a}}", r"'train' is no name for an evaluation set"),
        ("task.test={all: {path: a}}", r"'all' is no name for an evaluation set"),
        ("task.test={test: {path: a}, mine: {path: b}}", r"'test' is all evaluation sets together"),
        ("task.name=mathematics", r"choose the task by its file"),
        ("task.keep=latest", r"'latest' is no valid choice; did you mean 'last'"),
    ],
)
def test_mistakes_are_refused_in_one_line(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose.load("prepare", ["task=mathematics", word])


def test_missing_files_and_sets_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "train.jsonl", [_row(1, "p")])
    with pytest.raises(UserError, match=r"task\.train\.0\.path: no file .*did you mean 'train\.jsonl'"):
        load_task(_task(f"[{{path: '{tmp_path}/trian.jsonl'}}]")).problems("train")
    with pytest.raises(UserError, match=r"has no set 'aime'; did you mean 'aime25'"):
        compose.load("evaluate", ["task=mathematics", "evaluation.set=aime"])
    assert compose.load("evaluate", ["task=mathematics", "evaluation.set=aime24"]).evaluation.set == "aime24"
    with pytest.raises(UserError, match=r"has no set 'tets'; did you mean 'test'"):
        compose.load("evaluate", ["evaluation.set=tets"])


def test_an_evaluation_set_without_problems_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """Not when everything is trained and its accuracy is asked for."""
    full, empty = _write(tmp_path / "full.jsonl", [_row(1, "p")]), _write(tmp_path / "empty.jsonl", [_row(1, "p", "")])
    task = _task(f"[{{path: '{full}'}}]", f"{{full: {{path: '{full}'}}, empty: {{path: '{empty}'}}}}")
    with pytest.raises(UserError, match=r"task\.test\.empty: .*empty\.jsonl has no problem with an answer"):
        prepare(task, tmp_path / "data")


def test_the_same_file_elsewhere_is_the_same_configuration(tmp_path: Path) -> None:
    """A configuration that forgets what a file holds, or remembers where it lay."""
    one, two = _write(tmp_path / "a.jsonl", [_row(1, "p")]), _write(tmp_path / "b.jsonl", [_row(1, "p")])
    loaded = [compose.load("prepare", ["task=mathematics", f"task.train=[{{path: '{path}'}}]"]) for path in (one, two)]
    assert compose.identity(loaded[0]) == compose.identity(loaded[1])
    before = compose.identity(loaded[0])
    _write(one, [_row(1, "q")])
    assert compose.identity(loaded[0]) != before
