"""The configuration of ``alp clean``."""

from __future__ import annotations

from alp.configuration.fields import Strict


class CleanConfig(Strict):
    """``results`` is the root that holds the grids."""

    results: str
    """The root that holds the grids."""
    yes: bool
    """Whether to remove without asking."""
    missing: bool
    """Whether to remove also everything of a grid whose file is gone."""
    all: bool
    """Whether to remove everything that carries alp's marks, whatever asks for it."""
