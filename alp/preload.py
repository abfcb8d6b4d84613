"""The libraries that a job of a model needs, imported before the rooms are: seconds of every start, spent in one place.

Where scikit-learn and scipy are installed (MLflow brings them) transformers imports them, and pandas with them, for
assisted generation and for losses of object detection. Nothing here uses those; they are a fifth of a start.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import cast

_UNUSED = ("sklearn", "scipy")


def load_libraries() -> None:
    """Import torch and transformers' models without what nothing here uses. The process may import that later itself;
    only transformers goes on saying that it is not there."""
    if "transformers" in sys.modules:
        return
    blocked = [name for name in _UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked, cast(ModuleType, None)))  # Python's word for: cannot be imported
    try:
        for name in ("generation.candidate_generator", "modeling_utils"):
            import_module(f"transformers.{name}")
    finally:
        for name in blocked:
            del sys.modules[name]
