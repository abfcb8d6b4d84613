"""``manifest.json`` of a grid: the hash of every result with what it was made from, and the comparison of a rebuild with it.

Beside it ``manifest_values.json`` keeps the text of every file of numbers, so that a difference can be told in numbers, not in hashes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from alp import config
from alp.analysis import runs
from alp.errors import UserError
from alp.grid import Grid
from alp.reproducibility import json_line, machine, provenance, sha256_file, write_json

FORMAT = 1
VALUES = "manifest_values.json"
_NUMBERS = (".json", ".jsonl", ".csv")
_SHOWN = 5  # differing entries of one file that are listed
_RUN = ("config.yaml", "active.json", "provenance.json", "metrics.jsonl", "updates.jsonl")
_EVALUATION = ("evaluation/test.json", "evaluation/test.samples.jsonl.gz")


def outputs(grid: Grid, results: Path) -> list[Path]:
    """Every file that is the same whenever the grid is built: no clock, host or speed in it. Raises UserError when one is missing."""
    base, data = grid.base_dir(results), grid.data_dir(results)
    found = [data / name for name in (*(f"{name}.jsonl" for name in grid.sets), "summary.json", "leakage.json", "leakage.md")]
    found += [base / name for name in _EVALUATION]
    folders = [] if grid.own_model else [base]
    if not grid.own_model:
        found += [base / name for name in (["source.json"] if grid.fetched else ["config.yaml", "metrics.jsonl"])]
    for arm in grid.arms:
        for seed in grid.seeds:
            folder = grid.run_dir(results, arm.name, seed)
            folders.append(folder)
            found += [folder / name for name in (*_RUN, *_EVALUATION)]
    for folder in folders:
        found += [path for path in sorted((folder / "model").glob("*")) if path.is_file()] or [folder / "model" / "model.safetensors"]
    root = grid.folder(results)
    found += [root / "tables" / f"{name}.{ending}" for name in runs.table_names(grid) for ending in ("csv", "md", "tex")]
    found += [root / "figures" / f"{name}.{ending}" for name in runs.figure_names(grid) for ending in ("svg", "png")]
    found.append(root / "report.html")
    for path in found:
        if not path.is_file():
            raise UserError(f"manifest: {path} is missing; build it: {runs.build_command(grid)}")
    return sorted(found)


def write_manifest(grid: Grid, results: Path) -> Path:
    """Hash every output and write ``manifest.json`` and its values below the grid's folder; returns the former's path."""
    root = grid.folder(results)
    texts, files = {}, {}
    for path in outputs(grid, results):
        name = path.relative_to(root).as_posix()
        files[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        if path.suffix in _NUMBERS:
            texts[name] = path.read_text(encoding="utf-8")
    write_json(root / VALUES, texts)
    made_from = provenance() | {"python": platform.python_version(), "machine": machine()}
    content = {"format": FORMAT, "grid": grid.name, "config_hash": _config_hash(grid), "made_from": made_from, "files": files}
    write_json(root / "manifest.json", content | {"values_sha256": sha256_file(root / VALUES)})
    return root / "manifest.json"


def _config_hash(grid: Grid) -> str:
    """SHA-256 over the resolved configuration of every job, places of files left out."""
    jobs: dict[str, Any] = {verb: (verb, None, 0) for verb in ("prepare", "fetch" if grid.fetched else "pretrain", "evaluate")}
    jobs |= {
        f"{verb} {arm.name} {seed}": (verb, arm.name, seed) for verb in ("train", "evaluate") for arm in grid.arms for seed in grid.seeds
    }
    hashes = {
        name: config.identity(config.load(verb, grid.overrides(verb, "results", arm=arm, seed=seed)))
        for name, (verb, arm, seed) in jobs.items()
    }
    return hashlib.sha256(json_line(hashes).encode()).hexdigest()


def verify(manifest: Path, folder: Path | None) -> tuple[list[str], bool]:
    """Compare the files of ``folder`` (the manifest's own by default) with a manifest: lines to print, and whether all are the same.

    Raises UserError for what is no manifest or no folder.
    """
    content = _read(manifest)
    root = manifest.parent if folder is None else folder
    if not root.is_dir():
        raise UserError(f"verify: there is no folder {root}")
    originals = _Originals(manifest, content, root)
    lines, differing, missing = [], 0, 0
    for name, entry in sorted(content["files"].items()):
        path = root / name
        if not path.is_file():
            missing += 1
            lines.append(f"missing  {name}")
        elif sha256_file(path) != entry["sha256"]:
            differing += 1
            head, *rest = _explain(name, path.read_bytes(), originals.read(name))
            lines += [f"differs  {name}: {head}", *(f"         {line}" for line in rest)]
    if differing or missing:
        lines += [f"note     {line}" for line in _circumstances(content)]
    total = len(content["files"])
    lines.append(f"{total} files of {content['grid']} compared: {differing} differing files, {missing} missing")
    return lines, not differing and not missing


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"verify: there is no {path}; a grid's manifest is results/<grid>/manifest.json")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = content["files"]
        known = content["format"] == FORMAT and all(isinstance(entry["sha256"], str) for entry in files.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise UserError(f"verify: {path} is no manifest of format {FORMAT}")
    for name in files:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not parts:
            raise UserError(f"verify: {path} names the file '{name}', outside its folder")
    return content


class _Originals:
    """What the manifest was made over, as far as it can still be had: the files beside it, or its values."""

    def __init__(self, manifest: Path, content: dict[str, Any], root: Path) -> None:
        self._folder = manifest.parent if manifest.parent.resolve() != root.resolve() else None
        self._files = content["files"]
        values = manifest.parent / VALUES
        intact = values.is_file() and sha256_file(values) == content.get("values_sha256")
        self._values: dict[str, str] = json.loads(values.read_text(encoding="utf-8")) if intact else {}

    def read(self, name: str) -> bytes | None:
        """The original bytes, or None."""
        if name in self._values:
            return self._values[name].encode()
        if self._folder is not None and (path := self._folder / name).is_file() and sha256_file(path) == self._files[name]["sha256"]:
            return path.read_bytes()
        return None


def _explain(name: str, found: bytes, original: bytes | None) -> list[str]:
    """What differs, in a line, and the first few entries."""
    if original is None:
        return ["other bytes"]
    suffix = PurePosixPath(name).suffix
    place = next((at for at, (a, b) in enumerate(zip(original, found, strict=False)) if a != b), min(len(original), len(found)))
    bytes_alone = f"the first other byte is at {place}, of {len(original)} there and {len(found)} here"
    if suffix not in (*_NUMBERS, ".safetensors"):
        return [bytes_alone]
    try:
        if suffix == ".safetensors":
            return _compare_tensors(original, found)
        return _compare(dict(_entries(suffix, original)), dict(_entries(suffix, found)))
    except Exception as error:  # whatever a damaged file makes of its readers
        return [f"cannot be read any more ({' '.join(str(error).split())[:100]}); {bytes_alone}"]


def _compare(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    shown, numbers, largest, where = [], 0, 0.0, ""
    changed = [key for key in there.keys() | here.keys() if key not in there or key not in here or not _same(there[key], here[key])]
    for key in sorted(changed, key=_natural):
        if key not in here or key not in there:
            shown.append(f"{key}: only {'there' if key in there else 'here'}")
            continue
        old, new = there[key], here[key]
        if isinstance(old, float) and isinstance(new, float):
            numbers += 1
            size = abs(new - old)
            if size > largest or math.isnan(size):
                largest, where = size, key
            shown.append(f"{key}: {old!r} there, {new!r} here ({new - old:+.3g})")
        else:
            shown.append(f"{key}: {old!r} there, {new!r} here")
    if not changed:
        return ["the same content, written in other bytes"]
    head = f"differing entries: {len(changed)}"
    if numbers:
        head += f", {numbers} of them numbers, the largest difference {largest:.3g} ({where})"
    return [head, *shown[:_SHOWN], *(["…"] if len(shown) > _SHOWN else [])]


def _same(old: Any, new: Any) -> bool:
    return bool(old == new) or (isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new))


def _natural(key: str) -> tuple[tuple[int, str], ...]:
    """Sorts line 10 behind line 9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in key.replace(":", " ").split())


