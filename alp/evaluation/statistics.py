"""Intervals over seeds and problems. Pure numpy, fixed random stream.

Accuracies come as arrays (seeds, problems): the mean over samples of one trained model on one problem. Seeds and
problems are crossed (every seed answers the same problems), so one bootstrap replicate draws seeds with replacement and
problems with replacement, and every drawn seed is scored on the same drawn problems. This is the product ("pigeonhole")
bootstrap of Owen (2007, Annals of Applied Statistics 1:386) for a two-way layout; the specification calls it
hierarchical.

With few seeds it errs on the narrow side: S drawn seeds show (S - 1) / S of the variance between seeds, two thirds at S
= 3.

Several evaluation sets side by side (``sizes``) count equally, however many problems they have: the mean is the plain
mean of the sets' means, and problems are drawn within their own set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

REPLICATES = 10_000
CONFIDENCE = 0.95
STREAM = 20260319  # seed of the resampling stream; one for all tables and figures, so that they agree
_CHUNK = 1000  # replicates at a time: bounds memory at chunk x problems floats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile interval, in the unit of the input."""

    mean: float
    low: float
    high: float


@lru_cache(maxsize=8)
def _counts(
    seeds: int, sizes: tuple[int, ...], replicates: int, stream: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """How often each seed (replicates, seeds) and each problem (replicates, sum of ``sizes``) is drawn.

    The counts of n draws with replacement are multinomial, so the indices themselves are never needed. Equal shapes
    give equal draws: that is what pairs two methods.
    """
    rng = np.random.default_rng(stream)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=replicates)
    by_problem = [rng.multinomial(size, np.full(size, 1 / size), size=replicates).astype(np.int32) for size in sizes]
    return by_seed.astype(np.int32), np.concatenate(by_problem, axis=1)


def _table(values: NDArray[np.generic] | list[list[float]]) -> Floats:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"values must be (seeds, problems) with at least one of each, got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("values hold NaN or infinities: score every problem of every seed")
    return table


def _weighed(
    values: NDArray[np.generic] | list[list[float]], sizes: Sequence[int] | None
) -> tuple[Floats, tuple[int, ...]]:
    """The table (seeds, problems) scaled so that its plain mean is that of the sets' means, and the sizes of the
    sets."""
    table = _table(values)
    problems = table.shape[1]
    chosen = (problems,) if sizes is None else tuple(sizes)
    if min(chosen, default=0) < 1 or sum(chosen) != problems:
        raise ValueError(f"sizes {chosen} are no split of {problems} problems into sets")
    if len(chosen) > 1:
        table = table * np.repeat([problems / (len(chosen) * size) for size in chosen], chosen)
    return table, chosen


def bootstrap_means(
    values: NDArray[np.generic] | list[list[float]],
    *,
    sizes: Sequence[int] | None = None,
    replicates: int = REPLICATES,
    stream: int = STREAM,
) -> Floats:
    """Replicates (replicates,) of the mean of ``values`` (seeds, problems) under resampled seeds and problems.

    ``sizes``: how many of the problems, in order, belong to each set; one set without. A single row resamples problems
    alone. Raises ValueError for another shape, NaN or infinities.
    """
    table, chosen = _weighed(values, sizes)
    if replicates < 1:
        raise ValueError(f"replicates = {replicates}: at least one is needed")
    seeds, problems = table.shape
    by_seed, by_problem = _counts(seeds, chosen, replicates, stream)
    means = np.empty(replicates)
    for start in range(0, replicates, _CHUNK):
        part = slice(start, start + _CHUNK)
        drawn_seeds = by_seed[part].astype(np.float64) @ table  # (chunk, problems)
        means[part] = np.einsum("rp,rp->r", drawn_seeds, by_problem[part].astype(np.float64))
    means /= seeds * problems
    return means


def mean(values: NDArray[np.generic] | list[list[float]], *, sizes: Sequence[int] | None = None) -> float:
    """Plain mean over the sets of ``values`` (seeds, problems)."""
    return float(_weighed(values, sizes)[0].mean())


def interval(
    values: NDArray[np.generic] | list[list[float]],
    *,
    sizes: Sequence[int] | None = None,
    confidence: float = CONFIDENCE,
    replicates: int = REPLICATES,
    stream: int = STREAM,
) -> Interval:
    """Mean of ``values`` (seeds, problems), of sets of ``sizes`` problems, with its percentile interval. Raises
    ValueError as ``bootstrap_means``, and for a confidence outside of 0 ... 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} must lie between 0 and 1")
    tail = (1 - confidence) / 2
    low, high = np.quantile(
        bootstrap_means(values, sizes=sizes, replicates=replicates, stream=stream), [tail, 1 - tail]
    )
    return Interval(mean(values, sizes=sizes), float(low), float(high))


def paired_difference(
    first: NDArray[np.generic],
    second: NDArray[np.generic],
    *,
    sizes: Sequence[int] | None = None,
    confidence: float = CONFIDENCE,
    replicates: int = REPLICATES,
    stream: int = STREAM,
) -> Interval:
    """Mean of ``first`` - ``second`` with its interval, both resampled with the same seeds and the same problems.

    Shapes (seeds, problems) with equal seeds and problems in equal order; a single row (the base model) stands beside
    every seed. The mean is linear, so resampling the differences is resampling both with one set of indices.
    """
    left, right = _table(first), _table(second)
    if left.shape[1] != right.shape[1] or (
        left.shape[0] != right.shape[0] and 1 not in (left.shape[0], right.shape[0])
    ):
        raise ValueError(
            f"a paired difference needs the same seeds and problems, got shapes {left.shape} and {right.shape}"
        )
    return interval(left - right, sizes=sizes, confidence=confidence, replicates=replicates, stream=stream)
