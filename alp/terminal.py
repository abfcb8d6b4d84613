"""The terminal that a person reads in."""

from __future__ import annotations

import shutil

_NARROWEST, _WIDEST = 60, 120


def columns() -> int:
    """How wide a help text is set: as the terminal, within bounds that can be read."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST), _WIDEST)
