"""What comes from elsewhere (models, dumps, data, YAML, manifests) is read under one guard: bad content is one line,
not a traceback.

The guard stands around reading and checking alone. What is computed with the content afterwards stays outside: a fault
of our own must not pass for a bad file.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from alp.errors import GraderError, Interrupted, UserError

_OURS = (UserError, GraderError, Interrupted, KeyboardInterrupt, SystemExit, GeneratorExit)
_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
)  # troubles of this machine, which the command line reports in its own words
_LONGEST = 300  # characters of a library's message
_PACKED = {  # how files begin that are no text, and what to do with them
    b"\x1f\x8b": ("compressed (gzip)", "gunzip it"),
    b"\x28\xb5\x2f\xfd": ("compressed (zstd)", "unzstd it"),
    b"\xfd7zXZ": ("compressed (xz)", "unxz it"),
    b"BZh": ("compressed (bzip2)", "bunzip2 it"),
    b"PK\x03\x04": ("a zip archive", "unzip it"),
    b"PAR1": ("Parquet", "name the folder it stands in as hub"),
}
_YAML_NODES = 100_000  # of a document with its aliases written out
_YAML_BYTES = 2**18  # hundreds of times what a grid takes; its reader needs seconds for more


@contextmanager
def reading(key: str, place: str | Path) -> Iterator[None]:
    """``with reading("model.path", folder): …``: whatever the content makes of its readers becomes ``key: place cannot
    be read: why``.

    Raises UserError from the cause (``ALP_TRACEBACK=1`` shows it whole). What is a UserError already, an interrupt and
    a full disk pass.
    """
    try:
        yield
    except _OURS:
        raise
    except OSError as error:
        if error.errno in _DISK:
            raise
        raise UserError(f"{key}: {place} cannot be read: {reason(error)}") from error
    except Exception as error:
        raise UserError(f"{key}: {place} cannot be read: {reason(error)}") from error
    except BaseException as error:  # what a library in Rust makes of a file it did not expect
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{key}: {place} cannot be read: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """One line of what a library says, with the kind of its error."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(text.split())
    return f"{type(error).__name__}: {shortened(line)}" if line else type(error).__name__


def shortened(line: str) -> str:
    """A message of a library's with what it quotes cut off."""
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def is_file(path: Path) -> bool:
    """Whether there is a regular file, links followed; no path is too long, too odd or too circular to ask for."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """The same of a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def check_file(key: str, path: Path) -> None:
    """Refuse what is no regular file: a pipe or a device would be waited for. Raises UserError."""
    with reading(key, path):
        path.stat()
    if not path.is_file():
        raise UserError(f"{key}: {path} is no file")


def read_text(key: str, path: Path) -> str:
    """A text file as UTF-8, whatever the locale; a byte order mark is no part of it. Raises UserError."""
    check_file(key, path)
    with reading(key, path):
        return path.read_text(encoding="utf-8-sig")


