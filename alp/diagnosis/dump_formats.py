"""Three file formats into one record: JSONL, Parquet and NPZ with the fields of docs/diagnose.md."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alp.diagnosis.dumps import Floats, Ints, Raw, choose_fields, spelled
from alp.diagnosis.json_lines import records
from alp.errors import UserError, nearest
from alp.foreign import is_file

_UNPACKED, _GROWTH = 2**30, 200  # what may be unpacked: so many bytes, or so many times the file
SCALAR_PER_SEQUENCE = ("step", "advantages")  # `advantages` may also come per token


def read(path: Path, wanted: Mapping[str, str]) -> Raw:
    """The file's fields, unchecked. ``wanted`` maps field → name in the file. Raises :class:`UserError`."""
    check_file(path, READERS)
    try:
        return READERS[path.suffix](path, wanted)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def check_file(path: Path, suffixes: Iterable[str]) -> None:
    """Refuse what is no file, is empty, or of none of the suffixes. Raises :class:`UserError`."""
    if path.suffix not in suffixes:
        raise UserError(f"unknown suffix '{path.suffix}' of {path.name}{nearest(path.suffix, suffixes)}")
    if not is_file(path):
        if path.exists():
            raise UserError(f"{path} is no file")
        folder = path.parent if path.parent.is_dir() else None
        known = [] if folder is None else [file.name for file in folder.iterdir() if file.suffix in suffixes]
        raise UserError(
            f"no file {path}{nearest(path.name, known)}" if folder else f"no file {path}: no folder {path.parent}"
        )
    if not path.stat().st_size:
        raise UserError(f"{path} is empty")
    try:
        with path.open("rb") as stream:
            if path.suffix in (".jsonl", ".json") and stream.read(2) == b"\x1f\x8b":
                raise UserError(f"{path.name} is compressed: unpack it first")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


# ---- JSONL -----------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path, wanted: Mapping[str, str]) -> Raw:
    """One object per line: a sequence with lists of numbers, or a batch with a list of such lists."""
    chosen: dict[str, str] = {}
    parts: dict[str, list[Floats]] = {}
    origin: list[tuple[int, int | None]] = []  # line, and position in the line's batch
    seen: set[str] = set()
    for number, record in records(path):
        if not chosen:
            chosen = choose_fields(list(record), wanted, f"line {number}: ")
            parts = {field: [] for field in chosen}
            first, seen = number, set(record)
        for field, name in wanted.items():  # the file of a job that was stopped and changed in between
            if (name in record) != (field in chosen):
                has, lacks = (number, first) if name in record else (first, number)
                raise UserError(f"line {lacks}: no field '{name}', which line {has} has")
        for position, sequence in _sequences(record, chosen, number):
            origin.append((number, position))
            for field, values in sequence.items():
                parts[field].append(values)

    def where(row: int) -> str:
        number, position = origin[row]
        return f"line {number}" if position is None else f"line {number}, sequence {position} of its batch (from 0)"

    if not origin:
        raise UserError(f"{path} holds no sequence")
    steps = np.concatenate(parts.pop("step")) if "step" in parts else None
    lengths = {
        field: np.array([len(sequence) for sequence in values], dtype=np.int64) for field, values in parts.items()
    }
    tokens = {field: np.concatenate(parts.pop(field)) for field in list(parts)}
    return Raw(tokens, lengths, steps, where, chosen, tuple(sorted(seen - set(chosen.values()))))


def _sequences(
    record: dict[str, Any], chosen: Mapping[str, str], number: int
) -> Iterator[tuple[int | None, dict[str, Floats]]]:
    """The sequences of one line: position in the batch (None without one) and values per field."""
    leading = record[next(iter(chosen.values()))]
    if not (isinstance(leading, list) and leading and isinstance(leading[0], list)):
        yield None, _sequence({field: record[name] for field, name in chosen.items()}, chosen, f"line {number}")
        return
    for field, name in chosen.items():
        value = record[name]
        if field == "step" and not isinstance(value, list):
            record[name] = [value] * len(leading)  # one step for the whole batch
        elif not isinstance(value, list) or len(value) != len(leading):
            given = f"{len(value)} entries" if isinstance(value, list) else "no list"
            raise UserError(f"line {number}, {name}: {given} for a batch of {len(leading)} sequences")
    for position in range(len(leading)):
        values = {field: record[name][position] for field, name in chosen.items()}
        yield position, _sequence(values, chosen, f"line {number}, sequence {position} of its batch (from 0)")


