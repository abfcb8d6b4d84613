"""What a job computes with, as one hash: the syntax of the modules it runs, the versions of the packages they import.

A hash is over syntax trees without comments, docstrings and layout, so that only what changes a program starts a job
again. What a module runs is read from its imports, those inside functions too, and nothing is run for it. Imports for
type checkers alone do not count. Two forms of text count like imports:

- ``"alp.room.module"``: a module that is run by name, in a worker for instance; ``"alp.room.*"``: all of a folder's;
- ``NAME = {"key": "alp.room.module:Object", …}`` at the top of a module: a lazy registry. Of one that ``CHOSEN_BY``
  lists a job uses the entries that its configuration chooses, of another every entry.

Modules of the user's own, which a configuration names, are found as Python finds them: on the Python path, then in the
current folder. The standard library counts by the version of Python.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import invalidate_caches, metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from alp.nested import leaves
from alp.reproducibility import PACKAGE, ROOT

# Registries by name, and the last part of the configuration's keys whose values choose from them.
CHOSEN_BY = {"SCHEMAS": "schema", "ENTRIES": "verb", "TASKS": "task.name", "ENGINES": "engine", "TOOLS": "tools.tool"}
# Folders whose module of the name that a configuration's key holds is run, by the last part of the key.
NAMED_IN = {"loss_form": "policy.losses"}
OWN_MODULES = ("module", "grader")  # last parts of the keys that name modules of the user's own
_ENTRY = re.compile(r"\w+(\.\w+)+:\w+")
_DOTTED = re.compile(r"\w+(\.\w+)+(\.\*)?")


@dataclass(frozen=True)
class Source:
    """What one file says."""

    digest: str  # of what it computes, entries of registries left out
    imports: tuple[tuple[int, str, tuple[str, ...]], ...] = ()  # level, module, names
    texts: tuple[str, ...] = ()  # that may be names of modules
    registries: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()


@lru_cache(maxsize=4096)
def read_source(content: bytes) -> Source:
    """The meaning of a Python file; of what is none, its bytes (importing it says what is wrong)."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return Source(hashlib.sha256(content).hexdigest())
    tree.body = _meaningful(tree.body)
    registries = tuple(_registries(tree))
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    texts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Constant):
            node.kind = None  # the u of u"…"
            if isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
                texts.add(node.value)
    digest = hashlib.sha256(ast.dump(tree).encode(errors="surrogatepass")).hexdigest()
    return Source(digest, tuple(imports), tuple(sorted(texts)), registries)


def _meaningful(body: list[Any]) -> list[Any]:
    """Statements without strings that stand by themselves (docstrings) and blocks for type checkers, inner ones too."""
    kept: list[Any] = []
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        if isinstance(node, ast.If) and _for_type_checkers(node.test):
            kept += _meaningful(node.orelse)
            continue
        for name in ("body", "orelse", "finalbody"):
            if isinstance(inner := getattr(node, name, None), list):
                setattr(node, name, _meaningful(inner) or ([ast.Pass()] if name == "body" else []))
        for branch in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            branch.body = _meaningful(branch.body) or [ast.Pass()]
        kept.append(node)
    return kept


