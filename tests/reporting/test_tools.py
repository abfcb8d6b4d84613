"""A grid whose task has a tool: its table and figure, and that other grids have neither."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from alp.configuration.grid import Grid
from alp.rendering import plots
from alp.reporting import registry, runs
from alp.reporting.aggregate import aggregate

from .conftest import fabricate, write_grid
from .test_figures import FORMS, assert_legible

GRID = """
title: Tools
description: A calculator that was never trained.
task: calculator
model: calculator_tiny
seeds: [0, 1]
published: multi_turn
overrides:
  task: [task.test=40]
arms:
  - method: gspo
  - method: seq_bypass
  - method: seq_alp
"""
BASE = {"use_rate": 0.7, "valid_rate": 0.8, "turns": 1.75, "void_rate": 0.15}
Finished = tuple[Grid, Path]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("tools")
    grid, results = fabricate(write_grid(root, GRID, "tools"), root / "results")
    folders = {grid.base_dir(results): BASE}
    for arm in grid.arms:
        for seed in grid.seeds:
            folder = grid.run_dir(results, arm.name, seed)
            # One seed of one arm has no program at all: its share of valid ones is missing, not 0.
            valid = None if (arm.name, seed) == ("seq_alp", 1) else 0.9 + 0.02 * seed
            folders[folder] = {"use_rate": 0.9, "valid_rate": valid, "turns": 2.0 + 0.5 * seed, "void_rate": 0.05}
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            for line in lines[1:]:
                line |= {f"tools/{key}": value for key, value in folders[folder].items()}
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for folder, figures in folders.items():
        path = folder / "evaluation" / "test.json"
        content = json.loads(path.read_text(encoding="utf-8")) | {"tools": figures}
        path.write_text(json.dumps(content), encoding="utf-8")
    aggregate(grid, results)
    return grid, results


def test_the_table_holds_means_over_seeds_and_the_base_model(tools: Finished) -> None:
    grid, results = tools
    with (grid.folder(results) / "tables" / "tools.csv").open(encoding="utf-8") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert list(rows) == ["base", "gspo", "seq_bypass", "seq_alp"]
    for key, value in BASE.items():
        assert float(rows["base"][key]) == pytest.approx(value)
    assert float(rows["gspo"]["valid_rate"]) == pytest.approx(0.91)
    assert float(rows["seq_alp"]["valid_rate"]) == pytest.approx(0.9)
    assert float(rows["gspo"]["turns"]) == pytest.approx(2.25)


@pytest.mark.parametrize("form", FORMS)
def test_the_figure_draws_what_became_of_the_turns(tools: Finished, form: str) -> None:
    grid, results = tools
    (artefact,) = [each for each in registry.of_grid("figures", grid) if each.name == "tools"]
    with plots.style(), FORMS[form]():
        figure = artefact.make(runs.load(grid, results))
        assert_legible(figure)
    panels = [axes for axes in figure.get_axes() if axes.get_title()]
    titles = [axes.get_title().partition(":")[0] for axes in panels]
    assert titles == ["Training reward", "Tool used", "Valid programs", "Turns", "Void", "Length"]
    assert all(len(axes.get_lines()) == 3 for axes in panels)


def test_other_grids_have_neither(finished: Finished) -> None:
    grid, _ = finished
    assert "tools" not in registry.names("figures", grid)
    assert "tools" not in registry.names("tables", grid)