def _sequence(values: dict[str, Any], names: Mapping[str, str], where: str) -> dict[str, Floats]:
    """Every field as an array (tokens,), ``step`` as (1,); an advantage of the sequence is repeated for its tokens."""
    arrays = {}
    for field, value in values.items():
        single = field in SCALAR_PER_SEQUENCE and not isinstance(value, list)
        if field == "step" and not single:
            raise UserError(f"{where}, {names[field]}: one number per sequence expected, got a list")
        if field == "response_mask":
            value = spelled(value)
        arrays[field] = _numbers([value] if single else value, f"{where}, {names[field]}")
        if single and field == "advantages":
            arrays[field] = np.repeat(arrays[field], len(next(iter(arrays.values()))))
    return arrays


def _numbers(value: Any, where: str) -> Floats:
    """A JSON list as float64; null is NaN, true and false are 1 and 0."""
    if not isinstance(value, list):
        raise UserError(f"{where}: a list of numbers expected, got {json.dumps(value)[:40]}")
    if not value:
        return np.zeros(0)
    try:
        array = np.asarray(value)
        if array.dtype.kind in "fiub" and array.ndim == 1:
            return array.astype(np.float64)
    except (ValueError, OverflowError):  # lists inside
        pass
    for item in value:
        if item is not None and not isinstance(item, (int, float)):
            raise UserError(f"{where}: numbers expected, got {json.dumps(item)[:40]}")
    try:
        return np.array([np.nan if item is None else float(item) for item in value])
    except OverflowError:
        raise UserError(f"{where}: a number is too large for float64") from None


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, wanted: Mapping[str, str]) -> Raw:
    """A row per sequence; list columns of numbers, and numbers for what a sequence has one of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokens: dict[str, Floats] = {}
    lengths: dict[str, Ints] = {}
    steps = None
    whole = set()
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        chosen = choose_fields(names, wanted)
        check_columns(path, file, chosen.values())
        for field, name in chosen.items():  # one after another: a column is large, and larger once it is unpacked
            values, counts, integers = _arrow_column(file.read(columns=[name]).column(name), field, name)
            whole |= {field} if integers else set()
            if field == "step":
                steps = values
            elif counts is None:
                tokens[field], lengths[field] = _repeat(values, next(iter(lengths.values())), name)
            else:
                tokens[field], lengths[field] = values, counts
            pa.default_memory_pool().release_unused()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from None
    return Raw(tokens, lengths, steps, _row, chosen, tuple(sorted(set(names) - set(chosen.values()))), frozenset(whole))


def check_columns(path: Path, file: Any, names: Collection[str] | None = None) -> None:
    """Refuse columns (all without ``names``) that unpack to very much more than the file. Raises UserError."""
    groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    read = [
        column.num_values for column in columns if names is None or column.path_in_schema.partition(".")[0] in names
    ]
    _check_growth(path, 8 * sum(read))


def _arrow_column(column: Any, field: str, name: str) -> tuple[Floats, Ints | None, bool]:
    """Flat values, for a list column its counts (rows,), and whether the type holds whole numbers alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, single = column.type, field in SCALAR_PER_SEQUENCE
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if nested else kind
    if field == "response_mask" and nested and (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        column = pa.chunked_array([[spelled(row) for row in column.to_pylist()]])
        return _arrow_column(column, field, name)
    number = pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner)
    if not number or (not nested and not single) or (nested and field == "step"):
        expected = "a number" if field == "step" else "a number or a list of numbers" if single else "a list of numbers"
        raise UserError(f"column {name}: {expected} per row expected, the file has {kind}")
    if nested and column.null_count:
        empty = int(np.argmax(column.is_null().to_numpy()))
        raise UserError(f"{_row(empty)}, {name}: null where a list is expected")
    counts = None if not nested else pc.list_value_length(column).to_numpy().astype(np.int64)
    flat = pc.list_flatten(column) if nested else column
    parts = [part.to_numpy(zero_copy_only=False) for part in pc.cast(flat, pa.float64(), safe=False).chunks]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0)  # null becomes NaN
    return values, counts, not pa.types.is_floating(inner)


