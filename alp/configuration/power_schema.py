"""The configuration of ``alp power``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from alp.configuration.fields import Strict


class PowerConfig(Strict):
    """``grid`` is a name in ``configs/grid/``, a path, or the folder of a built grid; ``results`` the root that holds
    ``<grid>/``, not read beside a folder."""

    grid: str
    """A name in ``configs/grid/``, the path of a grid file, or the folder of a built grid."""
    results: str
    """The root that holds ``<grid>/``; not read beside a folder."""
    effect: Annotated[float, Field(gt=0, le=100)]
    """Percentage points to be told from zero."""
    power: Annotated[float, Field(gt=0.05, lt=1)]
    """The chance that a grid does so."""
