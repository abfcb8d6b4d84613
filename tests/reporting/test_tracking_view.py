"""What MLflow is told so that its pages lead to what matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alp.configuration import compose
from alp.configuration.grid import Grid
from alp.reporting import tracking, tracking_view
from alp.reporting.arms import label
from alp.reproducibility import sha256_file

from .conftest import GRID, fabricate, write_grid


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> tuple[Grid, Path]:
    """A grid in MLflow, with pages beside it."""
    root = tmp_path_factory.mktemp("tracked")
    two = GRID.replace("  - method: token_bypass\n", "").replace("  - {method: token_alp, variant: sigma0}\n", "")
    grid, results = fabricate(write_grid(root, two), root / "results", steps=5)
    (results / "mlflow.db").write_bytes(migrated.read_bytes())
    for name in ("report.html", "tables/main.csv", "figures/accuracy.svg"):
        path = grid.folder(results) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    tracking.track(grid, results)
    return grid, results


def _client(results: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{results}/mlflow.db")


def _pages(client: Any, name: str) -> Any:
    experiment = client.get_experiment_by_name(name)
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`{tracking.PAGES}` != ''")
    return run


def test_what_is_of_a_layer_stands_in_one_place(tracked: tuple[Grid, Path]) -> None:
    grid, results = tracked
    client = _client(results)
    experiment = client.get_experiment_by_name(grid.name)
    (run,) = client.search_runs([experiment.experiment_id], "tags.arm = 'token_alp' and params.trainer.seed = '0'")
    logged = set(run.data.metrics)
    lines = (grid.run_dir(results, "token_alp", 0) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    keys = {key for line in map(json.loads, lines) for key, value in line.items() if value is not None}
    of_layers = {key for key in keys if key.startswith(("perturbation/", "budget/"))}
    assert of_layers
    assert {f"layers/{key.replace('/', '.')}" for key in of_layers} | (keys - of_layers) <= logged
    assert not {key for key in logged if key.startswith(("perturbation/", "budget/"))}


def test_a_run_says_what_it_is_and_where_it_comes_from(tracked: tuple[Grid, Path]) -> None:
    grid, results = tracked
    tags = tracking.describe(grid.run_dir(results, "token_alp", 1))["tags"]
    assert tags["mlflow.note.content"].startswith(f"{label('token_alp')}, seed 1 of the grid {grid.name}: ")
    assert tags["mlflow.source.name"] == f"snakemake --config grid={grid.name}"
    assert tags["mlflow.source.git.commit"] == "c0ffee" * 6
    alone = compose.load("train", ["method=seq_alp"])
    assert tracking_view.run_tags(alone, "seq_alp", None)["mlflow.source.name"] == "alp train method=seq_alp"
    client = _client(results)
    experiment = client.get_experiment_by_name(grid.name)
    assert grid.description in experiment.tags["mlflow.note.content"]


def test_the_pages_are_artifacts_of_one_run_and_follow_the_report(tracked: tuple[Grid, Path]) -> None:
    grid, results = tracked
    client = _client(results)
    first = _pages(client, grid.name)
    folder = results / "mlartifacts" / first.info.run_id / "artifacts"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *("report.html", "tables/main.csv", "figures/accuracy.svg")
    }
    report = grid.folder(results) / "report.html"
    report.write_text("another")
    tracking.track(grid, results, replace=True)
    again = _pages(client, grid.name)
    assert again.info.run_id == first.info.run_id
    assert again.data.tags[tracking.PAGES] == sha256_file(report)
    assert (folder / "report.html").read_text() == "another"


def test_addresses_are_of_the_grids_that_are_there(tracked: tuple[Grid, Path], tmp_path: Path) -> None:
    grid, results = tracked
    found = list(tracking_view.addresses(results / "mlflow.db", "http://127.0.0.1:5000"))
    number = _client(results).get_experiment_by_name(grid.name).experiment_id
    begins = f"{grid.name}: http://127.0.0.1:5000/#/experiments/{number}/runs?viewStateShareKey=alp&"
    assert sum(line.startswith(begins) for line in found) == 1
    assert len(found) == 4  # the database has one experiment more, a list and charts each
    (none,) = tracking_view.addresses(tmp_path / "mlflow.db", "http://127.0.0.1:5000")
    assert none.startswith("no run is logged")
    assert not (tmp_path / "mlflow.db").exists()
