"""Bands of decoder layers as text: ``start:end``, end exclusive, as Python slices them. Without torch: configurations
read it."""

from __future__ import annotations

import re

FORM = "start:end (either may be left out; negative numbers count from the end)"
_BAND = re.compile(r"(-?[0-9]+):(-?[0-9]+)?|:(-?[0-9]+)")


def is_band(text: str) -> bool:
    """``start:end``, ``start:`` or ``:end``, whole numbers."""
    return _BAND.fullmatch(text) is not None


def in_band(text: str, depth: int) -> list[int]:
    """The layers of a band in a model of ``depth`` layers. Raises ValueError for a band that is empty or reaches
    outside."""
    first, last = text.split(":")
    return between(int(first) if first else 0, int(last) if last else depth, depth, text)


def between(start: int, end: int, depth: int, text: str) -> list[int]:
    """The same of two numbers; errors call the band ``text``."""
    low, high = (value + depth if value < 0 else value for value in (start, end))
    if not 0 <= low < high <= depth:
        layers = "one layer" if depth == 1 else f"{depth} layers"
        raise ValueError(f"layers: band {text} is empty or outside the model's {layers} (0:{depth})")
    return list(range(low, high))
