"""Evaluation: every problem once, all samples, figures that follow from the counts."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path

import pytest

from alp import config
from alp.analysis.evaluate import evaluate

TINY = ["task.digits=1", "task.train=30", "task.validation=6", "task.test=8"]


def _run(base_model: Path, folder: Path, *words: str) -> dict:
    path = evaluate(config.load("evaluate", [*TINY, f"model.path='{base_model}'", f"run.dir='{folder}'", "evaluation.samples=16", *words]))
    return json.loads(path.read_text())


def test_every_problem_is_scored_once(base_model: Path, tmp_path: Path) -> None:
    found = _run(base_model, tmp_path / "a")
    assert (found["set"], found["problems"], found["samples"]) == ("test", 8, 16)
    assert len(found["correct"]) == len(found["greedy_correct"]) == len(set(found["problem_ids"])) == 8
    assert found["accuracy"] == pytest.approx(sum(found["correct"]) / (8 * 16))
    assert found["greedy"] == pytest.approx(sum(found["greedy_correct"]) / 8)
    assert list(found["pass_at_k"]) == sorted(found["pass_at_k"])
    for k, value in found["pass_at_k"].items():
        exact = [1 - comb(16 - c, int(k)) / comb(16, int(k)) for c in found["correct"]]
        assert value == pytest.approx(sum(exact) / 8, abs=1e-12)
    assert set(found["pass_at_k"]) == {"1", "2", "4", "8", "16"}
    assert found["pass_at_k"]["1"] == pytest.approx(found["accuracy"])


def test_pieces_and_repeats_give_the_same_file(base_model: Path, tmp_path: Path) -> None:
    whole = _run(base_model, tmp_path / "a")
    assert _run(base_model, tmp_path / "b") == whole
    pieces = _run(base_model, tmp_path / "c", "evaluation.batch_size=32")
    assert pieces["correct"] == whole["correct"]
    assert pieces["config_hash"] != whole["config_hash"]


def test_other_seed_other_samples(base_model: Path, tmp_path: Path) -> None:
    first, second = _run(base_model, tmp_path / "a"), _run(base_model, tmp_path / "b", "evaluation.seed=1")
    assert first["greedy_correct"] == second["greedy_correct"]
    assert first["correct"] != second["correct"]