def parse_json(text: str | bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """A JSON value whose texts can be written again as UTF-8; ``hook`` makes its objects. Raises ValueError,
    RecursionError."""
    value = json.loads(text, object_pairs_hook=hook)
    if (b"\\ud" if isinstance(text, bytes) else "\\ud") in text.lower():  # type: ignore[operator]  # half of a pair of surrogates
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half a character, which is no text") from None
    return value


def read_json(key: str, path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError."""
    text = read_text(key, path)
    with reading(key, path):
        value = parse_json(text)
    if not isinstance(value, dict):
        raise UserError(f"{key}: {path} holds no JSON object")
    return value


class Number(float):
    """A JSON number: its value and, as a text, what the file says (``1.10``, ``1e5``, any number of digits)."""

    def __new__(cls, text: str) -> Number:
        number = super().__new__(cls, text)
        number._text = text
        return number

    _text: str

    def __str__(self) -> str:
        return self._text


def shown(value: object) -> str:
    """What a value of JSON (or of a data set's table) is, for errors."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {shortened(str(value))}"  # nan and inf too, which Python writes into JSON
    if isinstance(value, str):
        return f"the text '{shortened(value)}'" if value.strip() else "an empty text"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def read_lines(key: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and objects of a JSONL file, numbers as :class:`Number`; blank lines are passed over. Raises
    UserError naming the line."""
    text = _decoded(key, path)
    if text.lstrip()[:1] == "[":
        mend = f"jq -c '.[]' {path.name} > lines.jsonl"
        raise UserError(f"{key}: {path} holds a JSON array, one JSON object per line expected: {mend}")
    for number, line in enumerate(text.split("\n"), start=1):  # texts hold other line breaks
        record = line.removeprefix("\ufeff")  # where files with a mark were joined
        if record.strip():
            with reading(key, f"{path}, line {number}"):
                value = _object(record, f"{key}: {path}, line {number}")
            yield number, value


def _decoded(key: str, path: Path) -> str:
    """A file of JSON as text: UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Raises UserError."""
    check_file(key, path)
    with reading(key, path):
        content = path.read_bytes()
    for start, (kind, mend) in _PACKED.items():
        if content.startswith(start):
            raise UserError(f"{key}: {path} is {kind}, one JSON object per line expected: {mend}")
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].decode(encoding, errors="replace").count("\n") + 1
        mend = "was it cut off?"
        if encoding.startswith("utf-8"):
            mend = f"if the file is Latin-1: iconv -f latin1 -t utf-8 {path.name} > utf8.jsonl"
        raise UserError(
            f"{key}: {path}, line {line}: the byte 0x{error.object[error.start]:02x} is no"
            f" {encoding.upper().removesuffix('-SIG')}; {mend}"
        ) from error


def _object(line: str, where: str) -> dict[str, Any]:
    """The object of one line. Raises UserError, ValueError, RecursionError."""
    try:
        value = json.loads(line, object_pairs_hook=once, parse_int=Number, parse_float=Number)
    except json.JSONDecodeError as error:
        ended = error.pos >= len(line.rstrip()) or error.msg.startswith("Unterminated")
        mend = ": was it cut off, or is one object written over several lines (jq -c . makes it one)?" if ended else ""
        raise UserError(
            f"{where}, column {error.colno}: {error.msg}; one JSON object per line expected{mend}"
        ) from error
    except ValueError as error:
        raise UserError(f"{where}: {error}: keep one of them") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: a JSON object expected, this is {shown(value)}")
    if "\\ud" in line.lower():
        for name, part in value.items():
            try:
                json.dumps([name, part], ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"it holds half a character (a lone surrogate) in the field '{name}', which is no text: write the"
                    " whole character, or take it out"
                ) from None
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ. Raises ValueError."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"'{shortened(key)}' stands twice")
        content[key] = value
    return content


def read_yaml(key: str, path: Path) -> Any:
    """The one document of a YAML file as plain data. Raises UserError, also for a key that stands twice and for aliases
    that explode."""
    text = read_text(key, path)
    with reading(key, path):
        try:
            return parse_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f"{key}: {path} is no valid YAML: {shortened(' '.join(str(error).split()))}") from error


def parse_yaml(text: str) -> Any:
    """``yaml.safe_load`` of a document of bounded size, aliases written out, without repeated keys. Raises ValueError,
    YAMLError."""
    if len(text) > _YAML_BYTES:
        raise ValueError(f"{len(text)} characters, more than {_YAML_BYTES}")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node) -> None:
    """Raise ValueError for repeated keys, an alias inside of what it names, and more nodes than a document may have."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_nodes:
            raise ValueError(f"line {node.start_mark.line + 1}: an alias stands inside of what it names")
        open_nodes.add(id(node))
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        found = 1 + sum(map(size, children))
        if found > _YAML_NODES:
            raise ValueError(
                f"line {node.start_mark.line + 1}: more than {_YAML_NODES} values once its aliases are written out"
            )
        open_nodes.remove(id(node))
        sizes[id(node)] = found
        return found

    size(root)


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key '{key.value}' stands twice")
            seen.add((key.tag, key.value))
