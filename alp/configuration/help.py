"""What ``alp <verb> --help`` says of a configuration: the groups with their choices, then every key of this verb."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from alp.configuration import compose
from alp.configuration.keys import Key, keys_of
from alp.foreign import read_yaml
from alp.terminal import columns

_LONGEST_VALUE = 40  # characters of a default that is shown
_BROKEN = 30  # characters of the words for a type from which on they go over a line's end
_KEPT = "\u00a0"  # a space that no line ends at


def text(verb: str, words: Iterable[str] = ()) -> str:
    """Groups and keys of ``verb`` under the choices among ``words``, as wide as the terminal. Raises UserError."""
    return "\n".join(_lines(verb, compose.resolve(verb, list(words)), columns())).strip("\n")


def _lines(verb: str, plain: dict[str, Any], width: int) -> Iterator[str]:
    own_blocks = read_yaml(verb, compose.CONFIGS / f"{verb}.yaml")  # a block may be called as a group is
    groups = [name for name in plain if name not in own_blocks and (compose.CONFIGS / name).is_dir()]
    if groups:
        yield "groups: <group>=<choice> takes the file configs/<group>/<choice>.yaml"
    for group in groups:
        yield from _entry(f"  {group}", ", ".join(compose.choices(group)), width, indent=14)
    sections: dict[str, list[Key]] = {}
    for key in keys_of(compose.schema(verb), plain):
        top = key.path.partition(".")[0]
        sections.setdefault(top if isinstance(plain.get(top), dict) else "", []).append(key)
    own = sections.pop("", [])
    for head, *keys in sections.values():
        taken = plain[head.path].get("name") if head.path in groups else None
        about = f"{head.path}{f' ({taken})' if taken else ''}: {head.meaning[:1].lower()}{_plain(head.meaning)[1:]}"
        yield "\n" + textwrap.fill(about, width)
        yield from _entries(keys, width)
    if own:
        yield "\nkeys" if not sections else "\nother keys"
        yield from _entries(own, width)


def _entries(keys: Iterable[Key], width: int) -> Iterator[str]:
    for key in keys:
        kind = key.kind.replace(" ", _KEPT) if len(key.kind) < _BROKEN else key.kind
        yield from _entry(_label(key), f"{_plain(key.meaning)} ({kind})", width, indent=36 if width >= 100 else 30)


def _label(key: Key) -> str:
    """``trainer.steps=20``; of what is given as a whole with what it belongs to ``rank``, as YAML has it."""
    shown = key.shown if len(key.shown) <= _LONGEST_VALUE else "…"
    if key.inside:
        return f"    {key.path.removeprefix(key.inside)}" + (f": {shown}" if shown else "")
    return f"  {key.path}={shown}"


def _entry(label: str, meaning: str, width: int, indent: int) -> list[str]:
    """A label and its meaning in two columns; the meaning starts below where the label is too long."""
    wrapped = textwrap.wrap(meaning, width - indent, break_on_hyphens=False, break_long_words=False)
    if len(label) + 2 <= indent:
        first, wrapped = label.ljust(indent) + wrapped[0], wrapped[1:]
    else:
        first = label
    return [line.replace(_KEPT, " ") for line in (first, *(" " * indent + line for line in wrapped))]


def _plain(meaning: str) -> str:
    return meaning.replace("``", "")
