"""Tables of a finished grid: results/<grid>/tables/<name>.{csv,md,tex}.

CSV is for machines: fractions of one (the published percentages too), six digits, empty where there is no figure.
Markdown and LaTeX are rounded for people: percent or points with one digit, intervals in brackets.
"""

from __future__ import annotations

from pathlib import Path

from alp.configuration.grid import Grid
from alp.ownership import claimed
from alp.rendering.artefact import forget_stale, paths
from alp.rendering.tables import RENDERINGS, Table
from alp.reporting import registry, runs
from alp.reporting.runs import Results
from alp.reproducibility import write_text

MADE_BY = "alp.reporting.tables.*"  # what the registry imports, for the hash of the code (alp/code_identity.py)


def build(loaded: Results) -> dict[str, Table]:
    """Every table of the grid by name, in the order of the page."""
    return {artefact.name: artefact.make(loaded) for artefact in registry.of_grid("tables", loaded.grid)}


def aggregate(grid: Grid, results: Path, *, replace: bool = False) -> Path:
    """Write every table of the grid; returns their folder. Raises :class:`alp.errors.UserError` when a run is
    missing."""
    built = build(runs.load(grid, results))
    root = grid.folder(results)
    with claimed(
        root, "aggregate", grid.origin, outputs=["tables/*"], key="results", beside=True, replace=replace
    ) as claim:
        for name, table in built.items():
            for ending, render in RENDERINGS.items():
                write_text(root / "tables" / f"{name}{ending}", render(table))
        forget_stale(claim, paths("tables", registry.registered("tables")), registry.paths_of("tables", grid))
    return root / "tables"