def _for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _registries(tree: ast.Module) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """Registries of a module, whose entries leave its tree: each counts where it is chosen."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target: ast.expr = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        else:
            continue
        if not isinstance(target, ast.Name) or not isinstance(node.value, ast.Dict) or not node.value.values:
            continue
        pairs = [
            (name.value, entry.value)
            for name, entry in zip(node.value.keys, node.value.values, strict=True)
            if isinstance(name, ast.Constant) and isinstance(entry, ast.Constant) and isinstance(entry.value, str)
        ]
        if len(pairs) == len(node.value.values) and all(_ENTRY.fullmatch(entry) for _, entry in pairs):
            node.value = ast.Dict(keys=[], values=[])
            yield target.id, tuple((str(name), entry) for name, entry in pairs)


@dataclass
class Closure:
    """What running a module can run: files by module name, what each says, chosen entries of registries, versions of
    installed packages."""

    files: dict[str, Path] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """One digest over all of it, wherever the files lie."""
        digest = hashlib.sha256()
        for part in (self.digests, self.chosen, self.packages):
            for name, value in sorted(part.items()):
                digest.update(f"{name}\0{value}\0".encode())
            digest.update(b"\0")
        return digest.hexdigest()


class Walk:
    """From module to module, along imports and the names that stand for them."""

    def __init__(self, choices: Iterable[tuple[str, str]], package: Path | None) -> None:
        self.closure = Closure()
        self._package = package
        self._choices = list(choices)
        self._specs: dict[str, ModuleSpec | None] = {}

    def run(self, starts: Iterable[str]) -> Closure:
        """What the modules ``starts`` can run; of a dotted name whose last part is no module, what its parents can."""
        todo, seen = [*starts], set[str]()
        invalidate_caches()
        with searching():
            while todo:
                if (dotted := todo.pop()) in seen:
                    continue
                seen.add(dotted)
                for spec in self._chain(dotted):
                    if spec.name not in self.closure.files and (path := own_file(spec, self.closure, self._package)):
                        todo += self._enter(spec, path)
        return self.closure

    def _enter(self, spec: ModuleSpec, path: Path) -> list[str]:
        """Take a module in; returns the full names of what it runs. Of what is no source nothing can be read."""
        content = path.read_bytes()
        self.closure.files[spec.name] = path
        source = read_source(content) if path.suffix == ".py" else Source(hashlib.sha256(content).hexdigest())
        self.closure.digests[spec.name] = source.digest
        package = spec.name if spec.submodule_search_locations is not None else spec.name.rpartition(".")[0]
        names = [name for level, module, parts in source.imports for name in _absolute(level, module, parts, package)]
        if self._package is not None:
            names += self._run_by_name(source.texts, self._package)
        for registry, pairs in source.registries:
            for name, entry in self._picked(registry, dict(pairs)).items():
                self.closure.chosen[f"{spec.name}.{registry}[{name}]"] = entry
                names.append(entry.partition(":")[0])
        return names

    @staticmethod
    def _run_by_name(texts: Iterable[str], package: Path) -> Iterator[str]:
        """Modules that texts of a module name, those of a folder where one ends with ``.*``."""
        for text in texts:
            if text.partition(".")[0] != package.name:
                continue
            if text.endswith(".*"):
                folder = text.removesuffix(".*")
                yield from (
                    f"{folder}.{path.stem}" for path in package.parent.joinpath(*folder.split(".")).glob("*.py")
                )
            else:
                yield text

    def _picked(self, registry: str, entries: dict[str, str]) -> dict[str, str]:
        """The entries that the configuration chooses; all of them where nothing chooses."""
        ending = CHOSEN_BY.get(registry)
        values = [value for key, value in self._choices if ending and f".{key}".endswith(f".{ending}")]
        return {name: entry for name, entry in entries.items() if name in values} or entries

    def _chain(self, dotted: str) -> Iterator[ModuleSpec]:
        """The packages above a module and the module, as far as they are found; nothing below an installed package."""
        places: list[str] | None = None
        parts = dotted.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[:count])
            if name not in self._specs:
                self._specs[name] = self._find(name, places)
            spec = self._specs[name]
            if spec is None:
                return
            yield spec
            if spec.submodule_search_locations is None or is_installed(spec):
                return
            places = list(spec.submodule_search_locations)

    def _find(self, name: str, places: list[str] | None) -> ModuleSpec | None:
        """What Python would import under that full name, without importing it or its parents; ``places`` are those of
        the parent."""
        if self._package is not None and name.partition(".")[0] == self._package.name:
            return PathFinder.find_spec(name, places or [str(self._package.parent)])
        for finder in sys.meta_path:
            try:
                spec = finder.find_spec(name, places)
            except KeyError:  # a package without a file in it asks for its parent among what is imported
                spec = ModuleSpec(name, None, is_package=True)
                spec.submodule_search_locations = [str(Path(above) / name.rpartition(".")[2]) for above in places or ()]
            if spec is not None:
                return spec
        return None


def _absolute(level: int, module: str, names: tuple[str, ...], package: str) -> set[str]:
    """Full names that one import statement can mean."""
    if level:
        above = package.split(".")[: len(package.split(".")) - level + 1]
        module = ".".join([*above, module] if module else above)
    return {name for name in (module, *(f"{module}.{name}" for name in names)) if name and not name.startswith(".")}


def own_file(spec: ModuleSpec, closure: Closure, package: Path | None = None) -> Path | None:
    """The file of a module of ``package`` or of the user's own. What is installed goes to the packages of ``closure``,
    what Python or another ``alp`` brings nowhere."""
    if not spec.has_location or spec.origin is None:
        return None
    path = _resolved(spec.origin)
    if package is not None and path.is_relative_to(package):
        return path
    if path.is_relative_to(PACKAGE):
        return None
    if is_installed(spec):
        for distribution in _distributions().get(spec.name.partition(".")[0], ()):
            if distribution not in closure.packages:
                closure.packages[distribution] = metadata.version(distribution)
        return None
    return path


def is_installed(spec: ModuleSpec) -> bool:
    """Whether a module came with Python or a package of this environment."""
    return spec.has_location and spec.origin is not None and _lies_in_a_package(_resolved(spec.origin))


@lru_cache(maxsize=8192)
def _resolved(origin: str) -> Path:
    return Path(origin).resolve()


@lru_cache(maxsize=8192)
def _lies_in_a_package(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(map(path.is_relative_to, _installed()))


@cache
def _installed() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib", "platstdlib")})


@cache
def _distributions() -> dict[str, list[str]]:
    """Installed distributions by the top-level names they bring."""
    return {top: sorted(set(filter(None, names))) for top, names in metadata.packages_distributions().items()}


def search_path() -> list[str]:
    """Where the user's modules are looked for: the Python path as it is, the current folder behind it, wherever it
    stood before."""
    here = Path.cwd().resolve()
    return [entry for entry in sys.path if entry and Path(entry).resolve() != here] + [str(here)]


@contextmanager
def searching() -> Iterator[None]:
    """The Python path is :func:`search_path` meanwhile."""
    before = sys.path[:]
    sys.path[:] = search_path()
    try:
        yield
    finally:
        sys.path[:] = before


def job_closure(module: str, config: Mapping[str, Any], package: Path = PACKAGE) -> Closure:
    """What a job of ``module`` runs under the plain configuration ``config``: the source of ``package``, modules of the
    user's own that the configuration names, the versions of packages and of Python."""
    choices = choices_of(config)
    named = [(key.rpartition(".")[2], value) for key, value in choices]
    user_modules = [value for key, value in named if key in OWN_MODULES]
    named_modules = [f"{package.name}.{NAMED_IN[key]}.{value}" for key, value in named if key in NAMED_IN]
    closure = Walk(choices, package).run([module, *user_modules, *named_modules])
    closure.packages["python"] = platform.python_version()
    return closure


def choices_of(config: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The part of a configuration that decides which code runs: dotted keys and what they name."""
    endings = (*CHOSEN_BY.values(), *NAMED_IN, *OWN_MODULES)
    return tuple(
        (key, value)
        for key, value in leaves(config, lists=True)
        if isinstance(value, str)
        and any(f".{key}".endswith(f".{ending}") for ending in endings)
        and ".options." not in key  # which are the user's own code's
    )


_hashes: dict[tuple[object, ...], str] = {}


def code_hash(module: str, config: Mapping[str, Any], *assets: Path) -> str:
    """SHA-256 of :func:`job_closure` and of the bytes of ``assets`` (templates, captions): a job re-runs when what it
    computes with changes, and only then. Computed once a process for jobs that choose the same code of this package."""
    choices = choices_of(config)
    if any(key.rpartition(".")[2] in OWN_MODULES for key, _ in choices):
        return _hash(job_closure(module, config), assets)
    if (key := (module, choices, assets)) not in _hashes:
        _hashes[key] = _hash(job_closure(module, config), assets)
    return _hashes[key]


def _hash(closure: Closure, assets: Iterable[Path]) -> str:
    digest = hashlib.sha256(closure.sha256.encode())
    for path in sorted(assets):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
