"""Which trainer wrote a file or a folder, told by its content, and its sequences.

A reader is a module with its kinds (:class:`~alp.diagnosis.readers.contract.Native`) in ``READERS``; what no reader
recognises is read as the fields of docs/diagnose.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from alp.diagnosis import dump_formats
from alp.diagnosis.dumps import LOG_PROBS, Raw
from alp.diagnosis.readers import nemo_rl, open_instruct, openrlhf, prime_rl, records, skyrl, slime, trl, verl
from alp.diagnosis.readers.assemble import assemble, merge
from alp.diagnosis.readers.contract import Native, Record
from alp.errors import UserError
from alp.foreign import is_folder, reading, shortened

SUFFIXES = records.SUFFIXES
# A file may look like several: the more telling first.
READERS: tuple[Native, ...] = tuple(
    native
    for module in (prime_rl, nemo_rl, open_instruct, slime, skyrl, openrlhf, trl, verl)
    for native in module.READERS
)
_DEEPEST, _MOST_FILES = 4, 20_000
_HELD_OUT = re.compile(r"(^|_)(eval|val)(uation)?(_|\d|$)")


@dataclass(frozen=True)
class Input:
    """What was read: the dump, and the files that it came from."""

    raw: Raw
    files: tuple[Path, ...]


def read(source: Path, wanted: Mapping[str, str]) -> Input:
    """A file, or a folder of them as one. ``wanted`` maps our fields to the names that they have in a file of our form;
    where any is not the default, that form is meant. Raises :class:`UserError`."""
    if is_folder(source):
        return _folder(source, wanted)
    dump_formats.check_file(source, records.SUFFIXES)
    native = _recognise(source, wanted)
    if native is None:
        return Input(dump_formats.read(source, wanted), (source,))
    _refuse_texts(native)
    return Input(assemble(native, {"": source}), (source,))


def _refuse_texts(native: Native) -> None:
    if native.sequences is None:
        raise UserError(f"read as {native.name}: no log-probs in it; {native.advice}")


def _recognise(path: Path, wanted: Mapping[str, str]) -> Native | None:
    """The kind of a file, None for our own form (or what is nothing that is known: its reader says what is missing)."""
    own = path.suffix in dump_formats.READERS
    if own and any(name != field for field, name in wanted.items()):
        return None
    record = records.first(path)
    if own and (record is None or _is_ours(record, wanted)):
        return None
    native = next((native for native in READERS if record is not None and native.recognises(record)), None)
    if native is None and not own:
        known = ", ".join(sorted({native.trainer for native in READERS}))
        raise UserError(f"its fields are those of no dump of {known}: {_shown(record)}")
    return native


def _is_ours(record: Record, wanted: Mapping[str, str]) -> bool:
    return wanted["response_mask"] in record and any(wanted[field] in record for field in LOG_PROBS)


def _shown(record: Record | None) -> str:
    names = [str(name) for name in record or ()]
    return ("fields " + ", ".join(names[:12]) + (", …" if len(names) > 12 else "")) if names else "no fields"


# ---- folders ---------------------------------------------------------------------------------------------------------


def _folder(folder: Path, wanted: Mapping[str, str]) -> Input:
    """The files of one kind below a folder, in the order of the numbers in their names."""
    kinds, notes = _kinds(folder, wanted)
    order: list[Native | None] = [None, *READERS]
    for kind in order:
        files = kinds.get(kind)
        if not files:
            continue
        if kind is not None:
            _refuse_texts(kind)
        chosen = {str(path.relative_to(folder)): path for path in files}
        raw = assemble(kind, chosen) if kind is not None else _merged(chosen, wanted)
        others = [path.name for other, paths in kinds.items() if other is not kind for path in paths]
        if others:
            notes.append(f"not read, of another kind: {_few(others)}")
        raw.notes = (*raw.notes, *notes)
        return Input(raw, tuple(files))
    why = f"; {notes[0]}" if notes else ""
    raise UserError(f"no dump in this folder: looked for {', '.join(records.SUFFIXES)}{why}")


def _merged(files: Mapping[str, Path], wanted: Mapping[str, str]) -> Raw:
    raws = {}
    for label, path in files.items():
        try:
            raws[label] = dump_formats.read(path, wanted)
        except UserError as error:
            raise UserError(f"{label}: {error}") from None
    return merge(raws, files)


def _kinds(folder: Path, wanted: Mapping[str, str]) -> tuple[dict[Native | None, list[Path]], list[str]]:
    """The files of each kind; one of those that are called alike stands for all. Files of evaluations are left out
    where there are others; what cannot be read is named."""
    alike: dict[str, list[Path]] = {}
    for path in _files(folder):
        alike.setdefault(re.sub(r"\d+", "#", str(path.relative_to(folder))), []).append(path)
    kinds: dict[Native | None, list[Path]] = {}
    unread: list[str] = []
    for paths in alike.values():
        try:
            with reading("diagnose", paths[0].name):
                kind = _recognise(paths[0], wanted)
                record = records.first(paths[0]) if kind is None else None
            if kind is None and (record is None or not _is_ours(record, wanted)):
                raise UserError("no log-probs in it")
            kinds.setdefault(kind, []).extend(paths)
        except UserError as error:
            unread.append(f"{paths[0].name} ({shortened(str(error))})")
    notes = [f"not read: {_few(unread)}"] if unread else []
    for kind, paths in kinds.items():
        held_out = [path for path in paths if _HELD_OUT.search(path.stem)]
        if held_out and len(held_out) < len(paths):
            kinds[kind] = [path for path in paths if path not in held_out]
            notes.append(f"files of evaluations left out: {_few([path.name for path in held_out])}")
        kinds[kind].sort(key=_natural)
    return kinds, notes


def _files(folder: Path) -> Iterator[Path]:
    """Files of known suffixes, sorted, hidden ones left out; links to folders are not followed. Raises
    :class:`UserError` for too many."""
    count = 0
    for root, folders, names in os.walk(folder):
        depth = len(Path(root).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth + 1 < _DEEPEST)
        for name in sorted(names):
            path = Path(root) / name
            if path.suffix in records.SUFFIXES and not name.startswith(".") and path.is_file() and path.stat().st_size:
                count += 1
                if count > _MOST_FILES:
                    raise UserError(f"more than {_MOST_FILES} files: name the folder of the dumps themselves")
                yield path


def _natural(path: Path) -> list[tuple[int, str]]:
    """Names in the order of their numbers: step_9 before step_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
