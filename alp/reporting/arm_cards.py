"""What a page says of each arm by itself: what its configuration has differently, and where its files lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alp.configuration.grid import Grid, job_of
from alp.nested import leaves
from alp.reporting import arms
from alp.reporting.arms import label
from alp.reporting.runs import ArmRuns, Results

FILES = ("config.yaml", "active.json", "provenance.json", "metrics.jsonl", "updates.jsonl", "trajectories.jsonl")
_PLACES = ("run", "model.path", "task.data", "trainer.seed")  # of files, and the seed: no setting of an arm
Links = list[tuple[str, str]]


@dataclass(frozen=True)
class Card:
    """An arm: ``differs`` are (key, in the arm compared with, here); ``files`` by seed, relative to the page's
    folder."""

    name: str
    label: str
    against: str
    differs: list[tuple[str, str, str]]
    files: list[tuple[str, Links]]
    trajectories: bool = False


def cards(loaded: Results, results: Path, with_trajectories: set[str]) -> list[Card]:
    """The base model's, then one per arm in the order of the grid, each beside the reference's or else the first arm's
    configuration."""
    grid = loaded.grid
    root = grid.folder(results)
    reference = loaded.reference or loaded.arms[0]
    beside = _settings(grid, reference)
    base = Card(arms.BASE, label(arms.BASE), "", [], [("", _links(grid.base_dir(results), root))])
    return [
        base,
        *(
            Card(
                name=arm.name,
                label=label(arm.name),
                against=label(reference.name) if arm is not reference else "",
                differs=_differing(beside, _settings(grid, arm)),
                files=[(f"seed {run.seed}", _links(run.folder, root)) for run in arm.runs],
                trajectories=arm.name in with_trajectories,
            )
            for arm in loaded.arms
        ),
    ]


def _settings(grid: Grid, arm: ArmRuns) -> dict[str, Any]:
    """Every setting of the arm's training jobs by its dotted key."""
    job = job_of(grid, arm.arm).model_dump(mode="json")
    return {
        key: value
        for key, value in leaves(job, numbered=True)
        if not any(key == place or key.startswith(f"{place}.") for place in _PLACES)
    }


def _differing(there: dict[str, Any], here: dict[str, Any]) -> list[tuple[str, str, str]]:
    keys = sorted(there.keys() | here.keys())
    return [(key, _said(there, key), _said(here, key)) for key in keys if _said(there, key) != _said(here, key)]


def _said(settings: dict[str, Any], key: str) -> str:
    """A setting as the configuration's file has it; a dash where there is no such key."""
    if key not in settings:
        return "–"
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _links(folder: Path, root: Path) -> Links:
    """Those of a run's files that are there, evaluations and the answers behind them too."""
    found = [folder / name for name in FILES] + sorted(folder.glob("evaluation/*.json"))
    found += sorted(folder.glob("evaluation/*.samples.jsonl.gz"))
    relative = [(path.relative_to(folder).as_posix(), path.relative_to(root)) for path in found if path.is_file()]
    return [(name, path.as_posix()) for name, path in relative]
