"""What several tables say of arms in the same words: intervals as cells, means of what is known, who stands out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alp.evaluation import statistics
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


def stands_out(tables: Sequence[NDArray[np.generic] | None], *, sizes: Sequence[int] | None = None) -> int | None:
    """Position of the arm whose mean is above every other's by more than the interval of their paired difference, taken
    singly; None where there is no such arm, so that a tie is never marked.

    ``tables`` are (seeds, problems) of each arm, None for an arm without the figure.
    """
    known = {place: np.asarray(table, dtype=np.float64) for place, table in enumerate(tables) if table is not None}
    if len(known) < 2:
        return None
    best = max(known, key=lambda place: statistics.mean(known[place], sizes=sizes))
    gaps = [
        statistics.paired_difference(known[best], other, sizes=sizes) for place, other in known.items() if place != best
    ]
    return best if all(gap.low is not None and gap.low > 0 for gap in gaps) else None
