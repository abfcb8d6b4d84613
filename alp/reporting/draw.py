"""Figures of a finished grid: results/<grid>/figures/<name>.{svg,png}, and <name>_phone.svg for a phone's screen. What
each shows is its caption, in its module of ``reporting/figures``."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from alp.configuration.grid import Grid
from alp.ownership import claimed
from alp.rendering import plots
from alp.rendering.artefact import PHONE, forget_stale, paths
from alp.reporting import registry, runs
from alp.reporting.runs import Results
from alp.reproducibility import write_text

MADE_BY = "alp.reporting.figures.*"  # what the registry imports, for the hash of the code (alp/code_identity.py)


def figures(grid: Grid, results: Path, *, replace: bool = False) -> Path:
    """Draw every figure of the grid; returns their folder. Raises :class:`alp.errors.UserError` when a run is
    missing."""
    loaded = runs.load(grid, results)
    root = grid.folder(results)
    with plots.style():
        # All or, for want of a file, none.
        drawn = _drawn(loaded)
        with plots.narrow():
            small = {name: plots.svg(figure) for name, figure in _drawn(loaded).items()}
        with claimed(
            root, "figures", grid.origin, outputs=["figures/*"], key="results", beside=True, replace=replace
        ) as claim:
            for name, figure in drawn.items():
                plots.save(figure, root / "figures" / name)
                write_text(root / "figures" / f"{name}{PHONE}", small[name])
            forget_stale(claim, paths("figures", registry.registered("figures")), registry.paths_of("figures", grid))
    return root / "figures"


def _drawn(loaded: Results) -> dict[str, Figure]:
    """Every figure of the grid by name."""
    return {artefact.name: artefact.make(loaded) for artefact in registry.of_grid("figures", loaded.grid)}
