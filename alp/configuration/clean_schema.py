"""The configuration of ``alp clean``."""

from __future__ import annotations

from alp.configuration.fields import Strict


class CleanConfig(Strict):
    """``results`` is the root that holds the grids."""

    results: str
    yes: bool  # remove without asking
    missing: bool  # also everything of a grid whose file is gone
    all: bool  # everything that carries alp's marks
