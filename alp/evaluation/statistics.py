"""Intervals and tests of mean accuracies over seeds. Numpy, and Student's t from scipy.

Accuracies come as arrays (seeds, problems): the mean over samples of one trained model on one problem. Seeds and
problems are crossed: every seed answers the same problems.

**Seeds are drawn, problems are fixed.** An interval is about the mean accuracy *on these problems* of models trained
with other seeds: what a rebuild of the grid measures again, and what a reader asks of a benchmark whose problems are
the same for everybody (the thirty of an AIME are no sample of anything). It says nothing of other problems. What is
drawn anew with a seed is everything that differs between seeds of an arm: training, and the samples of the answers.
Each seed then gives one number, its mean over problems, and these numbers are independent draws: Student's interval
over them, with seeds - 1 degrees of freedom, holds at three seeds as at sixteen, whatever the variances between
problems, of seed by problem and of sampling, and needs none of them apart. It does not where one seed in several fails
altogether: seeds that went well cannot show that.

A difference of two arms is taken seed by seed, as equal seeds share data, order and problems, and has an interval of
its own variance: nothing is pooled over arms, so that an arm that collapsed neither widens the others' intervals nor
has its own narrowed by theirs. ``benchmarks/coverage.py`` measures this and the alternatives; ``docs/intervals.md``
holds its table.

Several evaluation sets side by side (``sizes``) count equally, however many problems they have: a seed's number is the
plain mean of its sets' means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its interval, in the unit of the input; ``p_value`` is that of the two-sided test of a mean of zero.
    All but the mean are None where the data cannot say: a single seed knows nothing of the noise between seeds."""

    mean: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    def within(self, lowest: float, highest: float) -> Interval:
        """The same, its ends cut to what the mean can be: that loses no coverage."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, lowest), high=min(self.high, highest))


def _table(values: NDArray[np.generic] | list[list[float]]) -> Floats:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"values must be (seeds, problems) with at least one of each, got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("values hold NaN or infinities: score every problem of every seed")
    return table


def weights(problems: int, sizes: Sequence[int] | None) -> Floats:
    """What each problem (problems,) counts in a mean in which every set counts alike; they add up to 1.

    ``sizes``: how many of the problems, in order, belong to each set; one set without. Raises ValueError for sizes that
    are no split of the problems.
    """
    chosen = (problems,) if sizes is None else tuple(sizes)
    if min(chosen, default=0) < 1 or sum(chosen) != problems:
        raise ValueError(f"sizes {chosen} are no split of {problems} problems into sets")
    return np.repeat([1 / (len(chosen) * size) for size in chosen], chosen)


def of_seeds(values: NDArray[np.generic] | list[list[float]], *, sizes: Sequence[int] | None = None) -> Floats:
    """Each seed's number (seeds,): the plain mean of its sets' means. Raises ValueError for another shape, NaN or
    infinities, and for ``sizes`` as :func:`weights`."""
    table = _table(values)
    # row by row: a product with a matrix would let a seed's last digits depend on the other seeds
    weight = weights(table.shape[1], sizes)
    return np.array([math.fsum(row * weight) for row in table])


def mean(values: NDArray[np.generic] | list[list[float]], *, sizes: Sequence[int] | None = None) -> float:
    """Plain mean over the sets of ``values`` (seeds, problems)."""
    means = of_seeds(values, sizes=sizes)
    return math.fsum(means) / len(means)


def student_quantile(freedom: float | Floats, confidence: float = CONFIDENCE) -> Floats:
    """How many standard errors a two-sided interval reaches to either side. Raises ValueError for a confidence outside
    of 0 ... 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} must lie between 0 and 1")
    from scipy.special import stdtrit  # here: jobs import this module at their start and need no scipy until their end

    return np.asarray(stdtrit(freedom, 1 - (1 - confidence) / 2))


def half_width(numbers: Floats, confidence: float = CONFIDENCE) -> Floats:
    """Half the width of Student's interval of the mean of ``numbers`` (…, seeds), at least two; the benchmark of
    coverage calls what the tables call."""
    seeds = numbers.shape[-1]
    errors = numbers.std(axis=-1, ddof=1) / math.sqrt(seeds)
    return np.asarray(student_quantile(seeds - 1, confidence) * errors)


def _student(centre: float, variances: Sequence[float], freedoms: Sequence[float], confidence: float) -> Interval:
    """The interval of a mean whose error is a sum of independent parts, each a variance with its degrees of freedom;
    those of the sum after Satterthwaite (1946, Biometrics Bulletin 2:110)."""
    from scipy.special import stdtr

    variance = math.fsum(variances)
    # in shares, as squares of tiny variances underflow
    shares = [part / variance if variance else 1 / len(variances) for part in variances]
    freedom = 1 / math.fsum(share**2 / of_part for share, of_part in zip(shares, freedoms, strict=True))
    error = math.sqrt(variance)
    reach = float(student_quantile(freedom, confidence)) * error
    # without any error, where all seeds agree to the last answer, the mean is zero or it is not
    chance = 2 * float(stdtr(freedom, -abs(centre) / error)) if error else float(centre == 0)
    return Interval(centre, centre - reach, centre + reach, chance)


