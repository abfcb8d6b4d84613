"""The mark of a job, ``<folder>/.alp/<job>/mark.json``: reading it, what it covers, what it says in words, and removing
what it lists."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from alp.nested import leaves

MARKS = ".alp"
FORMAT = 1
_SKELETON = ("lock", "holder.json", "mark.json.new")  # what a start that was killed before its mark can leave


def read_mark(folder: Path, job: str) -> dict[str, Any] | None:
    """The mark of a job; None where there is none that this version can read: then nothing there is ours."""
    path = folder / MARKS / job / "mark.json"
    if (folder / MARKS).is_symlink() or path.parent.is_symlink() or path.is_symlink() or not path.is_file():
        return None
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
        sound = mark["made_by"] == "alp" and mark["format"] == FORMAT and isinstance(mark["identity"], str)
        sound = sound and isinstance(mark["state"], str) and isinstance(mark["origin"], dict)
        sound = (
            sound
            and isinstance(mark["made"], list)
            and all(isinstance(name, str) and _inside(name) for name in mark["made"])
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return mark if sound else None


def _inside(name: str) -> bool:
    parts = name.rstrip("/").split("/")
    return bool(parts[0]) and not any(part in ("", ".", "..", MARKS) for part in parts)


def marks(folder: Path) -> dict[str, dict[str, Any]]:
    """Every job that has its mark in the folder."""
    if (folder / MARKS).is_symlink():
        return {}
    jobs = sorted(path.parent.name for path in (folder / MARKS).glob("*/mark.json"))
    return {job: mark for job in jobs if (mark := read_mark(folder, job)) is not None}


def foreign(folder: Path) -> Path | None:
    """The first thing in a folder that no mark covers; None for a folder that is marked, empty, or holds marked ones
    alone."""
    if marks(folder):
        return None
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            return path
        if entry.name == MARKS and all(left.is_file() and left.name in _SKELETON for left in path.glob("*/*")):
            continue
        if (unmarked := foreign(path)) is not None:
            return unmarked
    return None


def difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """In words, what another job was made with that this one has not: keys of the configuration, else code, model, data
    or packages."""
    old, new = dict(leaves(there.get("config") or {})), dict(leaves(here.get("config") or {}))
    places = ("run.", "model.path", "task.data", "replace")
    keys = [
        key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and not key.startswith(places)
    ]
    changed = [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in keys[:3]]
    names = {"code_hash": "other code or other versions of packages", "model_hash": "another base model"}
    names |= {"data_hash": "other problems", "grid_hash": "the grid file said something else"}
    if there.get("device") != here.get("device"):
        changed.append(f"device: {there.get('device')} there, {here.get('device')} here")
    return (
        "; ".join(changed)
        or "; ".join(words for name, words in names.items() if there.get(name) != here.get(name))
        or "other inputs"
    )


def holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def ledger(mark: dict[str, Any]) -> dict[str, str] | None:
    """The hashes that a finished job recorded; None where they are not those of everything that it made."""
    files = mark.get("files")
    if not isinstance(files, dict) or not files.keys() <= set(mark["made"]):
        return None
    return files if files and all(isinstance(digest, str) for digest in files.values()) else None


def named(job: str) -> str:
    verb, _, which = job.partition(".")
    return f"the results of alp {verb}" + (f" ({which})" if which else "")


def remove_made(root: Path, name: str) -> None:
    """Remove one file, or folder (``name/``), that a mark lists; a link in its place stays. Empty folders above it go
    too."""
    path = root / name.rstrip("/")
    if any(part.is_symlink() for part in (path, *path.parents) if part != root and root in part.parents):
        return
    if name.endswith("/") and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.is_file():
        path.unlink()
    for above in path.parents:
        if above == root:
            return
        try:
            above.rmdir()
        except OSError:
            return
