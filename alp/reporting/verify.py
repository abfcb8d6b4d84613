"""``alp verify``: does a folder hold what a manifest says, nothing else, and all of it? Of a build on another kind of
processor: does it conclude the same? The manifest and the files are foreign content."""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from alp.errors import UserError, printable
from alp.foreign import is_folder, reading, reason
from alp.reporting import reference
from alp.reporting.conclusions import Comparison, compare
from alp.reporting.differences import comparable, explain
from alp.reporting.manifest import VALUES, Described, checked, not_one, parse
from alp.reproducibility import machine, provenance, sha256_file

SAME, DIFFERS, CANNOT_TELL = 0, 1, 2
_WIDEST = 200  # characters of a name or a value in a line
_LISTED = 100  # files of one kind that are named
# What a build makes beside the files it can answer for (docs/faults.md): records of time and of this machine, marks and
# locks.
_ROOT_ONLY = ("manifest.json", VALUES, "mlflow.json")
_FOLDERS = ("checkpoints", ".alp")
_FILES = ("timings.jsonl", "run.lock")
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class _Build:
    """A folder with a manifest of its own, and what that describes."""

    root: Path
    content: dict[str, Any]
    described: Described

    def compare_files(self) -> _Files:
        """Is it still what its own manifest says?"""
        return _compare_files(self.root / "manifest.json", self.content, self.root)[0]