def interval(
    values: NDArray[np.generic] | list[list[float]],
    *,
    sizes: Sequence[int] | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Mean of ``values`` (seeds, problems), of sets of ``sizes`` problems, with Student's interval over seeds; of one
    seed the mean alone. Raises ValueError as :func:`of_seeds`, and for a confidence outside of 0 ... 1."""
    numbers = of_seeds(values, sizes=sizes)
    centre = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        student_quantile(1, confidence)
        return Interval(centre)
    return _student(centre, [float(numbers.var(ddof=1)) / len(numbers)], [len(numbers) - 1], confidence)


def paired_difference(
    first: NDArray[np.generic] | list[list[float]],
    second: NDArray[np.generic] | list[list[float]],
    *,
    sizes: Sequence[int] | None = None,
    samples: int | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Mean of ``first`` - ``second`` with its interval, over the differences of equal seeds.

    Shapes (seeds, problems) with equal seeds and problems in equal order. A single row beside several seeds is one
    given model (the base model): every difference shares the error of its ``samples`` answers a problem, which is added
    once; without ``samples`` that is unknown, and so is the interval. Raises ValueError for other shapes.
    """
    left, right = _table(first), _table(second)
    if left.shape[1] != right.shape[1] or (
        left.shape[0] != right.shape[0] and 1 not in (left.shape[0], right.shape[0])
    ):
        raise ValueError(
            f"a paired difference needs the same seeds and problems, got shapes {left.shape} and {right.shape}"
        )
    whole = interval(left - right, sizes=sizes, confidence=confidence)
    if left.shape[0] == right.shape[0]:
        return whole
    given, seeds = (left[0], len(right)) if len(left) == 1 else (right[0], len(left))
    shared = None if samples is None else sampling_variance(given, samples=samples, sizes=sizes)
    if shared is None or samples is None:
        return Interval(whole.mean)
    between = float(of_seeds(left - right, sizes=sizes).var(ddof=1)) / seeds
    return _student(whole.mean, [between, shared], [seeds - 1, len(given) * (samples - 1)], confidence)


def sampling_variance(fractions: Floats, *, samples: int, sizes: Sequence[int] | None = None) -> float | None:
    """Unbiased estimate of the variance that drawing ``samples`` answers a problem leaves in a model's mean;
    ``fractions`` (problems,) are those that were right. None with a single sample, which does not show it."""
    if samples < 1:
        raise ValueError(f"samples = {samples}: at least one is needed")
    row = _table(np.asarray(fractions)[None])[0]
    if samples == 1:
        return None
    return math.fsum(weights(len(row), sizes) ** 2 * row * (1 - row)) / (samples - 1)


def model_interval(
    fractions: Floats, *, samples: int, sizes: Sequence[int] | None = None, confidence: float = CONFIDENCE
) -> Interval:
    """Mean of one given model's ``fractions`` (problems,) of right answers, with an interval for what a new draw of its
    ``samples`` answers to the same problems would change; from a single sample the mean alone."""
    centre = mean(np.asarray(fractions)[None], sizes=sizes)
    variance = sampling_variance(fractions, samples=samples, sizes=sizes)
    if variance is None:
        return Interval(centre)
    return _student(centre, [variance], [len(fractions) * (samples - 1)], confidence)


def problem_interval(values: Floats, *, confidence: float = CONFIDENCE) -> Interval:
    """Mean of one model's ``values`` (problems,) with Student's interval over *problems*, as if these were drawn from
    many like them: what a single evaluation can say for itself. Of one problem the mean alone."""
    return interval(np.asarray(values, dtype=np.float64)[:, None], confidence=confidence)


def stay_clear(p_values: Sequence[float | None], *, level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which of several differences stay clear of zero all at once: the chance that any of them does by luck alone is at
    most ``level``. Holm's step-down test (1979, Scandinavian Journal of Statistics 6:65).

    It holds under any dependence, as here where all share a reference; a maximum over t statistics that share their
    correlations would gain little and have to guess these from as few seeds. Missing p-values are no comparisons.
    """
    clear = [False] * len(p_values)
    known = sorted((value, position) for position, value in enumerate(p_values) if value is not None)
    for rank, (value, position) in enumerate(known):
        if value > level / (len(known) - rank):
            break
        clear[position] = True
    return clear
