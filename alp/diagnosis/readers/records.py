"""Files as records: an object of a JSONL file, a row of a Parquet file, the whole of an NPZ, .pt or pickle file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alp.diagnosis import dump_formats, json_lines
from alp.diagnosis.readers import objects
from alp.diagnosis.readers.contract import Record
from alp.errors import UserError

LINES = (".jsonl", ".json")
OBJECTS = (".pt", ".pth", ".pkl", ".pickle")
SUFFIXES = (*LINES, ".parquet", ".npz", *OBJECTS)
_ROWS = 256  # of a Parquet file at a time


def first(path: Path) -> Record | None:
    """The first record of a file, None where it has none; of NPZ, zeros of the arrays' shapes. Raises
    :class:`UserError`."""
    if path.suffix == ".parquet":
        return next((row for _, row in _rows(path, texts=True)), None)
    if path.suffix == ".npz":
        return _arrays(path, values=False)
    return next((record for _, record in read(path)), None)


def read(path: Path) -> Iterator[tuple[str, Record]]:
    """Where each record stands in the file, in words, and the record. Raises :class:`UserError`, and what a library
    makes of a damaged file."""
    if path.suffix in LINES:
        for number, line in json_lines.records(path):
            yield f"line {number}", line
    elif path.suffix == ".parquet":
        yield from _rows(path, texts=False)
    elif path.suffix == ".npz":
        yield "", _arrays(path)
    else:
        found = objects.records(objects.load(path))
        for position, record in enumerate(found):
            yield f"entry {position} (from 0)" if len(found) > 1 else "", record


def _rows(path: Path, *, texts: bool) -> Iterator[tuple[str, Record]]:
    """Rows of a Parquet file: lists of numbers as arrays, other values as they are; texts where they are asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        dump_formats.check_columns(path, file)
        schema = file.schema_arrow
        names = [name for name in schema.names if texts or _numbers(schema.field(name).type)]
        number = 0
        for part in file.iter_batches(1 if texts else _ROWS, columns=names):
            columns = {name: _column(part.column(name)) for name in names}
            for row in range(part.num_rows):
                yield f"row {number} (from 0)", {name: values[row] for name, values in columns.items()}
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as Parquet: {str(error).splitlines()[0]}") from None


def _numbers(kind: Any) -> bool:
    import pyarrow as pa

    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if nested else kind
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner))


def _column(column: Any) -> list[Any]:
    """A value per row; a list of numbers as an array, null inside as NaN."""
    import pyarrow as pa

    kind = column.type
    if not (_numbers(kind) and (pa.types.is_list(kind) or pa.types.is_large_list(kind))):
        return list(column.to_pylist())
    flat = column.values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    ends, missing = column.offsets.to_numpy(), column.is_null().to_numpy(zero_copy_only=False)
    return [None if gone else flat[ends[row] : ends[row + 1]] for row, gone in enumerate(missing)]


def _arrays(path: Path, *, values: bool = True) -> Record:
    """Every array of numbers of an NPZ file; nothing is unpickled. Without ``values`` headers alone are read."""
    import numpy as np

    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no NPZ file (or was cut off): write it with numpy.savez")
    with np.load(path, allow_pickle=False) as archive:
        dump_formats.check_archive(path, archive)
        headers = {name: dump_formats.array_header(archive.zip, f"{name}.npy") for name in archive.files}
        numbers = {name: header for name, header in headers.items() if header[1].kind in "fiub"}
        if values:
            return {name: archive[name] for name in numbers}
        return {name: np.broadcast_to(np.zeros((), dtype), shape) for name, (shape, dtype) in numbers.items()}
