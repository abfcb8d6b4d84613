"""What differs between two versions of a result file, in a few lines: entries of JSON, JSONL and CSV by name, weights
by tensor."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from alp.nested import leaves
from alp.reporting.manifest import NUMBERS

_SHOWN = 5  # differing entries of one file that are listed


def explain(name: str, content: bytes, original: bytes | None) -> list[str]:
    """What differs, in a line, and the first few entries."""
    if original is None:
        return ["other bytes"]
    suffix = PurePosixPath(name).suffix
    differs = (old != new for old, new in zip(original, content, strict=False))
    first = next((at for at, other in enumerate(differs) if other), min(len(original), len(content)))
    bytes_alone = f"the first other byte is at {first}, of {len(original)} there and {len(content)} here"
    if suffix not in (*NUMBERS, ".safetensors"):
        return [bytes_alone]
    try:
        if suffix == ".safetensors":
            return _compare_tensors(original, content)
        return _compare(dict(_entries(suffix, original)), dict(_entries(suffix, content)))
    except Exception as error:  # whatever a damaged file makes of its readers
        return [f"cannot be read any more ({' '.join(str(error).split())[:100]}); {bytes_alone}"]


def _compare(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    shown, numbers, largest, where = [], 0, 0.0, ""
    changed = [
        key
        for key in there.keys() | here.keys()
        if key not in there or key not in here or not _same(there[key], here[key])
    ]
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
    return bool(old == new) or (
        isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new)
    )


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
            yield from comparable(json.loads(line), f"line {number}: ")
    else:
        yield from comparable(json.loads(text))


def comparable(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a JSON value, items of lists under their number; whole numbers are floats."""
    for key, leaf in leaves(value, numbered=True) if isinstance(value, dict | list) else [("", value)]:
        yield prefix + key, float(leaf) if isinstance(leaf, int) and not isinstance(leaf, bool) else leaf


def _number(cell: Any) -> Any:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return cell


def _compare_tensors(original: bytes, content: bytes) -> list[str]:
    """The largest change of an element, tensor by tensor."""
    from safetensors.numpy import load

    there, here = load(original), load(content)
    lines = []
    for name in sorted(there.keys() | here.keys()):
        if name not in here or name not in there or there[name].shape != here[name].shape:
            lines.append(f"{name}: on one side only, or of another shape")
        elif there[name].tobytes() != here[name].tobytes():
            change = abs(there[name].astype("float64") - here[name].astype("float64"))
            lines.append(
                f"{name}: {int((change != 0).sum())} of {change.size} numbers differ, the largest by {change.max():.3g}"
            )
    return [f"differing tensors: {len(lines)}", *lines[:_SHOWN], *(["…"] if len(lines) > _SHOWN else [])]
