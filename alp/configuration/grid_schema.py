"""The configuration of the verbs that work on a whole grid: aggregate, figures, track, report, manifest."""

from __future__ import annotations

from alp.configuration.fields import Strict


class GridConfig(Strict):
    """``grid`` is a name in ``configs/grid/`` or a path; ``results`` the root that holds ``<grid>/``."""

    grid: str
    results: str
    replace: bool = False  # what was made from another form of the grid file gives way; without it that is refused


class ManifestConfig(GridConfig):
    """``reference`` names the folder that the grid's reference is written into (docs/faults.md); none without."""

    reference: str | None = None
