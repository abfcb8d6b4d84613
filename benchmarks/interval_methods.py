"""Intervals that ``benchmarks/coverage.py`` compares, each over many grids at once: ours, which the tables call, and
those that were weighed against it. A method returns both ends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

from alp.evaluation.statistics import CONFIDENCE, half_width, student_quantile

Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]  # low and high (grids,)


def student(numbers: Floats) -> Interval:
    """The tables' own: ``numbers`` (grids, seeds) are a seed's mean, or difference of means."""
    return _around(numbers.mean(-1), half_width(numbers))


def welch(first: Floats, second: Floats) -> Interval:
    """Two arms as if their seeds had nothing in common."""
    seeds = first.shape[-1]
    parts = np.stack([values.var(-1, ddof=1) / seeds for values in (first, second)])
    freedom = parts.sum(0) ** 2 / (parts**2 / (seeds - 1)).sum(0)
    return _around(first.mean(-1) - second.mean(-1), student_quantile(freedom) * np.sqrt(parts.sum(0)))


def pooled(numbers: Floats, every: Floats) -> Interval:
    """One variance between seeds for the whole table; ``every`` (grids, comparisons, seeds) holds its numbers."""
    _, comparisons, seeds = every.shape
    variance = every.var(-1, ddof=1).mean(-1)
    reach = student_quantile(comparisons * (seeds - 1))
    return _around(numbers.mean(-1), reach * np.sqrt(variance / seeds))


def moderated(numbers: Floats, every: Floats) -> Interval:
    """Each variance drawn towards the table's, as far as the variances of the table agree (Smyth 2004, Statistical
    Applications in Genetics and Molecular Biology 3:3, its moments estimate of the prior)."""
    _, comparisons, seeds = every.shape
    freedom = seeds - 1
    logs = np.log(every.var(-1, ddof=1)) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(-1, ddof=1) - polygamma(1, freedom / 2)
    differ = excess > 1e-3  # else: the variances agree, the prior is worth any number of seeds
    prior = np.where(differ, 2 * _trigamma_inverse(np.where(differ, excess, 1.0)), 1e6)
    centre = np.exp(logs.mean(-1) + digamma(prior / 2) - np.log(prior / 2))
    variance = (prior * centre + freedom * numbers.var(-1, ddof=1)) / (prior + freedom)
    reach = student_quantile(np.minimum(prior + freedom, float(comparisons * freedom)))
    return _around(numbers.mean(-1), reach * np.sqrt(variance / seeds))


def crossed(tables: Floats) -> Interval:
    """Problems sampled too: variance of seeds plus problems minus residual, Satterthwaite's degrees of freedom;
    ``tables`` (grids, seeds, problems)."""
    _, seeds, problems = tables.shape
    rows, columns, whole = tables.mean(2), tables.mean(1), tables.mean((1, 2))
    residual = tables - rows[:, :, None] - columns[:, None] + whole[:, None, None]
    noise = (residual**2).sum((1, 2)) / ((seeds - 1) * (problems - 1)) / (seeds * problems)
    by_seed, by_problem = rows.var(-1, ddof=1) / seeds, columns.var(-1, ddof=1) / problems
    variance = np.maximum(by_seed + by_problem - noise, np.maximum(by_seed, by_problem))
    freedom = variance**2 / (
        by_seed**2 / (seeds - 1) + by_problem**2 / (problems - 1) + noise**2 / ((seeds - 1) * (problems - 1))
    )
    return _around(whole, student_quantile(freedom) * np.sqrt(variance))


def bootstrap(tables: Floats, weight: Floats, sizes: tuple[int, ...], replicates: int = 500) -> Interval:
    """What the tables had before: percentiles under resampled seeds and problems (Owen 2007, Annals of Applied
    Statistics 1:386); ``weight`` (problems,) as in a mean whose sets of ``sizes`` problems count alike."""
    seeds = tables.shape[1]
    rng = np.random.default_rng(20260319)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=replicates) / seeds
    drawn = [rng.multinomial(size, np.full(size, 1 / size), size=replicates) for size in sizes]
    by_problem = np.concatenate(drawn, axis=1) * weight
    means = np.stack([((by_seed @ table) * by_problem).sum(1) for table in tables])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=1)
    return low, high


def _around(centre: Floats, reach: Floats) -> Interval:
    return centre - reach, centre + reach


def _trigamma_inverse(values: Floats) -> Floats:
    """Newton's method on 1 / trigamma, which is convex (Smyth 2004, appendix)."""
    found = 0.5 + 1 / values
    for _ in range(30):
        slope = polygamma(1, found)
        found = found + slope * (1 - slope / values) / polygamma(2, found)
    return np.asarray(found)
