"""Tables and figures of a grid, each registered where it is made: a module of ``reporting/tables`` or
``reporting/figures`` declares ``ARTEFACT`` and defines ``make``; where a figure may have nothing to show, ``silent``.

The declaration is read from the source, not imported: the workflow needs the names at every start of every job, and
what draws needs matplotlib. A declaration that lacks something is an error here, before anything is computed.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from alp.configuration.grid import Grid
from alp.rendering.artefact import Artefact, Kind, never_silent, paths
from alp.reporting import arms

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """``ARTEFACT`` of a module, all of it literals: ``order`` on the page, ``title`` and ``caption`` in plain text,
    ``condition`` the name of a function of a grid in :mod:`alp.reporting.arms`."""

    order: int
    title: str
    caption: str
    condition: str = "always"


@cache
def registered(kind: Kind) -> tuple[Artefact[Grid, Any, Any], ...]:
    """Every table or figure there is, in the order of the page. Raises ValueError for a faulty declaration."""
    return read(_PACKAGE / kind, f"{__package__}.{kind}")


def of_grid(kind: Kind, grid: Grid) -> list[Artefact[Grid, Any, Any]]:
    """Those of a grid, known before anything ran."""
    return [artefact for artefact in registered(kind) if artefact.condition(grid)]


def names(kind: Kind, grid: Grid) -> list[str]:
    """Their names alone."""
    return [artefact.name for artefact in of_grid(kind, grid)]


def paths_of(kind: Kind, grid: Grid) -> list[Path]:
    """Their files, relative to the grid's folder."""
    return paths(kind, of_grid(kind, grid))


def read(folder: Path, package: str) -> tuple[Artefact[Grid, Any, Any], ...]:
    """The artefacts of a package's modules, by ``order``, those of equal order by name."""
    stems = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    declared = {stem: _read_module(folder / f"{stem}.py") for stem in stems}
    return tuple(
        Artefact(
            name=stem,
            title=declaration.title,
            caption=declaration.caption,
            condition=getattr(arms, declaration.condition),
            make=_lazy(f"{package}.{stem}", "make"),
            silent=_lazy(f"{package}.{stem}", "silent") if "silent" in functions else never_silent,
        )
        for stem, (declaration, functions) in sorted(declared.items(), key=lambda item: item[1][0].order)
    )


def _lazy(module: str, name: str) -> Callable[[Any], Any]:
    """A function of a module, imported when it is called."""

    def call(loaded: Any) -> Any:
        return getattr(importlib.import_module(module), name)(loaded)

    return call


def _read_module(path: Path) -> tuple[Declaration, frozenset[str]]:
    """What a module declares, checked, and the names of its functions. Raises ValueError with the module's path."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    functions = frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))
    if "make" not in functions:
        raise ValueError(f"{path}: missing: a function 'make'")
    call = next((node.value for node in body if isinstance(node, ast.Assign) and _assigns(node, "ARTEFACT")), None)
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError(f"{path}: missing: ARTEFACT = Declaration(order=…, title=…, caption=…)")
    try:
        given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except ValueError as error:
        raise ValueError(f"{path}: ARTEFACT holds something that is no literal: {error}") from None
    known = {field.name: field.default for field in fields(Declaration)}
    missing = [name for name, default in known.items() if default is MISSING and given.get(name) in (None, "")]
    unexpected = sorted(given.keys() - known.keys())
    if missing or unexpected:
        raise ValueError(
            f"{path}: ARTEFACT: missing: {', '.join(missing) or 'nothing'};"
            f" unexpected: {', '.join(unexpected) or 'nothing'}"
        )
    declaration = Declaration(**given)
    if not callable(getattr(arms, declaration.condition, None)):
        raise ValueError(f"{path}: ARTEFACT: alp.reporting.arms has no condition '{declaration.condition}'")
    return declaration, functions


def _assigns(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
