"""What several tables say of arms in the same words: intervals as cells, differences to GRPO, the best of a column."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alp.evaluation.statistics import Interval
from alp.rendering.numbers import Cell


def interval_cells(value: Interval | None) -> list[Cell]:
    """Mean, low and high; the last two are missing where seeds are too few for an interval, all three where there is
    nothing to compare."""
    return [None, None, None] if value is None else [value.mean, value.low, value.high]


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Plain mean of what is there; None where nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def highest(values: Sequence[Cell], *, start: int) -> list[int]:
    """Positions from ``start`` on whose value prints as the highest, to one digit of a percent."""
    printed = {
        row: round(100 * float(value), 1) for row, value in enumerate(values) if row >= start and value is not None
    }
    return [row for row, value in printed.items() if value == max(printed.values())]
