"""Nested mappings as dotted keys: the one flattening that configurations, marks and headers are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def entries(
    value: Any, key: str | None = None, *, lists: bool = False, numbered: bool = False
) -> Iterator[tuple[str, Any]]:
    """Every value inside ``value`` under its dotted key, inner mappings included, each before what it holds.

    A list is one value; with ``lists`` its items stand under the list's own key instead, with ``numbered`` they stand
    behind it, under its key and their number.
    """
    if isinstance(value, Mapping) or (numbered and isinstance(value, list)):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            dotted = str(name) if key is None else f"{key}.{name}"
            if not (lists and isinstance(inner, list)):
                yield dotted, inner
            yield from entries(inner, dotted, lists=lists, numbered=numbered)
    elif isinstance(value, list) and lists:
        for item in value:
            if not isinstance(item, Mapping | list):
                yield key or "", item
            yield from entries(item, key, lists=lists)


def leaves(value: Any, *, lists: bool = False, numbered: bool = False) -> Iterator[tuple[str, Any]]:
    """Those of :func:`entries` that hold nothing further; an empty mapping leaves nothing behind, nor does a
    ``numbered`` list."""
    holders = (Mapping, list) if numbered else Mapping
    for key, inner in entries(value, lists=lists, numbered=numbered):
        if not isinstance(inner, holders):
            yield key, inner
