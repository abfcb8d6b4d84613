"""Dataclasses of settings: bounds in their metadata, choices in their annotations, checked in one place. Standard
library only."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .choices import check_choice


def bounded(default: Any, **bounds: float) -> Any:
    """A field with its default and bounds (``ge``, ``gt``, ``le``), which :func:`check_fields` enforces."""
    return field(default=default, metadata=bounds)


def check_fields(settings: Any) -> None:
    """Choices and bounds of a dataclass's fields, as its annotations and metadata state them. Raises ValueError."""
    for setting in fields(settings):
        value, hint = getattr(settings, setting.name), type_hints(type(settings))[setting.name]
        if get_origin(hint) is Literal:
            check_choice(setting.name, value, get_args(hint))
        if value is None:
            continue
        for word, bound in setting.metadata.items():
            inside = {"ge": value >= bound, "gt": value > bound, "le": value <= bound}[word]
            if not inside:  # nor is NaN
                raise ValueError(f"{setting.name}: {_WORDS[word]} {bound} expected, got {value}")


_WORDS = {"ge": "at least", "gt": "more than", "le": "at most"}


def type_hints(kind: type[Any]) -> dict[str, Any]:
    """The resolved annotations of a dataclass."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


_HINTS: dict[type[Any], dict[str, Any]] = {}
