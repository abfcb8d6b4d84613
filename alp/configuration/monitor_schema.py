"""The configuration of ``alp monitor``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from alp.configuration.fields import NonNegative, Positive, PositiveFloat, Strict


class MonitorConfig(Strict):
    """``jobs`` and ``baseline`` are the folder of a job, or a folder above several; ``keys`` are figures of
    ``metrics.jsonl`` (docs/results.md)."""

    jobs: str | None
    baseline: str | None
    keys: Annotated[list[str], Field(min_length=1)]
    neighbours: NonNegative  # steps
    widen: Annotated[float, Field(ge=1, le=1000)]
    in_a_row: Positive  # steps
    once: bool
    every: PositiveFloat  # seconds
    quiet: PositiveFloat  # seconds