@dataclass
class _Files:
    """Lines about each file, by what is the matter with it."""

    differing: list[list[str]] = field(default_factory=list)
    kept: list[list[str]] = field(default_factory=list)  # those of ``differing`` that no processor may make otherwise
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def code(self) -> int:
        """What is known to differ does, whatever else cannot be read."""
        if self.differing or self.missing or self.extra:
            return DIFFERS
        return CANNOT_TELL if self.unreadable else SAME

    def lines(self, differing: list[list[str]]) -> list[str]:
        """About every file that is not as it should be, ``differing`` ones first."""
        lines = [line for block in differing for line in block]
        for word, names in (("missing", self.missing), ("extra", self.extra), ("cannot be read", self.unreadable)):
            lines += [f"{word:<8} {name}" for name in names[:_LISTED]]
            lines += [f"{word:<8} … and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
        return lines


def verify(manifest: Path, folder: Path | None) -> tuple[list[str], int]:
    """Compare ``folder`` (the manifest's own by default) with a manifest, with a reference (``results/<grid>`` by
    default), or with the right one of a folder of references: lines to print, and the exit code.

    0: every file is there and the same, and no other; 1: some differ, are missing, or are not in the manifest; 2:
    nothing is known to differ, but a file or folder cannot be read. Where ``folder`` has a manifest of its own, of
    another kind of processor: 0: no conclusion differs (alp/reporting/conclusions.py), 1: one does, or what no
    processor may change; 2: nothing is concluded. Raises UserError for a manifest that says nothing, or says it in a
    form it never has.
    """
    if is_folder(manifest):
        manifest = _of_folder(manifest, folder)
    plain = _parsed(manifest)
    if isinstance(plain, dict) and "reference" in plain:
        lines, code = _against_reference(manifest, folder)
    else:
        lines, code = _against_manifest(manifest, plain, manifest.parent if folder is None else folder)
    return [printable(line) for line in lines], code


def _parsed(path: Path) -> Any:
    """The value of a file that is to be a manifest or a reference. Raises UserError."""
    with reading("verify", path):
        if not path.is_file():
            raise UserError(f"verify: there is no {path}; a grid's manifest is results/<grid>/manifest.json")
        try:
            return parse("verify", path)
        except ValueError as error:
            raise not_one("verify", path, error) from error


def _manifest(path: Path, plain: Any) -> tuple[dict[str, Any], Described | None]:
    """A manifest, its ``made_from`` by dotted keys, and what it describes. Raises UserError."""
    content, described = checked("verify", path, plain)
    with reading("verify", path):
        return content | {"made_from": dict(comparable(content.get("made_from", {})))}, described


# ---- a manifest ------------------------------------------------------------------------------------------------------


def _against_manifest(manifest: Path, plain: Any, root: Path) -> tuple[list[str], int]:
    content, there = _manifest(manifest, plain)
    files, originals = _compare_files(manifest, content, root)
    build, notes = _own(manifest, root) if files.code != SAME else (None, [])
    if there is None or build is None or there.processor.kind == build.described.processor.kind:
        lines = files.lines(files.differing)
        if files.code != SAME:
            lines += [f"note     {line}" for line in (*originals.notes, *notes, *_circumstances(content))]
        if there is not None and build is not None:
            told = compare(there.numbers, build.described.numbers).summary
            lines.append(f"note     of the paired differences: {told}")
        return [*lines, _summary(content, files)], files.code
    lines, code = _conclusions(there, build)
    if files.kept or files.missing or files.extra:
        code = DIFFERS
    elif files.unreadable and code == SAME:
        code = CANNOT_TELL
    return [*files.lines(files.kept), *lines], code


def _compare_files(manifest: Path, content: dict[str, Any], root: Path) -> tuple[_Files, _Originals]:
    if not root.is_dir():
        raise UserError(f"verify: there is no folder {root}")
    originals, files = _Originals(manifest, content, root), _Files()
    for name, entry in sorted(content["files"].items()):
        _compare(files, root, name, entry, originals)
    _look_around(files, root, manifest, content["files"])
    return files, originals


def _own(manifest: Path, root: Path) -> tuple[_Build | None, list[str]]:
    """The folder as a build with a manifest of its own, where that is another one; and notes why it is none."""
    path = root / "manifest.json"
    if not path.is_file() or path.samefile(manifest):
        return None, []
    try:
        return _built(root), []
    except UserError as error:
        return None, [str(error)]


def _built(root: Path) -> _Build:
    """A build by its own manifest. Raises UserError without one, or where it describes nothing."""
    path = root / "manifest.json"
    content, described = _manifest(path, _parsed(path))
    if described is None:
        raise UserError(f"verify: {path} holds no numbers: alp manifest writes it anew")
    return _Build(root, content, described)


# ---- references and conclusions --------------------------------------------------------------------------------------


def _of_folder(folder: Path, root: Path | None) -> Path:
    """The reference for a build in ``root``. Raises UserError."""
    if root is None:
        raise UserError(
            f"verify: {folder} is a folder: name its manifest.json, or beside a folder of references the build: alp"
            " verify docs/reference results/quick"
        )
    here = _built(root).described
    found = reference.chosen("verify", folder, here.grid, here.processor.kind)
    if found is None:
        raise UserError(f"verify: {folder} holds no reference of the grid {here.grid}")
    return found[0]


def _against_reference(path: Path, folder: Path | None) -> tuple[list[str], int]:
    kept = reference.read("verify", path)
    root = Path("results", kept.grid) if folder is None else folder
    build = _built(root)
    here = build.described
    if here.grid != kept.grid:
        raise UserError(f"verify: {path} is a reference of the grid {kept.grid}, and {root} holds {here.grid}")
    if kept.processor.kind != here.processor.kind:
        return _conclusions(kept, build, whose=f" with the reference {kept.title}")
    files = build.compare_files()
    if files.code != SAME:
        return [_not_its_own(root), _summary(build.content, files)], files.code
    jobs = reference.digests({name: entry["sha256"] for name, entry in build.content["files"].items()})
    if not (differing := reference.differing_jobs(kept, jobs)):
        return [f"{len(jobs)} jobs of {kept.grid} compared: every byte is that of the reference {kept.title}"], SAME
    lines = [f"differs  {_short(name)}" for name in differing[:_LISTED]]
    lines += [f"differs  … and {len(differing) - _LISTED} more"] if len(differing) > _LISTED else []
    lines += [f"note     other than the reference's: {_short(why)}" for why in reference.moved(kept, vars(here))]
    compared = compare(kept.numbers, here.numbers)
    head = f"{len(kept.jobs.keys() | jobs.keys())} jobs of {kept.grid} compared with the reference {kept.title}"
    return [*lines, *_told(compared), f"{head}: {len(differing)} differ; {compared.summary}"], DIFFERS


def _conclusions(there: Described, build: _Build, whose: str = "") -> tuple[list[str], int]:
    """What two builds on different kinds of processor conclude. The one here must be what its own manifest says."""
    here, files = build.described, build.compare_files()
    compared = compare(there.numbers, here.numbers)
    lines = [
        f"note     {there.processor.kind} there, {here.processor.kind} here: other instructions round sums otherwise,"
        " which is another draw of the seeds; conclusions are compared, not bytes"
    ]
    reasons = reference.moved(there, vars(here))
    lines += [f"note     other than there: {_short(why)}" for why in reasons if why != reference.SETTINGS]
    settings = reference.SETTINGS in reasons
    lines += ["differs  the configuration: other settings are another experiment"] if settings else []
    lines += [_not_its_own(build.root)] if files.code != SAME else []
    lines += _told(compared)
    lines.append(f"{compared.known} paired differences of {there.grid} compared{whose}: {compared.summary}")
    if compared.differing or compared.unmatched or settings or files.code == DIFFERS:
        return lines, DIFFERS
    return lines, SAME if compared.known and files.code == SAME else CANNOT_TELL


def _not_its_own(root: Path) -> str:
    return f"differs  {root} is not what its own manifest says: alp verify {root}/manifest.json tells more"


def _told(compared: Comparison) -> list[str]:
    lines = [f"differs  {line}" for line in (*compared.differing, *compared.unmatched)]
    return [*lines, *(f"one side {line}" for line in compared.alone), *(f"tables   {line}" for line in compared.tables)]


# ---- files -----------------------------------------------------------------------------------------------------------


def _summary(content: dict[str, Any], compared: _Files) -> str:
    counts = (
        f"{len(content['files'])} files of {content['grid']} compared: {len(compared.differing)} differing files,"
        f" {len(compared.missing)} missing"
    )
    counts += f", {len(compared.extra)} extra" if compared.extra else ""
    return counts + (f", {len(compared.unreadable)} cannot be read" if compared.unreadable else "")


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}…"


