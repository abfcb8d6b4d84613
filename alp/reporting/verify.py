"""``alp verify``: does a folder hold what a manifest says, nothing else, and all of it? The manifest and the files are
foreign content."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from alp.configuration.fields import is_name
from alp.errors import UserError, printable
from alp.foreign import once, read_text, reading, reason
from alp.reporting.differences import comparable, explain
from alp.reporting.manifest import FORMAT, VALUES
from alp.reproducibility import machine, provenance, sha256_file

SAME, DIFFERS, CANNOT_TELL = 0, 1, 2
_HASH = re.compile(r"[0-9a-f]{64}")
_WIDEST = 200  # characters of a name or a value in a line
_LISTED = 100  # files of one kind that are named
# What a build makes beside the files it can answer for (docs/faults.md): records of time and of this machine, marks and
# locks.
_ROOT_ONLY = ("manifest.json", VALUES, "mlflow.json")
_FOLDERS = ("checkpoints", ".alp")
_FILES = ("timings.jsonl", "run.lock")
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass
class _Comparison:
    """Lines about each file, by what is the matter with it."""

    differing: list[list[str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def code(self) -> int:
        """What is known to differ does, whatever else cannot be read."""
        if self.differing or self.missing or self.extra:
            return DIFFERS
        return CANNOT_TELL if self.unreadable else SAME


def verify(manifest: Path, folder: Path | None) -> tuple[list[str], int]:
    """Compare ``folder`` (the manifest's own by default) with a manifest: lines to print, and the exit code.

    0: every file is there and the same, and no other; 1: some differ, are missing, or are not in the manifest; 2:
    nothing is known to differ, but a file or folder cannot be read. Raises UserError for a manifest that says nothing,
    or says it in a form it never has.
    """
    content = _read(manifest)
    root = manifest.parent if folder is None else folder
    if not root.is_dir():
        raise UserError(f"verify: there is no folder {root}")
    originals, compared = _Originals(manifest, content, root), _Comparison()
    for name, entry in sorted(content["files"].items()):
        _compare(compared, root, name, entry, originals)
    _look_around(compared, root, manifest, content["files"])
    lines = [line for block in compared.differing for line in block]
    for word, names in (
        ("missing", compared.missing),
        ("extra", compared.extra),
        ("cannot be read", compared.unreadable),
    ):
        lines += [f"{word:<8} {name}" for name in names[:_LISTED]]
        lines += [f"{word:<8} … and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    if compared.code != SAME:
        lines += [f"note     {line}" for line in (*originals.notes, *_circumstances(content))]
    lines.append(_summary(content, compared))
    return [printable(line) for line in lines], compared.code


def _summary(content: dict[str, Any], compared: _Comparison) -> str:
    counts = (
        f"{len(content['files'])} files of {content['grid']} compared: {len(compared.differing)} differing files,"
        f" {len(compared.missing)} missing"
    )
    counts += f", {len(compared.extra)} extra" if compared.extra else ""
    return counts + (f", {len(compared.unreadable)} cannot be read" if compared.unreadable else "")


def _read(path: Path) -> dict[str, Any]:
    """The manifest, whole and of the form it is written in. Raises UserError."""
    with reading("verify", path):
        if not path.is_file():
            raise UserError(f"verify: there is no {path}; a grid's manifest is results/<grid>/manifest.json")
        return _parsed(path, read_text("verify", path))


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        content: Any = json.loads(text, object_pairs_hook=once, parse_constant=_no_number)
        _check(path, content)
        content["made_from"] = dict(comparable(content.get("made_from", {})))
    except (ValueError, AttributeError) as error:
        raise UserError(f"verify: {path} is no manifest of format {FORMAT}: {reason(error)}") from error
    return content  # type: ignore[no-any-return]


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _check(path: Path, content: Any) -> None:
    """Raises UserError for names that lead elsewhere, ValueError for what no manifest says."""
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or type(content.get("format")) is not int or content["format"] != FORMAT:
        raise ValueError(f"'format' {FORMAT} and 'files' expected")
    if not files:
        raise ValueError("it names no file, so there is nothing to compare")
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if name.startswith("/") or ".." in pure.parts or not pure.parts:
            raise UserError(f"verify: {path} names the file '{_short(name)}', outside its folder")
        if pure.as_posix() != name:
            raise ValueError(f"'{_short(name)}' is another way to write '{_short(pure.as_posix())}'")
        known = isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and _HASH.fullmatch(entry["sha256"])
        if not known or type(entry.get("bytes")) is not int or entry["bytes"] < 0:
            raise ValueError(f"'{_short(name)}' needs 'sha256', 64 hexadecimal digits, and 'bytes', a number")
    if not isinstance(content.get("grid"), str) or not is_name(content["grid"]):
        raise ValueError("'grid' must be the name of a grid")
    if not isinstance(content.get("made_from", {}), dict) or not isinstance(content.get("values_sha256", ""), str):
        raise ValueError("'made_from' must be a mapping and 'values_sha256' a hash")


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[:_WIDEST]}…"


def _compare(compared: _Comparison, root: Path, name: str, entry: dict[str, Any], originals: _Originals) -> None:
    path, shown = root / name, _short(name)
    try:
        kind = _kind(root, name)
        if kind is None:
            compared.missing.append(shown)
        elif kind:
            compared.differing.append([f"differs  {shown}: {kind}"])
        elif sha256_file(path) != entry["sha256"]:
            head, *rest = explain(name, path.read_bytes(), originals.read(name))
            compared.differing.append(
                [f"differs  {shown}: {_short(head)}", *(f"         {_short(line)}" for line in rest)]
            )
        elif path.stat().st_size != entry["bytes"]:
            compared.unreadable.append(
                f"{shown}: the manifest contradicts itself, the hash is this file's and {entry['bytes']} bytes are not"
            )
    except OSError as error:
        compared.unreadable.append(f"{shown}: {reason(error)}")


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


def _look_around(compared: _Comparison, root: Path, manifest: Path, listed: dict[str, Any]) -> None:
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
