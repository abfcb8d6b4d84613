"""Modules of the user's own: found, hashed and imported by one search, so that the hash is of what runs.

Python's own finders look in the folders of the Python path and then in the current folder, whatever way ``alp`` was
started. What a module imports is read from its source, nothing is run for it; what it imports of the standard library
and of ``alp`` counts by the version and the code of these, and what it imports of installed packages by their versions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from alp.errors import UserError
from alp.reproducibility import PACKAGE, sha256_file


@dataclass
class Closure:
    """What importing a module can run: files of the user's own by module name, and the installed packages with their
    versions."""

    files: dict[str, Path] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """One digest over names and contents, wherever the files lie."""
        digest = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            digest.update(f"{name}\0{sha256_file(path)}\0".encode())
        for name, version in sorted(self.packages.items()):
            digest.update(f"{name}=={version}\0".encode())
        return digest.hexdigest()


def search_path() -> list[str]:
    """Where the user's modules are looked for: the Python path as it is, the current folder behind it, wherever it
    stood before."""
    here = Path.cwd().resolve()
    return [entry for entry in sys.path if entry and Path(entry).resolve() != here] + [str(here)]


@contextmanager
def _searching() -> Iterator[None]:
    before = sys.path[:]
    sys.path[:] = search_path()
    try:
        yield
    finally:
        sys.path[:] = before


def _find(name: str, path: list[str] | None) -> ModuleSpec | None:
    """What Python would import under that full name, without importing it or its parents; ``path`` are the places of
    the parent."""
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except KeyError:  # a package without a file in it asks for its parent among what is imported
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(Path(place) / name.rpartition(".")[2]) for place in path or ()]
        if spec is not None:
            return spec
    return None


def closure(dotted: str) -> Closure:
    """The import closure of a module; of the parent where the last part is no module but a name in it. Empty for what
    is not found."""
    found, todo = Closure(), [dotted]
    specs: dict[str, ModuleSpec | None] = {}
    importlib.invalidate_caches()
    with _searching():
        while todo:
            for spec in _chain(todo.pop(), specs):
                if spec.name in found.files or not (path := _own(spec, found)):
                    continue
                found.files[spec.name] = path
                todo += _imports(path, spec)
    return found


def _chain(dotted: str, specs: dict[str, ModuleSpec | None]) -> Iterator[ModuleSpec]:
    """The packages above a module and the module, as far as they are found."""
    places: list[str] | None = None
    parts = dotted.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        if name not in specs:
            specs[name] = _find(name, places)
        spec = specs[name]
        if spec is None:
            return
        yield spec
        if spec.submodule_search_locations is None:
            return
        places = list(spec.submodule_search_locations)


def _own(spec: ModuleSpec, found: Closure) -> Path | None:
    """The file of a module of the user's own; what is installed goes to the packages, what Python or ``alp`` brings
    nowhere."""
    if not spec.has_location or spec.origin is None:
        return None
    path = Path(spec.origin).resolve()
    if path.is_relative_to(PACKAGE):
        return None
    if {"site-packages", "dist-packages"} & set(path.parts) or any(
        path.is_relative_to(folder) for folder in _installed()
    ):
        for package in _packages().get(spec.name.partition(".")[0], ()):
            found.packages[package] = metadata.version(package)
        return None
    return path


@cache
def _installed() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib", "platstdlib")})


@cache
def _packages() -> dict[str, list[str]]:
    return {name: sorted({each for each in found if each}) for name, found in metadata.packages_distributions().items()}


def _imports(path: Path, spec: ModuleSpec) -> set[str]:
    """Full names of everything a source file imports, inside functions too; of what is no source nothing can be
    read."""
    if path.suffix != ".py":
        return set()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # importing it says so
        return set()
    package = spec.name if spec.submodule_search_locations is not None else spec.name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return {name for name in found if name}


def load(dotted: str) -> Any:
    """Import a module of the user's own. The current folder stays on the Python path: functions may import as late as
    they run.

    Raises UserError when what was imported is not what was found and hashed, and whatever the import raises.
    """
    expected = closure(dotted)
    sys.path[:] = search_path()
    before = set(sys.modules)
    found = importlib.import_module(dotted)
    for name in sorted({*expected.files, *(set(sys.modules) - before)}):
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is None:
            continue
        path, known = _own(spec, Closure()), expected.files.get(name)
        if path is None and known is None:
            continue
        if known is None:
            raise UserError(
                f"{dotted} imports {name} ({path}) in a way that its source does not show; write an import statement"
                " for it"
            )
        if path != known:
            raise UserError(
                f"{name} is {path or spec.origin} in this process, and {known} is what Python finds by that name;"
                " rename one"
            )
    return found


def sha256(dotted: str) -> str | None:
    """Digest of the closure of a module, or of the module that holds the function of that name; None where there is
    none."""
    found = closure(dotted)
    return found.sha256 if found.files else None