def _compare(compared: _Files, root: Path, name: str, entry: dict[str, Any], originals: _Originals) -> None:
    path, shown = root / name, _short(name)
    try:
        kind = _kind(root, name)
        if kind is None:
            compared.missing.append(shown)
        elif kind:
            compared.differing.append([f"differs  {shown}: {kind}"])
            compared.kept.append(compared.differing[-1])
        elif sha256_file(path) != entry["sha256"]:
            head, *rest = explain(name, path.read_bytes(), originals.read(name))
            compared.differing.append(
                [f"differs  {shown}: {_short(head)}", *(f"         {_short(line)}" for line in rest)]
            )
            if _is_data(name):
                compared.kept.append(compared.differing[-1])
        elif path.stat().st_size != entry["bytes"]:
            compared.unreadable.append(
                f"{shown}: the manifest contradicts itself, the hash is this file's and {entry['bytes']} bytes are not"
            )
    except OSError as error:
        compared.unreadable.append(f"{shown}: {reason(error)}")


def _is_data(name: str) -> bool:
    """Whether a file holds problems, which every processor draws alike."""
    return PurePosixPath(name).match("data/*.jsonl")


def _kind(root: Path, name: str) -> str | None:
    """Empty for a file, None where nothing is, else what is in its place. A build makes no links: what one leads to is
    not of it."""
    path, mode = root, 0
    for part in PurePosixPath(name).parts:
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except ValueError:  # a name that no file can have
            return None
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        if stat.S_ISLNK(mode):
            return f"{_short(path.relative_to(root).as_posix())} is a link"
    if stat.S_ISREG(mode):
        return ""
    return "a folder stands there" if stat.S_ISDIR(mode) else "no ordinary file stands there"


def _look_around(compared: _Files, root: Path, manifest: Path, listed: dict[str, Any]) -> None:
    """What is there and not in the manifest, and what cannot be looked into."""

    def blocked(error: OSError) -> None:
        path = Path(error.filename or root)
        compared.unreadable.append(f"{_short(os.path.relpath(path, root))}: {reason(error)}")

    itself = manifest.resolve()
    for folder, inner, names in os.walk(root, onerror=blocked):
        below = Path(folder).relative_to(root)
        inner[:] = sorted(name for name in inner if not _apart((below / name).parts, is_folder=True))
        links = [name for name in inner if (Path(folder) / name).is_symlink()]
        for name in sorted([*names, *links]):
            inside = below / name
            if inside.as_posix() in listed or _apart(inside.parts) or (Path(folder) / name).resolve() == itself:
                continue
            if name in links and any(key.startswith(f"{inside.as_posix()}/") for key in listed):
                continue  # named already, with each file it stands for
            compared.extra.append(_short(inside.as_posix()))


def _apart(parts: tuple[str, ...], *, is_folder: bool = False) -> bool:
    """Whether a build makes this without answering for its bytes."""
    if parts[0] == "logs" and (is_folder or len(parts) > 1):
        return True
    if is_folder:
        return parts[-1] in _FOLDERS
    name, untold = parts[-1], parts[-1].endswith((".timings.jsonl", ".log"))
    return (len(parts) == 1 and parts[0] in _ROOT_ONLY) or name in _FILES or untold


class _Originals:
    """What the manifest was made over, as far as it can still be had: the files beside it, or its values."""

    def __init__(self, manifest: Path, content: dict[str, Any], root: Path) -> None:
        self._folder = manifest.parent if manifest.parent.resolve() != root.resolve() else None
        self._files = content["files"]
        self.notes: list[str] = []
        self._values = self._read_values(manifest.parent / VALUES, content.get("values_sha256"))

    def _read_values(self, path: Path, expected: str | None) -> dict[str, str]:
        if not os.path.lexists(path):
            return {}
        try:
            with reading("verify", path):
                if sha256_file(path) != expected:
                    raise UserError(f"{path} is not the one that this manifest was made with")
                values = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(values, dict) or not all(isinstance(text, str) for text in values.values()):
                    raise UserError(f"{path} holds no texts by name")
                return values
        except UserError as error:
            self.notes.append(f"{error}: differences are told without it")
            return {}

    def read(self, name: str) -> bytes | None:
        """The original bytes, or None."""
        if name in self._values:
            return self._values[name].encode(errors="replace")
        try:
            path = None if self._folder is None or _kind(self._folder, name) != "" else self._folder / name
            if path is not None and sha256_file(path) == self._files[name]["sha256"]:
                return path.read_bytes()
        except OSError:  # the file at hand is compared all the same
            pass
        return None


def _circumstances(content: dict[str, Any]) -> Iterator[str]:
    """What this installation has other than the one the manifest was made with: the usual reasons of a difference."""
    there = content["made_from"]
    here = dict(comparable(provenance() | {"python": platform.python_version(), "machine": machine()}))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            yield _short(f"{key}: {there.get(key)} there, {here.get(key)} here")
