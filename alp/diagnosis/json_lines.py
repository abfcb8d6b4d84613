"""JSON as dumps hold it: an object per line, or over several lines, or an array of them; cut files told from both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alp.errors import UserError
from alp.foreign import parse_json
from alp.progress import Progress

_BLANK = re.compile(r"\s*")
_MEGABYTE = 2**20
_EVERY = 256  # lines between two looks at the clock


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and objects; blank lines are passed over."""
    total, done = path.stat().st_size // _MEGABYTE, 0
    with path.open("rb") as stream, Progress(f"reading {path.name}, MB", total) as progress:
        for number, line in enumerate(stream, start=1):
            done += len(line)
            if number % _EVERY == 0 and done // _MEGABYTE < total:
                progress.update(done // _MEGABYTE)
            if not line.strip():
                continue
            try:
                value = parse_json(line.rstrip(), _once)
            except RecursionError:
                raise UserError(f"line {number} is nested too deeply: one object of lists expected") from None
            except ValueError as error:  # bytes that are no UTF-8 are a ValueError too
                if not _ended(error) or number > 1:
                    raise _no_json(number, line, error) from None
                yield from _over_lines(line + stream.read(), error)
                return
            yield from _objects(number, value)


def _objects(number: int, value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of a line, or the objects of an array."""
    values = value if isinstance(value, list) and value else [value]
    if not all(isinstance(record, dict) for record in values):
        raise UserError(f"line {number} holds no JSON object: one object per sequence or per batch expected")
    for record in values:
        yield number, record


def _ended(error: ValueError) -> bool:
    """Whether a text stopped in the middle of a value."""
    return isinstance(error, json.JSONDecodeError) and (
        error.pos >= len(error.doc) or error.msg.startswith("Unterminated")
    )


def _no_json(number: int, line: bytes, error: ValueError) -> UserError:
    column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    cut = _ended(error) or not line.endswith(b"\n")
    mend = f"; the lines before are whole: head -n {number - 1} keeps them" if cut and number > 1 else ""
    return UserError(
        f"line {number} is no valid JSON{column}{'; it ends too soon: was it cut off?' if cut else ''}{mend}"
    )


def _over_lines(content: bytes, first: ValueError) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects written over several lines, one after another or in an array. Raises :class:`UserError` where the file
    ends inside of one."""
    text, decoder = content.decode("utf-8").rstrip(), json.JSONDecoder(object_pairs_hook=_once)
    if "\n" not in text:
        raise _no_json(1, content, first) from None
    position, number = 0, 1
    while position < len(text):
        start = _BLANK.match(text, position).end()  # type: ignore[union-attr]  # it matches nothing too
        number += text.count("\n", position, start)
        try:
            value, position = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            if not _ended(error):
                raise _no_json(1, content.partition(b"\n")[0], first) from None
            raise UserError(
                f"line {number} begins an object over several lines, and the file ends inside of it: was it cut off?"
            ) from None
        yield from _objects(number, value)
        number += text.count("\n", start, position)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated keys. Raises :class:`UserError`."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(name for position, (name, _) in enumerate(pairs) if name in dict(pairs[:position]))
        raise UserError(f"field '{twice}' stands twice in one object")
    return content