def _entries(suffix: str, content: bytes) -> Iterator[tuple[str, Any]]:
    """Every leaf of a JSON, JSONL or CSV text under a name that says where it stands; numbers are floats."""
    text = content.decode()
    if suffix == ".csv":
        for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=1):
            for column, cell in row.items():
                yield f"row {number}: {column}", _number(cell)
    elif suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            yield from _leaves(json.loads(line), f"line {number}: ")
    else:
        yield from _leaves(json.loads(text), "")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield name.removesuffix("."), float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        return
    for key, item in inner:
        yield from _leaves(item, f"{name}{key}.")


def _number(cell: Any) -> Any:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return cell


def _compare_tensors(original: bytes, found: bytes) -> list[str]:
    """The largest change of an element, tensor by tensor."""
    from safetensors.numpy import load

    there, here = load(original), load(found)
    lines = []
    for name in sorted(there.keys() | here.keys()):
        if name not in here or name not in there or there[name].shape != here[name].shape:
            lines.append(f"{name}: on one side only, or of another shape")
        elif there[name].tobytes() != here[name].tobytes():
            change = abs(there[name].astype("float64") - here[name].astype("float64"))
            lines.append(f"{name}: {int((change != 0).sum())} of {change.size} numbers differ, the largest by {change.max():.3g}")
    return [f"differing tensors: {len(lines)}", *lines[:_SHOWN], *(["…"] if len(lines) > _SHOWN else [])]


def _circumstances(content: dict[str, Any]) -> Iterator[str]:
    """What this installation has other than the one the manifest was made with: the usual reasons of a difference."""
    there = dict(_leaves(content.get("made_from", {}), ""))
    here = dict(_leaves(provenance() | {"python": platform.python_version(), "machine": machine()}, ""))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            yield f"{key}: {there.get(key)} there, {here.get(key)} here"
