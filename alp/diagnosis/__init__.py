"""How far the policies of somebody else's run are apart: ``diagnose`` on arrays, ``alp diagnose`` on files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alp.diagnosis.library import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from alp.diagnosis import library

    return getattr(library, name)
