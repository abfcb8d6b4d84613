"""Foreign files and what can become of them: cut, flipped, spliced, nested, in another encoding, of other values, no
file at all."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Damage = Callable[[Path], None]
DEEP = 60_000
BOMB = "".join(
    f"{name}: &{name} [{', '.join(['*' + before if before else 'x'] * 9)}]\n"
    for before, name in pairwise(["", *"abcdefghi"])
)
_ODD_CONTENTS = [
    b"",
    b"\0" * 64,
    b"\n",
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b"- " * DEEP,
    b"{a: " * 3000,
    b"\xff\xfe{\x00}\x00",
    b"\x80\x04\x95.",
    b"\x1f\x8b\x08\x00",
    b"PK\x03\x04",
    b"title: caf\xe9\n",
    b"a: 1\na: 2\n",
    b"a: &a [*a]\n",
    b"!!python/object/apply:os.getcwd []\n",
]
ODD_VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "\0", "\ud800",
    "a" * 5000, "../../x",
    "/etc/passwd", [], {}, [[]], [None], {"x": 1}, [[[[[]]]]], "${x}", "${oc.env:HOME}", "*", "1",
]  # fmt: skip
ODD_PLACES = ("missing", "folder", "pipe", "nowhere", "circle", "device")


def write(content: bytes) -> Damage:
    """Another content."""

    def change(path: Path) -> None:
        path.write_bytes(content)

    return change


def put(kind: str) -> Damage:
    """No file, or none that ends."""

    def change(path: Path) -> None:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind != "missing":
            path.symlink_to({"nowhere": path.parent / "not there", "circle": path, "device": Path("/dev/zero")}[kind])

    return change


def _places(value: Any, found: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every value inside."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [found, *(place for key, one in inner for place in _places(one, (*found, key)))]


def _changed(text: str, seed: int, odd: Any, how: str) -> str:
    """JSON with one value another, gone, or doubled."""
    value = json.loads(text)
    dice = random.Random(seed)
    place = dice.choice(_places(value)[:4000])
    if not place:
        return json.dumps(odd)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    if how == "gone":
        del holder[place[-1]]
    elif how == "doubled" and isinstance(holder, dict):
        mark = "<twice>"
        holder[mark] = odd
        return json.dumps(value).replace(json.dumps(mark), json.dumps(place[-1]))
    else:
        holder[place[-1]] = odd
    return json.dumps(value)


def _in_json(content: bytes, seed: int, odd: Any, how: str) -> bytes:
    """The same in one line of a JSONL file, or in a whole JSON file; YAML that is JSON too."""
    lines = content.decode().splitlines()
    if len(lines) < 2 or not lines[0].startswith("{") or not lines[0].endswith("}"):
        return _changed(content.decode(), seed, odd, how).encode()
    line = random.Random(seed).randrange(len(lines))
    lines[line] = _changed(lines[line], seed, odd, how)
    return ("\n".join(lines) + "\n").encode()


def _in_header(content: bytes, seed: int, odd: Any, how: str) -> bytes:
    """The same in the header of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = _changed(content[8 : 8 + size].decode(), seed, odd, how).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


@st.composite
def damages(draw: st.DrawFn, content: bytes, form: str) -> Damage:
    """What becomes of a file of that intact content, ``json`` (lines too), ``safetensors``, ``yaml`` (that is JSON) or
    ``binary``."""
    place = st.integers(0, max(len(content) - 1, 0))
    kinds = ["cut", "flipped", "spliced", "odd", "random", "gone"]
    kinds += [] if form == "binary" else ["encoded", "changed", "changed", "changed", "changed"]
    kinds += ["repeated"] if form == "yaml" else []
    kind = draw(st.sampled_from(kinds))
    if kind == "cut":
        return write(content[: draw(place)])
    if kind == "flipped":
        changed = bytearray(content)
        for where in draw(st.lists(place, min_size=1, max_size=8)):
            changed[where] ^= 1 << draw(st.integers(0, 7))
        return write(bytes(changed))
    if kind == "spliced":
        where = draw(place)
        return write(content[:where] + draw(st.binary(max_size=40)) + content[where + draw(st.integers(0, 40)) :])
    if kind == "odd":
        return write(_ODD_CONTENTS[draw(st.integers(0, len(_ODD_CONTENTS) - 1))])
    if kind == "random":
        return write(draw(st.binary(max_size=200)))
    if kind == "encoded":
        return write(content.decode(errors="replace").encode(draw(st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]))))
    if kind == "repeated":
        ways = [content + b"\n" + content, content + b"\n---\na: 1\n", b"title: *b\n", BOMB.encode() + b"title: *i\n"]
        return write(ways[draw(st.integers(0, len(ways) - 1))])
    if kind == "changed":
        changes = _in_header if form == "safetensors" else _in_json
        odd = ODD_VALUES[draw(st.integers(0, len(ODD_VALUES) - 1))]
        return write(
            changes(
                content,
                draw(st.integers(0, 2**32)),
                odd,
                draw(st.sampled_from(["other", "other", "other", "gone", "doubled"])),
            )
        )
    return put(draw(st.sampled_from(ODD_PLACES)))


def shown(path: Path) -> str:
    """What failed, to be seen in a message."""
    if path.is_symlink() or not path.is_file():
        return "no file any more"
    return base64.b64encode(path.read_bytes()[:3000]).decode()
