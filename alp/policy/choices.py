"""Names that a setting can have; an unknown one is a ``ValueError`` with the nearest. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def check_choice(setting: str, value: str, known: Iterable[str]) -> None:
    """``value`` is one of ``known``. Raises ValueError."""
    names = sorted(known)
    if value in names:
        return
    close = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(names)}"
    raise ValueError(f"{setting}: unknown '{value}'; {hint}")


def registers(registry: dict[str, Function], name: str) -> Callable[[Function], Function]:
    """A decorator that puts a function into ``registry`` under ``name``, once."""

    def add(function: Function) -> Function:
        if name in registry:
            raise ValueError(f"'{name}' is registered twice")
        registry[name] = function
        return function

    return add
