"""``benchmarks/coverage.py``: the simulation has the truth that it claims, components come back from it, and a small
run writes its report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks import coverage, interval_methods
from benchmarks.grid_components import components, read_fractions

SETTINGS = yaml.safe_load(Path(coverage.__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
DEVIATIONS = SETTINGS["components"]["standard_deviations"]


def test_truths_are_means_of_what_is_drawn() -> None:
    simulation = coverage.Simulation(SETTINGS, DEVIATIONS, stream=1)
    parts = [simulation.draw(25) for _ in range(4)]
    fractions, expected = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    error = fractions.mean((2, 3)).std(0) / 10 + expected.mean(2).std(0) / 10
    assert np.abs(fractions.mean((0, 2, 3)) - expected.mean((0, 2))).max() < 4 * error.max()
    assert np.abs(expected.mean((0, 2)) - simulation.population).max() < 0.02


def test_components_come_back_from_what_they_made() -> None:
    settings = SETTINGS | {"problems": 1500, "seeds": [200], "arms": {name: [0.7, 1, 0] for name in "abcd"}}
    given = {"seed": 0.2, "seed_of_arm": 0.3, "problem": 0.7, "problem_of_arm": 0.3, "seed_by_problem": 0.4}
    fractions, _ = coverage.Simulation(settings, given, stream=2).draw(1)
    found = components(fractions[0].astype(np.float64), settings["samples"])["standard_deviations"]
    assert found == pytest.approx(given, rel=0.15)


def test_a_grid_is_read_by_its_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two arms"):
        read_fractions(tmp_path)
    for arm in ("base", "grpo", "token_alp"):
        for seed in range(2):
            folder = tmp_path / "task" / "model" / arm / f"seed{seed}" / "evaluation"
            folder.mkdir(parents=True)
            record = {"problems": 3, "samples": 4, "correct": [seed, 2, 4]}
            (folder / "test.json").write_text(json.dumps(record), encoding="utf-8")
    fractions, samples = read_fractions(tmp_path)
    assert samples == 4
    assert fractions.shape == (3, 2, 3)
    assert fractions[1, 1].tolist() == [0.25, 0.5, 1.0]


def test_moderated_variances_are_pooled_where_they_agree_and_left_alone_where_not() -> None:
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(200, 30, 4))
    widths = [high - low for low, high in (interval_methods.moderated(alike[:, 0], alike),)]
    assert np.std(widths) < 0.3 * np.std([high - low for low, high in (interval_methods.student(alike[:, 0]),)])
    apart = alike * np.exp(rng.normal(scale=20, size=(200, 30, 1)))
    low, high = interval_methods.moderated(apart[:, 0], apart)
    plain = interval_methods.student(apart[:, 0])
    assert np.median((high - low) / (plain[1] - plain[0])) == pytest.approx(1, abs=0.15)


def test_a_small_run_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coverage.main(["grids=50", f"out={tmp_path}"])
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    ours = [row for row in report["rows"] if row["method"] == "student" and row["problems"] == "fixed"]
    assert {(row["case"], row["seeds"]) for row in ours} == {
        (case, seeds) for case in coverage.CASES for seeds in SETTINGS["seeds"]
    }
    assert all(0.8 <= row["coverage"] <= 1 for row in ours if "fails" not in row["case"])
    assert "| mean | Student over seeds (the tables) |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="unknown option gird"):
        coverage.main(["gird=x"])
