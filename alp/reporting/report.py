"""One self-contained page per grid: results/<grid>/report.html. Tables are made from the result files, by the same
functions as the files below ``tables/``; figures come from disk as they are.

The same results, code and kept references give the same bytes on one kind of processor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alp.configuration.grid import Grid
from alp.ownership import claimed
from alp.rendering.artefact import PHONE, Artefact, Kind, paths
from alp.rendering.page import ROOM, Shown, render, shown_figure, shown_table, within
from alp.reporting import arm_cards, records, reference, registry, runs, trajectories
from alp.reporting.active_settings import SETTINGS, settings
from alp.reporting.aggregate import build
from alp.reporting.arms import label, named
from alp.reporting.findings import headline
from alp.reporting.leakage import LEAKAGE
from alp.reporting.processor import processor
from alp.reporting.runs import Results
from alp.reproducibility import write_text

SHOWS = "alp.reporting.figures.*"  # whose titles and captions the page shows, for the hash of the code
TEMPLATE = Path(__file__).parent / "report.html.j2"


def report(grid: Grid, results: Path, *, replace: bool = False) -> Path:
    """Write the page and return its path. Raises :class:`UserError` when a figure or a run is missing."""
    path = grid.folder(results) / "report.html"
    page = _page(runs.load(grid, results), grid, results)
    with claimed(path.parent, "report", grid.origin, outputs=[path.name], key="results", beside=True, replace=replace):
        write_text(path, page)
    return path


def _page(loaded: Results, grid: Grid, results: Path) -> str:
    tables, origins = build(loaded), _origins(loaded)
    main, *others = (
        shown_table(artefact, tables[artefact.name], _files("tables", artefact))
        for artefact in registry.of_grid("tables", grid)
    )
    drawn = [_figure(loaded, results, artefact) for artefact in registry.of_grid("figures", grid)]
    first, *figures = within(drawn, ROOM)
    leakage = shown_table(
        LEAKAGE, LEAKAGE.make((grid, results)), [_beside(grid, grid.data_dir(results) / "leakage.json", results)]
    )
    written = trajectories.shown(loaded)
    return render(
        TEMPLATE,
        grid=grid,
        headline=[
            *headline(loaded, {name: table.rounded() for name, table in tables.items()}),
            *reference.sentences(loaded, results),
        ],
        main=main,
        first=first,
        figures=figures,
        tables=[*others, leakage],
        trajectories=written,
        cards=arm_cards.cards(loaded, results, {arm.name for arm in written}),
        bounds=trajectories.BOUNDS,
        setting_names=SETTINGS,
        settings=[settings(loaded, arm.name, arm.runs[0].folder) for arm in loaded.arms],
        provenance=_distinct(origins),
        processor=processor()["kind"],
        devices=sorted({str(origin["device"]) for _, _, origin in origins if origin.get("device")}),
        origins=origins,
        base_identity=loaded.base.config_hash,
    )


def _figure(loaded: Results, results: Path, artefact: Artefact[Grid, Any, Any]) -> Shown:
    grid = loaded.grid
    stem, rebuild = grid.folder(results) / "figures" / artefact.name, f"alp figures {named(grid)} results={results}"
    wide, narrow = (
        records.read_text(stem.with_name(artefact.name + ending), rebuild).encode() for ending in (".svg", PHONE)
    )
    return shown_figure(artefact, wide, _files("figures", artefact), artefact.silent(loaded), narrow)


def _files(kind: Kind, artefact: Artefact[Grid, Any, Any]) -> list[tuple[str, str]]:
    """Name and address of an artefact's files beside the page, but for those that the page alone shows."""
    listed = (path for path in paths(kind, [artefact]) if not path.name.endswith(PHONE))
    return [(path.name, path.as_posix()) for path in listed]


def _beside(grid: Grid, path: Path, results: Path) -> tuple[str, str]:
    return path.name, path.relative_to(grid.folder(results)).as_posix()


def _origins(loaded: Results) -> list[tuple[str, int, dict[str, Any]]]:
    """Arm, seed and ``provenance.json`` of every run: what each was really trained with, whatever is checked out
    now."""
    every = (run for arm in loaded.arms for run in arm.runs)
    return [(label(run.arm), run.seed, records.read_json(run.folder / "provenance.json", run.rebuild)) for run in every]


def _distinct(origins: list[tuple[str, int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The states of code and environment the runs come from, usually one, with the number of runs of each."""
    shared = ("commit", "dirty", "lock", "lock_sha256", "versions")
    states: dict[str, dict[str, Any]] = {}
    for _, _, origin in origins:
        state = {key: origin.get(key) for key in shared}
        entry = states.setdefault(json.dumps(state, sort_keys=True), state | {"runs": 0})
        entry["runs"] += 1
    return list(states.values())
