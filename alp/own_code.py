"""Modules of the user's own: found, hashed and imported by one search (alp/code_identity.py): the hash is of what
runs.

What a module imports of the standard library and of ``alp`` counts by the version and the code of these, and what it
imports of installed packages by their versions.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from alp.code_identity import Closure, Walk, own_file, search_path
from alp.errors import UserError


def closure(dotted: str) -> Closure:
    """The user's files that importing a module can run, and packages with their versions; of the parent where the last
    part is no module but a name in it. Empty for what is not found."""
    return Walk((), None).run([dotted])


def load(dotted: str) -> Any:
    """Import a module of the user's own. The current folder stays on the Python path: functions may import as late as
    they run.

    Raises UserError when what was imported is not what was found and hashed, and whatever the import raises.
    """
    expected = closure(dotted).files
    sys.path[:] = search_path()
    before, passing = set(sys.modules), Closure()
    module = importlib.import_module(dotted)
    for name in sorted({*expected, *(set(sys.modules) - before)}):
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is None:
            continue
        path, hashed = own_file(spec, passing), expected.get(name)
        if path is None and hashed is None:
            continue
        if hashed is None:
            raise UserError(
                f"{dotted} imports {name} ({path}) in a way that its source does not show; write an import statement"
                " for it"
            )
        if path != hashed:
            raise UserError(
                f"{name} is {path or spec.origin} in this process, and {hashed} is what Python finds by that name;"
                " rename one"
            )
    return module


def sha256(dotted: str) -> str | None:
    """Digest of the closure of a module, or of the module that holds the function of that name; None where there is
    none."""
    user_code = closure(dotted)
    return user_code.sha256 if user_code.files else None
