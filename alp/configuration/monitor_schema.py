"""The configuration of ``alp monitor``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from alp.configuration.fields import NonNegative, Positive, PositiveFloat, Strict


class MonitorConfig(Strict):
    """``jobs`` and ``baseline`` are the folder of a job, or a folder above several; ``keys`` are figures of
    ``metrics.jsonl`` (docs/results.md)."""

    jobs: str | None
    """Folder of a job, or one above several, to be followed."""
    baseline: str | None
    """The same of what is held to be sound; a job is held against its own arm's runs there, where there are any."""
    keys: Annotated[list[str], Field(min_length=1)]
    """Figures of ``metrics.jsonl`` that are watched."""
    neighbours: NonNegative
    """Steps before and behind that a step's band takes in."""
    widen: Annotated[float, Field(ge=1, le=1000)]
    """Width of the band over the range of the baseline's runs."""
    in_a_row: Positive
    """Steps outside in a row before it is said."""
    once: bool
    """Whether to look at what is there now, and end."""
    every: PositiveFloat
    """Seconds between two looks."""
    quiet: PositiveFloat
    """Seconds without a running job after which it ends."""
