"""What a grid of so many seeds and problems can tell apart: variances of the seeds' numbers, split by what they come
from, and the power of Student's test over seeds (alp/evaluation/statistics.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from alp.evaluation.statistics import CONFIDENCE, Floats, of_seeds, sampling_variance, student_quantile, weights

POWER = 0.8
_MOST = 10_000  # seeds, more than anybody has


@dataclass(frozen=True)
class Components:
    """Variance of one seed's number (a mean over problems, or a difference of means), in its unit squared.

    ``seeds``: by how much seeds differ on any problems like these, which no number of problems takes away;
    ``problems``: seed by problem, less the more problems there are; ``samples``: the draw of answers, less the more
    problems or samples there are.
    """

    seeds: float
    problems: float
    samples: float

    def deviation(self, problems: float = 1.0) -> float:
        """Standard deviation of a seed's number with so many times the problems, each set grown alike."""
        return math.sqrt(self.seeds + (self.problems + self.samples) / problems)


def difference_components(
    first: Floats, second: Floats, *, samples: int, sizes: Sequence[int] | None = None
) -> Components:
    """Of the difference of two arms (seeds, problems), fractions of ``samples`` answers that were right.

    Analysis of variance within each set: the total is that of the seeds' numbers, the part of seed by problem and of
    the samples is the residual, that of the samples alone follows from the fractions. A part estimated below zero is
    zero. Raises ValueError with fewer than two seeds, and as :mod:`alp.evaluation.statistics`.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    numbers = of_seeds(difference, sizes=sizes)
    if len(numbers) < 2:
        raise ValueError("variances between seeds need two seeds or more")
    weight = weights(difference.shape[1], sizes)
    edges = np.cumsum([0, *([len(weight)] if sizes is None else sizes)]).tolist()
    squares: list[float] = [
        _residual(difference[:, start:end]) * float(weight[start]) ** 2 for start, end in pairwise(edges)
    ]
    residual = math.fsum(squares)
    total = max(float(numbers.var(ddof=1)), 0.0)
    drawn = [sampling_variance(row, samples=samples, sizes=sizes) for table in (first, second) for row in table]
    sampled = math.fsum(part or 0.0 for part in drawn) / len(numbers)  # of both arms, mean over seeds
    within = min(residual, total)
    return Components(total - within, max(within - sampled, 0.0), min(sampled, within))


def _residual(table: Floats) -> float:
    """Sum over problems of the variance between seeds that is left when each seed's own level is taken off: the
    residual mean square of (seeds, problems), times the problems. A single problem cannot tell the two apart: 0."""
    seeds, problems = table.shape
    if problems == 1:
        return 0.0
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    return float((rest**2).sum() / ((seeds - 1) * (problems - 1)) * problems)


def pooled(parts: Sequence[Components]) -> Components:
    """The mean of each variance: what a comparison of the grid has on average."""
    means = [math.fsum(getattr(part, name) for part in parts) / len(parts) for name in ("seeds", "problems", "samples")]
    return Components(*means)


def chance_to_tell(distance: float, seeds: int, *, confidence: float = CONFIDENCE) -> float:
    """Chance that the interval of ``seeds`` seeds excludes zero where the truth lies ``distance`` standard deviations
    of a seed's number away: the noncentral t distribution. Raises ValueError below two seeds."""
    if seeds < 2:
        raise ValueError(f"seeds = {seeds}: an interval needs two or more")
    from scipy.special import nctdtr

    freedom, shift = seeds - 1, abs(distance) * math.sqrt(seeds)
    reach = float(student_quantile(freedom, confidence))
    return float(1 - nctdtr(freedom, shift, reach) + nctdtr(freedom, shift, -reach))


def smallest_difference(seeds: int, *, power: float = POWER) -> float:
    """In standard deviations of a seed's number: what ``seeds`` seeds tell from zero with that chance. Raises
    ValueError for a power outside of 0.05 ... 1."""
    if not 1 - CONFIDENCE < power < 1:
        raise ValueError(f"power = {power} must lie between {1 - CONFIDENCE:.2f} and 1")
    low, high = 0.0, 1.0
    while chance_to_tell(high, seeds) < power:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chance_to_tell(middle, seeds) < power else (low, middle)
    return high


def seeds_needed(effect: float, deviation: float, *, power: float = POWER) -> int | None:
    """The fewest seeds that tell a difference of ``effect`` from zero with that chance, where a seed's number has the
    standard deviation ``deviation``; None for more than anybody has."""

    def enough(seeds: int) -> bool:
        return smallest_difference(seeds, power=power) * deviation <= effect

    if not enough(_MOST):
        return None
    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def problems_needed(part: Components, deviation: float) -> float | None:
    """Times as many problems as there are, so that a seed's number has no more than the standard deviation
    ``deviation``; None where its seeds alone have that."""
    spare = deviation**2 - part.seeds
    return (part.problems + part.samples) / spare if spare > 0 else None
