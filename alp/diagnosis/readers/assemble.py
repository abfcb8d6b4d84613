"""Sequences of native files into one :class:`Raw`: fields that all have, steps, places for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alp.diagnosis.dumps import FIELDS, Floats, Raw
from alp.diagnosis.readers import records
from alp.diagnosis.readers.contract import Native, Sequence, floats
from alp.errors import UserError
from alp.progress import Progress

_FEW = 0.5  # a field that fewer of the sequences have is left out; with more, the sequences that lack it are


def number_of(path: Path) -> int | None:
    """The step that a file or its folder is named after: the last number in its name."""
    for part in (path.stem, path.parent.name):
        numbers = re.findall(r"\d+", part)
        if numbers and len(numbers[-1]) < 16:
            return int(numbers[-1])
    return None


def assemble(native: Native, files: Mapping[str, Path]) -> Raw:
    """Every sequence of ``files`` (label → path; an empty label for a file that is alone). Raises
    :class:`UserError` naming file, place and field."""
    assert native.sequences is not None
    found: list[Sequence] = []
    places: list[str] = []
    with Progress("reading, files", len(files)) as progress:
        for done, (label, path) in enumerate(files.items()):
            if done:
                progress.update(done)
            named = number_of(path)
            for place, record in records.read(path):
                where = ", ".join(part for part in (label, place) if part)
                try:
                    for sequence in native.sequences(record):
                        found.append(_arrays(sequence, named, native.names))
                        places.append(where or f"sequence {len(found) - 1} (from 0)")
                except UserError as error:
                    raise UserError(f"{where}: {error}" if where else str(error)) from None
    if not found:
        raise UserError("no sequence in it")
    return _joined(native, found, places)


def _arrays(sequence: Sequence, named: int | None, names: Mapping[str, str]) -> Sequence:
    """Arrays (tokens,), an advantage of the sequence repeated for its tokens, and the step if there is one."""
    mask = floats(sequence["response_mask"], names.get("response_mask", "the mask"))
    made: Sequence = {}
    for field, value in sequence.items():
        if field == "step":
            made["step"] = float(value)
            continue
        if field == "ids":
            made["ids"] = value
            continue
        array = mask if field == "response_mask" else floats(value, names.get(field, field))
        if field == "advantages" and array.ndim == 0:
            array = np.full(len(mask), float(array))
        if array.ndim != 1:
            raise UserError(f"{names.get(field, field)}: one number per token expected, got shape {array.shape}")
        if array.shape != mask.shape:
            short = names.get("response_mask", "the mask")
            raise UserError(f"{names.get(field, field)} has {len(array)} tokens, {short} {len(mask)}")
        made[field] = array
    if "step" not in made and named is not None:
        made["step"] = float(named)
    return made


def _joined(native: Native, found: list[Sequence], places: list[str]) -> Raw:
    """One Raw; sequences that lack what most have are left out, and so are fields that few have, both said aloud."""
    counts = Counter(field for sequence in found for field in sequence)
    kept = [field for field in FIELDS if counts[field] > _FEW * len(found)]
    notes = [
        f"{counts[field]} of {len(found)} sequences have {native.names.get(field, field)}: left out"
        for field in FIELDS
        if counts[field] and field not in kept
    ]
    whole = [row for row, sequence in enumerate(found) if all(field in sequence for field in kept)]
    if len(whole) < len(found):
        lacking = [native.names.get(field, field) for field in kept if counts[field] < len(found)]
        notes.append(f"{len(found) - len(whole)} of {len(found)} sequences lack {', '.join(lacking)}: left out")
    if not whole:
        raise UserError("no sequence has all of " + ", ".join(native.names.get(field, field) for field in kept))
    rows = [found[row] for row in whole]
    lengths = np.array([len(sequence["response_mask"]) for sequence in rows], dtype=np.int64)
    steps = np.array([sequence["step"] for sequence in rows]) if "step" in kept else None
    tokens: dict[str, Floats] = {}
    for field in kept:
        if field != "step":
            tokens[field] = np.concatenate([sequence.pop(field) for sequence in rows])
    ids = [sequence["ids"] for sequence in rows] if all("ids" in sequence for sequence in rows) else None
    kept_places = [places[row] for row in whole]
    names = {field: native.names.get(field, field) for field in kept}
    return Raw(
        tokens,
        dict.fromkeys(tokens, lengths),
        steps,
        kept_places.__getitem__,
        names,
        notes=tuple(notes),
        source=native.name,
        ids=ids,
    )


def merge(raws: Mapping[str, Raw], files: Mapping[str, Path]) -> Raw:
    """Several dumps of one form (label → dump) as one; the step of a dump without any is the number in its name. Raises
    :class:`UserError`."""
    steps: list[Any] = []
    for label, raw in raws.items():
        rows, named = len(next(iter(raw.lengths.values()))), number_of(files[label])
        steps.append(raw.steps if raw.steps is not None else None if named is None else np.full(rows, float(named)))
    first = next(iter(raws.values()))
    fields = [field for field in first.tokens if all(field in raw.tokens for raw in raws.values())]
    lost = sorted({field for raw in raws.values() for field in raw.tokens} - set(fields))
    bounds = np.cumsum([len(next(iter(raw.lengths.values()))) for raw in raws.values()])
    labels, parts = list(raws), list(raws.values())

    def place(row: int) -> str:
        file = int(np.searchsorted(bounds, row, side="right"))
        return f"{labels[file]}, {parts[file].place(row - int(bounds[file - 1] if file else 0))}"

    lengths = {field: np.concatenate([raw.lengths[field] for raw in parts]) for field in fields}
    return Raw(
        {field: np.concatenate([raw.tokens.pop(field) for raw in parts]) for field in fields},
        lengths,
        None if any(one is None for one in steps) else np.concatenate(steps),
        place,
        first.names,
        first.unread,
        frozenset.intersection(*(raw.whole for raw in parts)),
        notes=tuple(f"not every file has {field}: left out" for field in lost),
        source=first.source,
    )
