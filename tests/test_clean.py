"""``alp clean``: which results no grid asks for, why, and that nothing else goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alp.clean import clean, find
from alp.configuration import compose, grid
from alp.errors import UserError
from alp.ownership import Claim, claimed
from alp.reproducibility import write_text
from tests.canary import plant, snapshot

PLAIN: dict[str, Any] = {
    "title": "T",
    "description": "D",
    "task": "arithmetic",
    "model": "arithmetic_tiny",
    "seeds": [0, 1],
    "arms": [{"method": "grpo"}, {"method": "gspo"}],
}


def _write(folder: Path, name: str = "mine", **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(PLAIN | changes), encoding="utf-8")
    return path


def _finish(verb: str, words: list[str], job: str, output: str, made: str = "x") -> None:
    config = compose.load(verb, words)
    folder = Path(config.run.dir)
    origin = compose.origin_of({"config_hash": compose.identity(config)}, config)
    with claimed(folder, job, origin, outputs=[output]):
        write_text(folder / output, made)


def _build(results: Path, path: Path) -> None:
    """Marks and one file for every job of a grid, as the workflow leaves them."""
    asked = grid.load(str(path))
    origin = {"identity": asked.name, "grid": str(path)}
    with claimed(asked.folder(results), "grid", origin, outputs=["logs/"]):
        write_text(asked.folder(results) / "logs" / "x.log", "")
    _finish("prepare", asked.overrides("prepare", results), "prepare", "train.jsonl")
    _finish("pretrain", asked.overrides("pretrain", results), "pretrain", "model/weights")
    _finish("evaluate", asked.overrides("evaluate", results), "evaluate.test", "evaluation/test.json")
    for arm in asked.arms:
        for seed in asked.seeds:
            words = asked.overrides("train", results, arm=arm.name, seed=seed)
            _finish("train", words, "train", "metrics.jsonl", "m" * 2**20)
            words = asked.overrides("evaluate", results, arm=arm.name, seed=seed)
            _finish("evaluate", words, "evaluate.test", "evaluation/test.json")
    with claimed(asked.folder(results), "report", asked.origin, outputs=["report.html"], beside=True):
        write_text(asked.folder(results) / "report.html", "")


def _config(results: Path, **chosen: bool) -> Any:
    words = [f"{name}={str(value).lower()}" for name, value in chosen.items()]
    return compose.load("clean", [f"results='{results}'", *words])


def _lines(results: Path) -> list[str]:
    return sorted(entry.line(results) for entry in find(results)[0])


def test_a_grid_as_it_was_built_has_nothing_to_remove(tmp_path: Path) -> None:
    results = tmp_path / "results"
    _build(results, _write(tmp_path))
    before = snapshot(results)
    assert clean(_config(results, yes=True)) == f"{results}: nothing to remove"
    assert snapshot(results) == before


def test_a_root_that_is_none_is_refused(tmp_path: Path) -> None:
    results = tmp_path / "results"
    _build(results, _write(tmp_path))
    before = snapshot(results)
    refused = {tmp_path / "result": "did you mean 'results'?", results / "mine": f"did you mean '{results}'?"}
    for folder, words in refused.items():
        for all_of_it in (False, True):
            with pytest.raises(UserError) as refusal:
                clean(_config(folder, yes=True, all=all_of_it))
            assert words in str(refusal.value)
    assert snapshot(results) == before


def test_a_seed_and_an_arm_that_are_gone(tmp_path: Path) -> None:
    results, place = tmp_path / "results", "mine/arithmetic/arithmetic_tiny"
    _build(results, _write(tmp_path))
    plant(results / place / "gspo" / "seed0" / "notes")
    mine = snapshot(results / place / "gspo" / "seed0" / "notes")
    _write(tmp_path, seeds=[0], arms=[{"method": "grpo"}])
    found = _lines(results)
    gone = [f"{place}/{run}" for run in ("grpo/seed1", "gspo/seed0", "gspo/seed1")]
    assert [line.split("  ")[:2] for line in found[1:]] == [
        [run, job] for run in gone for job in ("evaluate.test", "train")
    ]
    assert found[0].startswith("mine  report  0.0 MiB  made with another configuration (the grid file said something")
    assert f"{gone[0]}  train  1.0 MiB  the grid has no train of arithmetic/arithmetic_tiny/grpo/seed1" in found
    assert clean(_config(results, yes=True)) == "removed 7 of 7 results, 3.0 MiB"
    assert not (results / place / "grpo" / "seed1").exists()
    assert (results / place / "grpo" / "seed0" / "metrics.jsonl").is_file()
    left = snapshot(results / place / "gspo")
    assert snapshot(results / place / "gspo" / "seed0" / "notes") == mine
    assert all(name == "seed0" or name.startswith("seed0/notes") for name in left)
    assert _lines(results) == []


def test_another_configuration_is_told_in_words(tmp_path: Path) -> None:
    results = tmp_path / "results"
    _build(results, _write(tmp_path))
    _write(tmp_path, arms=[{"method": "grpo"}, {"method": "gspo"}], overrides={"pretrain": ["pretrain.steps=7"]})
    lines = _lines(results)
    assert [line.split("  ")[1] for line in lines] == ["report", "evaluate.test", "pretrain"]
    assert "made with another configuration (pretrain.steps: 1000 there, 7 here)" in lines[2]
    assert "evaluates a model that is out of date" in lines[1]


def test_what_another_grid_still_has_to_compute_is_kept_for_it(tmp_path: Path) -> None:
    results = tmp_path / "results"
    _build(results, _write(tmp_path))
    with claimed(results / "other", "grid", {"identity": "other", "grid": str(_write(tmp_path, "other"))}, outputs=()):
        pass
    _write(tmp_path, seeds=[0])
    assert [line.split("  ")[1] for line in _lines(results)] == ["report"]
    other = grid.load(str(tmp_path / "other.yaml"))
    _finish("train", other.overrides("train", results, arm="grpo", seed=1), "train", "metrics.jsonl")
    assert [line.split("  ")[:2] for line in _lines(results)][1:] == [
        ["mine/arithmetic/arithmetic_tiny/grpo/seed1", "train"]
    ]


def test_a_grid_whose_file_is_gone_goes_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    path = _write(tmp_path)
    _build(results, path)
    path.unlink()
    assert clean(_config(results, yes=True)) == f"{results}: nothing to remove"
    assert f"grid file missing: {path} (kept; missing=true removes it)" in capsys.readouterr().err
    (results / "mine" / "note").write_text("a user's")
    assert clean(_config(results, yes=True, missing=True)).startswith("removed 13 of 13 results")
    assert set(snapshot(results)) == {"mine", "mine/note"}


def test_a_grid_that_cannot_be_read_keeps_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    path = _write(tmp_path)
    _build(results, path)
    path.write_text("title: [")
    assert clean(_config(results, yes=True)) == f"{results}: nothing to remove"
    assert "mine: kept, its grid cannot be read" in capsys.readouterr().err


def test_asking(tmp_path: Path) -> None:
    results = tmp_path / "results"
    _build(results, _write(tmp_path))
    _write(tmp_path, seeds=[0])
    before = snapshot(results)
    with pytest.raises(UserError, match="no terminal to ask on; yes=true removes 5 results"):
        clean(_config(results))
    questions: list[str] = []

    def answer(question: str) -> str:
        questions.append(question)
        return ""

    assert clean(_config(results), answer) == "nothing was removed"
    assert questions == ["remove 5 results, 2.0 MiB? [y/N] "]
    assert snapshot(results) == before
    assert clean(_config(results), lambda _: "y").startswith("removed 5 of 5")


def test_nothing_goes_while_a_job_of_the_grid_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    _build(results, _write(tmp_path))
    _write(tmp_path, seeds=[0])
    run = results / "mine/arithmetic/arithmetic_tiny/grpo/seed0"
    with Claim(run, "train", outputs=["metrics.jsonl"]):
        assert clean(_config(results, yes=True)).startswith("removed 0 of 5")
    assert f"kept: a job is running in {results}/mine" in capsys.readouterr().err
    assert clean(_config(results, yes=True)).startswith("removed 5 of 5")


def test_results_of_no_grid_are_nobody_s_to_judge(tmp_path: Path) -> None:
    results = tmp_path / "results"
    _build(results, _write(tmp_path))
    _finish("train", [f"run.dir='{results}/adhoc/seed0'", "run.tracking=null"], "train", "metrics.jsonl")
    _finish("train", [f"run.dir='{results}/mine/by_hand'", "run.tracking=null"], "train", "metrics.jsonl")
    assert _lines(results) == []
