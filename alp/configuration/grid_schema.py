"""The configuration of the verbs that work on a whole grid: aggregate, figures, track, report, manifest."""

from __future__ import annotations

from alp.configuration.fields import Strict


class GridConfig(Strict):
    """``grid`` is a name in ``configs/grid/`` or a path; ``results`` the root that holds ``<grid>/``."""

    grid: str
    """A name in ``configs/grid/``, or the path of a grid file."""
    results: str
    """The root that holds ``<grid>/``."""
    replace: bool = False
    """Whether what was made from another form of the grid file gives way; without it that is refused."""


class ManifestConfig(GridConfig):
    """``reference`` names the folder that the grid's reference is written into (docs/faults.md); none without."""

    reference: str | None = None
    """Folder that the grid's reference is written into, what another build is compared with (docs/faults.md); null:
    none."""
