"""Engines compared: the table against a second computation, the figure, the sentences, and when there is such a table
at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from alp.configuration import compose
from alp.configuration import grid as grids
from alp.configuration.grid import Grid
from alp.ownership import claimed
from alp.rendering import plots
from alp.reporting import registry, runs
from alp.reporting.aggregate import aggregate
from alp.reporting.draw import figures
from alp.reporting.figures import dynamics, mismatch
from alp.reporting.mismatch import sentences
from alp.reporting.report import report
from alp.reporting.tables import mismatch as table
from alp.reproducibility import write_text

from .conftest import ENGINES, SAMPLES, fabricate, write_grid
from .test_figures import FORMS, assert_legible

Finished = tuple[Grid, Path]
ORDER = [
    ("HF fp32", "grpo-hf_fp32"),
    ("HF fp32", "token_mis-hf_fp32"),
    ("HF bf16", "grpo"),
    ("HF bf16", "token_mis"),
    ("HF bf16", "token_mis-clip_wide"),
    ("vLLM bf16", "grpo-vllm_bf16"),
]


@pytest.fixture(scope="module")
def rows(engines: Finished) -> list[dict[str, str]]:
    grid, results = engines
    aggregate(grid, results)
    with (grid.folder(results) / "tables" / "mismatch.csv").open() as stream:
        return list(csv.DictReader(stream))


def metrics(grid: Grid, results: Path, arm: str, key: str) -> float:
    """Mean over steps, then seeds, read without the code under test."""
    means = []
    for seed in grid.seeds:
        lines = [
            json.loads(line)
            for line in (grid.run_dir(results, arm, seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        means.append(np.mean([line[key] for line in lines if key in line]))
    return float(np.mean(means))


def accuracy(grid: Grid, results: Path, arm: str) -> float:
    found = [
        json.loads((grid.run_dir(results, arm, seed) / "evaluation" / "test.json").read_text(encoding="utf-8"))[
            "correct"
        ]
        for seed in grid.seeds
    ]
    return float(np.mean(found)) / SAMPLES


def test_rows_go_engine_by_engine_in_the_order_of_the_grid(rows: list[dict[str, str]]) -> None:
    assert [(row["engine"], row["method"]) for row in rows] == ORDER


def test_figures_of_the_table_against_a_second_computation(engines: Finished, rows: list[dict[str, str]]) -> None:
    for row in rows:
        for column, key in (
            ("kl", "kl"),
            ("k3_kl", "k3_kl"),
            ("token_q001", "token/log_q001"),
            ("token_q99", "token/log_q99"),
            ("sequence_q999", "sequence/log_q999"),
        ):
            assert float(row[column]) == pytest.approx(
                metrics(*engines, row["method"], f"rollout_corr/{key}"), rel=1e-5
            ), column
        assert float(row["accuracy_mean"]) == pytest.approx(accuracy(*engines, row["method"]), abs=1e-6)
        assert float(row["accuracy_low"]) <= float(row["accuracy_mean"]) <= float(row["accuracy_high"])


def test_differences_are_to_the_same_method_under_the_first_engine(
    engines: Finished, rows: list[dict[str, str]]
) -> None:
    found = {row["method"]: row["difference_to_first_engine"] for row in rows}
    assert found["grpo-hf_fp32"] == found["token_mis-hf_fp32"] == ""
    for arm, against in (
        ("grpo", "grpo-hf_fp32"),
        ("token_mis", "token_mis-hf_fp32"),
        ("grpo-vllm_bf16", "grpo-hf_fp32"),
    ):
        assert float(found[arm]) == pytest.approx(accuracy(*engines, arm) - accuracy(*engines, against), abs=1e-6)


def test_tiny_divergences_are_not_rounded_away(rows: list[dict[str, str]]) -> None:
    assert 0 < float(rows[0]["k3_kl"]) < 1e-14
    assert len(rows[0]["k3_kl"].partition("e")[0].replace(".", "")) >= 5


def test_the_page_names_every_engine(engines: Finished) -> None:
    grid, results = engines
    figures(grid, results)
    report(grid, results)
    page = (grid.folder(results) / "report.html").read_text(encoding="utf-8")
    assert "Engines compared" in page
    quoted = sentences(table.make(runs.load(grid, results)).rounded())
    for sentence in quoted:
        assert sentence in page
    assert [sentence.split(":")[0] for sentence in quoted] == [
        "Rollouts by HF fp32",
        "Rollouts by HF bf16",
        "Rollouts by vLLM bf16",
    ]


@pytest.mark.parametrize("arms_without", [["grpo"], None])
def test_runs_without_old_log_probs_leave_dashes(tmp_path: Path, arms_without: list[str] | None) -> None:
    """``trainer.old_log_probs=false``, in one arm or in all: the figures of π_old are in no line."""
    grid, results = fabricate(write_grid(tmp_path, ENGINES, "engines"), tmp_path / "results", steps=3)
    without = [arm.name for arm in grid.arms] if arms_without is None else arms_without
    for arm in without:
        for seed in grid.seeds:
            path = grid.run_dir(results, arm, seed) / "metrics.jsonl"
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            lost = [
                {k: v for k, v in line.items() if not k.startswith(("policy/entropy", "rollout_corr/"))}
                for line in lines
            ]
            assert lost != lines
            path.write_text("".join(json.dumps(line) + "\n" for line in lost))
    aggregate(grid, results)
    if arms_without:
        figures(grid, results)
        report(grid, results)
    else:
        for figure in (mismatch, dynamics):
            figure.make(runs.load(grid, results))
    with (grid.folder(results) / "tables" / "mismatch.csv").open() as stream:
        for row in csv.DictReader(stream):
            for name in ("kl", "k3_kl", "token_q001", "sequence_q999"):
                assert (row[name] == "") == (row["method"] in without)
    row = next(r for r in table.make(runs.load(grid, results)).rounded() if r["method"] == "grpo")
    assert row["k3_kl"] is None
    assert "–" in (grid.folder(results) / "tables" / "mismatch.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
def test_the_figure_is_legible(engines: Finished, form: str) -> None:
    loaded = runs.load(*engines)
    with plots.style(), FORMS[form]():
        assert_legible(mismatch.make(loaded))


def test_one_engine_needs_no_such_table(tmp_path: Path) -> None:
    """And what an earlier form of the grid left behind is taken away."""
    text = "title: t\ndescription: d\ntask: arithmetic\nmodel: arithmetic_tiny\nseeds: [0]\narms: [{method: grpo}]\n"
    grid, results = fabricate(write_grid(tmp_path, text), tmp_path / "results", steps=3)
    stale, theirs = (grid.folder(results) / "tables" / name for name in ("mismatch.csv", "mine.csv"))
    with claimed(grid.folder(results), "aggregate", grid.origin, outputs=["tables/*"], key="results", beside=True):
        write_text(stale, "of an earlier grid")
    theirs.write_text("a user's")
    aggregate(grid, results)
    assert theirs.read_text(encoding="utf-8") == "a user's"
    assert "mismatch" not in registry.names("tables", grid)
    assert not stale.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rollout=hf"], "HF bf16"),
        (["rollout=hf", "rollout.dtype=float32"], "HF fp32"),
        (["rollout=hf", "rollout.dtype=int8", "rollout.weight_noise=0.05"], "HF int8 (weight noise 0.05)"),
        (["rollout=vllm"], "vLLM bf16"),
        (["rollout=vllm", "rollout.quantization=fp8"], "vLLM bf16 (fp8)"),
    ],
)
def test_engines_as_people_read_them(words: list[str], expected: str) -> None:
    assert compose.load("train", words).rollout.label == expected


def test_the_mismatch_grid_compares_four_engines() -> None:
    grid = grids.load("engines")
    found = [grids.job_of(grid, arm).rollout.label for arm in grid.arms]
    assert list(dict.fromkeys(found)) == ["HF fp32", "HF bf16", "HF int8", "vLLM bf16"]
    assert {found.count(engine) for engine in found} == {3}
