"""How MLflow shows what :mod:`alp.reporting.tracking` logs: names of metrics, descriptions and sources, the columns and
charts of a saved view, and the addresses that ``make ui`` prints. MLflow reads all of it from tags."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from alp.configuration.grid import Grid
from alp.configuration.train_schema import TrainConfig
from alp.reporting.arms import build_command, label

VIEW = "alp"  # the key of the saved view: the last part of its tag's name, and the word in its address
LAYERS = "layers"
_OF_LAYERS = ("budget/", "perturbation/")
# Charts in the order of a reader's questions: how good, how far, how wide the tails; a layer's ones come last.
_SECTIONS = (
    *("evaluation/test", "validation", "reward", "clean_batch", "ratio/token", "ratio/sequence", "policy", "response"),
    *("clean/token", "clean/sequence", "clean_batch/token", "clean_batch/sequence", "perturbed/token"),
    *("perturbed/sequence", "rollout_corr", "rollout_corr/token", "rollout_corr/sequence", "correction"),
    *("MLFLOW_RUN_CHARTS_DEFAULT", LAYERS),
)
_COLUMNS = (
    *("tags.`arm`", "params.`trainer.seed`", "metrics.`evaluation/test/accuracy`", "metrics.`clean_batch/k3_kl`"),
    *("metrics.`reward/mean`", "metrics.`validation/accuracy`"),
)


def metric_name(name: str) -> str:
    """A metric's name in MLflow, whose charts stand together by all but the last part: a layer's ones in one place."""
    return f"{LAYERS}/{name.replace('/', '.')}" if name.startswith(_OF_LAYERS) else name


def run_tags(chosen: TrainConfig, arm: str, commit: str | None) -> dict[str, str]:
    """Description, source and arm of a run, as its page and the columns of the list show them."""
    grid = chosen.run.grid
    where = f" of the grid {grid}" if grid else ""
    source = f"snakemake --config grid={grid}" if grid else f"alp train method={chosen.method.name}"
    tags = {
        "arm": arm,
        "mlflow.note.content": (
            f"{label(arm)}, seed {chosen.trainer.seed}{where}: task {chosen.task.name}, model {chosen.model.name}."
        ),
        "mlflow.source.name": source,
        "mlflow.source.type": "JOB",
    }
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def experiment_tags() -> dict[str, str]:
    """What makes an experiment open on its runs (one without a kind opens on traces), and its saved view."""
    return {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": json.dumps(_view())}


def grid_tags(grid: Grid) -> dict[str, str]:
    """The description of a grid's experiment."""
    return {"mlflow.note.content": f"{grid.title}. {grid.description} Built by `{build_command(grid)}`."}


def _view() -> dict[str, object]:
    """The state of the page in the words of MLflow's own UI; it adds the charts of the runs that are there."""
    sections = [
        {"uuid": f"alp-{name}", "name": name, "display": name != LAYERS, "isReordered": False, "isGenerated": True}
        for name in _SECTIONS
    ]
    return {
        "selectedColumns": list(_COLUMNS),
        "orderByKey": "metrics.`evaluation/test/accuracy`",
        "orderByAsc": False,
        "compareRunCharts": [],
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
    }


def addresses(database: Path, server: str) -> Iterator[str]:
    """A line for each experiment of the database: its runs as a list, and as charts; one that says so where there is
    none yet."""
    rows: list[tuple[str, str]] = []
    if database.is_file():
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            query = (
                "SELECT e.experiment_id, e.name FROM experiments e JOIN experiment_tags t USING (experiment_id)"
                " WHERE t.key = ? AND e.lifecycle_stage = 'active' ORDER BY e.name"
            )
            rows = connection.execute(query, (f"mlflow.sharedViewState.{VIEW}",)).fetchall()
    for number, name in rows:
        runs = f"{server}/#/experiments/{number}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
        yield f"{name}: {runs}"
        yield f"{' ' * len(name)}  {runs}&compareRunsMode=CHART  (as charts)"
    if not rows:
        yield f"no run is logged in {database} yet; when one is: {server}/#/experiments?workflowType=machine_learning"


if __name__ == "__main__":
    print("\n".join(addresses(Path(sys.argv[1]), sys.argv[2])))