def _row(row: int) -> str:
    return f"row {row} (from 0)"


def _repeat(values: Floats, counts: Ints, name: str) -> tuple[Floats, Ints]:
    """One value per sequence as one per token."""
    if len(values) != len(counts):
        raise UserError(f"{name} has {len(values)} sequences, not {len(counts)}")
    return np.repeat(values, counts), counts


# ---- NPZ -------------------------------------------------------------------------------------------------------------


def _read_npz(path: Path, wanted: Mapping[str, str]) -> Raw:
    """Arrays (sequences, tokens), and (sequences,) for what a sequence has one of. Nothing is ever unpickled."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no NPZ file (or was cut off): write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            check_archive(path, archive)
            names = archive.files
            chosen = choose_fields(names, wanted)
            arrays = {field: _array(archive, field, name) for field, name in chosen.items()}
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"cannot read {path} as NPZ: {error}") from None
    leading = next(iter(arrays.values())).shape
    tokens, lengths = {}, {}
    whole = frozenset(field for field, array in arrays.items() if array.dtype.kind in "iub")
    steps = arrays.pop("step").astype(np.float64) if "step" in arrays else None
    if steps is not None and steps.ndim == 0:
        steps = np.full(leading[0], steps)
    if steps is not None and len(steps) != leading[0]:
        raise UserError(f"{chosen['step']} has {len(steps)} sequences, {next(iter(chosen.values()))} {leading[0]}")
    for field in list(arrays):
        array = arrays.pop(field)
        if array.ndim == 1:
            counts = np.full(leading[0], leading[1], dtype=np.int64)
            tokens[field], lengths[field] = _repeat(array.astype(np.float64), counts, chosen[field])
        else:
            tokens[field] = array.astype(np.float64).ravel()
            lengths[field] = np.full(array.shape[0], array.shape[1], dtype=np.int64)
    return Raw(tokens, lengths, steps, _row, chosen, tuple(sorted(set(names) - set(chosen.values()))), whole)


def check_archive(path: Path, archive: Any) -> None:
    """Refuse an NPZ file whose arrays claim more than is there, or unpack to very much more. Raises UserError."""
    _check_growth(path, sum(_claimed(archive.zip, entry) for entry in archive.zip.infolist()))


def _claimed(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Bytes that an entry unpacks to. Raises UserError where the array's own header claims more, before that is
    allocated."""
    try:
        shape, dtype = array_header(archive, entry)
    except ValueError:  # no array, or of a kind that is refused where it is read
        return entry.file_size
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > entry.file_size:
        raise UserError(
            f"array {entry.filename} is damaged: it claims {claimed} bytes, the file has {entry.file_size} of it"
        )
    return max(entry.file_size, 0)


def array_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array of an NPZ file, as its own header claims them. Raises ValueError."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, dtype


def _check_growth(path: Path, size: int) -> None:
    """Refuse a file that unpacks to very much more than it is. Raises UserError."""
    if size > max(_UNPACKED, _GROWTH * path.stat().st_size):
        raise UserError(
            f"{path.name} of {path.stat().st_size} bytes unpacks to {size:.3g}, as no log-probs do: write it"
            " uncompressed"
        )


def _array(archive: Any, field: str, name: str) -> Any:
    """One array of numbers with the dimensions its field may have."""
    try:
        array = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise UserError(f"array {name} is damaged: {error}") from None
        raise UserError(
            f"array {name} holds Python objects, which are not read: pad its rows and save numbers (sequences, tokens)"
        ) from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name} is no NumPy array: write the file with numpy.savez")
    if array.dtype.kind not in "fiub":
        raise UserError(
            f"array {name}: numbers expected, got dtype {array.dtype} (NumPy has no bfloat16: save float32)"
        )
    allowed = {"step": (0, 1), "advantages": (1, 2)}.get(field, (2,))
    if array.ndim not in allowed:
        shape = (
            "(sequences,)"
            if 0 in allowed
            else "(sequences,) or (sequences, tokens)"
            if 1 in allowed
            else "(sequences, tokens)"
        )
        raise UserError(f"array {name}: shape {shape} expected, got {array.shape}")
    return array


READERS: dict[str, Callable[[Path, Mapping[str, str]], Raw]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
}
