"""Intervals over seeds against formulas written out, their invariants and their coverage; pass@k against counted
subsets."""

from __future__ import annotations

import itertools
import math
import statistics as plain
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alp.evaluation import passk, statistics
from alp.evaluation.evaluate import summarise
from alp.evaluation.samples import Sample
from alp.evaluation.statistics import Interval
from alp.tasks.task import Problem

# Two-sided 95 % points of Student's t from a printed table (Fisher and Yates, 1963), by degrees of freedom.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 7: 2.365, 9: 2.262, 15: 2.131, 29: 2.045}

shapes = st.tuples(st.integers(2, 6), st.integers(1, 7), st.integers(0, 10**6))


def table(seeds: int, problems: int, stream: int = 0) -> np.ndarray:
    rng = np.random.default_rng(stream)
    return np.clip(0.6 + rng.normal(scale=0.05, size=(seeds, 1)) + rng.normal(scale=0.3, size=(seeds, problems)), 0, 1)


def ends(found: Interval) -> list[float]:
    assert found.low is not None
    assert found.high is not None
    return [found.mean, found.low, found.high]


def student_tail(distance: float, freedom: int) -> float:
    """Two-sided chance by integrating the density of Student's t, Simpson's rule in the angle: t = √ν tan θ."""
    start = math.atan(distance / math.sqrt(freedom))
    angles = np.linspace(start, math.pi / 2, 2001)
    heights = np.cos(angles) ** (freedom - 1)
    weights = np.array([1, *([4, 2] * 999), 4, 1])
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return float(2 * scale * (weights * heights).sum() * (angles[1] - angles[0]) / 3)


@pytest.mark.parametrize(("freedom", "printed"), PRINTED.items())
def test_quantiles_are_those_of_the_printed_table(freedom: int, printed: float) -> None:
    assert float(statistics.student_quantile(freedom)) == pytest.approx(printed, abs=6e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5, 16])
def test_the_interval_is_the_formula_over_seed_means(seeds: int) -> None:
    values = table(seeds, 11, stream=seeds)
    means = [sum(map(float, row)) / 11 for row in values]
    error = plain.stdev(means) / math.sqrt(seeds)
    quantile = PRINTED[seeds - 1]
    found = statistics.interval(values)
    expected = [plain.mean(means), plain.mean(means) - quantile * error, plain.mean(means) + quantile * error]
    assert ends(found) == pytest.approx(expected, abs=1e-3 * quantile * error)
    assert found.p_value == pytest.approx(student_tail(plain.mean(means) / error, seeds - 1), rel=1e-5)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(2, 4), st.integers(0, 10**6))
def test_sets_count_alike_whatever_their_sizes(sizes: list[int], seeds: int, stream: int) -> None:
    values = table(seeds, sum(sizes), stream)
    edges = np.cumsum([0, *sizes])
    of_sets = np.array([values[:, start:end].mean(1) for start, end in itertools.pairwise(edges)]).mean(0)
    assert ends(statistics.interval(values, sizes=sizes)) == pytest.approx(
        ends(statistics.interval(of_sets[:, None])), abs=1e-12
    )
    assert statistics.interval(values, sizes=[sum(sizes)]) == statistics.interval(values)


@pytest.mark.parametrize("sizes", [[], [3, 3], [7, 0], [8, -1], [6]])
def test_sizes_that_are_no_split_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="no split of 7 problems into sets"):
        statistics.interval(table(2, 7), sizes=sizes)


@given(shapes, st.floats(-2, 2), st.floats(0.01, 50))
def test_a_shift_shifts_and_a_scale_scales(shape: tuple[int, int, int], shift: float, scale: float) -> None:
    values = table(*shape)
    before = ends(statistics.interval(values))
    after = ends(statistics.interval(shift + scale * values))
    assert after == pytest.approx([shift + scale * end for end in before], abs=1e-9 * (1 + scale))


@given(shapes, st.randoms(use_true_random=False))
def test_the_order_of_seeds_and_problems_is_nothing(shape: tuple[int, int, int], random: Any) -> None:
    values = table(*shape)
    rows, columns = list(range(shape[0])), list(range(shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    assert ends(statistics.interval(values[np.ix_(rows, columns)])) == pytest.approx(
        ends(statistics.interval(values)), abs=1e-12
    )


@given(shapes)
def test_a_difference_changes_its_sign_with_the_order_of_its_arms(shape: tuple[int, int, int]) -> None:
    first, second = table(*shape), table(shape[0], shape[1], shape[2] + 1)
    there, back = (statistics.paired_difference(*pair) for pair in ((first, second), (second, first)))
    mean, low, high = ends(there)
    assert ends(back) == pytest.approx([-mean, -high, -low], abs=1e-12)
    assert back.p_value == pytest.approx(there.p_value)
    assert ends(there) == ends(statistics.interval(first - second))


def test_a_paired_difference_forgets_what_both_methods_share() -> None:
    shared = table(3, 80, stream=2)
    assert ends(statistics.paired_difference(shared + 0.02, shared)) == pytest.approx([0.02, 0.02, 0.02])


def test_one_seed_has_a_mean_and_no_interval() -> None:
    values = table(1, 40, stream=5)
    found = statistics.interval(values)
    assert found == Interval(pytest.approx(values.mean()))
    assert found.within(0, 1) == found
    assert statistics.paired_difference(values, table(1, 40)).low is None


def test_equal_seeds_leave_no_width() -> None:
    assert statistics.interval(np.full((3, 7), 0.25)) == Interval(0.25, 0.25, 0.25, 0.0)
    assert statistics.interval(np.zeros((3, 7))) == Interval(0.0, 0.0, 0.0, 1.0)


def test_ends_are_cut_to_what_a_mean_can_be() -> None:
    assert Interval(0.9, 0.7, 1.1, 0.2).within(0, 1) == Interval(0.9, 0.7, 1, 0.2)


def test_a_given_model_has_the_noise_of_its_samples_alone() -> None:
    """Against draws: the estimate is unbiased, sets of unequal sizes included."""
    rng = np.random.default_rng(4)
    chances, sizes, samples = rng.random(12), [8, 4], 6
    weights = np.repeat([1 / 16, 1 / 8], sizes)
    drawn = rng.binomial(samples, chances, size=(20_000, 12)) / samples
    exact = float((weights**2 * chances * (1 - chances)).sum() / samples)
    estimates = [statistics.sampling_variance(row, samples=samples, sizes=sizes) for row in drawn[:4000]]
    assert np.var(drawn @ weights) == pytest.approx(exact, rel=0.04)
    assert plain.mean(each for each in estimates if each is not None) == pytest.approx(exact, rel=0.02)
    covered = [statistics.model_interval(row, samples=samples, sizes=sizes) for row in drawn[:2000]]
    truth = float(chances @ weights)
    assert 0.93 <= np.mean([low <= truth <= high for _, low, high in map(ends, covered)]) <= 0.97


def test_a_single_sample_does_not_show_its_noise() -> None:
    assert statistics.model_interval(np.array([1.0, 0.0]), samples=1) == Interval(0.5)
    assert statistics.paired_difference(table(1, 4), table(3, 4), samples=1).low is None
    assert statistics.paired_difference(table(1, 4), table(3, 4)).low is None


def test_the_base_model_stands_beside_every_seed() -> None:
    """Its sampling error is shared by all differences: added once, with Satterthwaite's degrees of freedom."""
    base, values = table(1, 40, stream=1), table(3, 40, stream=2)
    found = statistics.paired_difference(base, values, samples=8)
    between = plain.variance(map(float, values.mean(1))) / 3
    shared = sum(float(share) * (1 - float(share)) for share in base[0]) / 7 / 40**2
    freedom = (between + shared) ** 2 / (between**2 / 2 + shared**2 / (40 * 7))
    reach = float(statistics.student_quantile(freedom)) * math.sqrt(between + shared)
    assert found.mean == pytest.approx(base.mean() - values.mean())
    assert ends(found)[2] - found.mean == pytest.approx(reach)
    assert ends(statistics.paired_difference(values, base, samples=8)) == pytest.approx(
        [-found.mean, -ends(found)[2], -ends(found)[1]]
    )


def test_one_evaluation_speaks_of_problems() -> None:
    values = table(1, 30, stream=5)[0]
    reach = PRINTED[29] * plain.stdev(map(float, values)) / math.sqrt(30)
    assert ends(statistics.problem_interval(values))[2] - values.mean() == pytest.approx(reach, rel=1e-3)
    assert statistics.problem_interval(np.array([0.5])) == Interval(0.5)


@pytest.mark.parametrize("seeds", [3, 8])
def test_the_interval_covers_the_truth(seeds: int) -> None:
    """Two thousand grids with effects of seeds, problems, both and samples (benchmarks/coverage.py has the whole)."""
    rng, grids, problems, samples = np.random.default_rng(seeds), 2000, 60, 8
    problem = rng.normal(scale=0.15, size=(grids, 1, 1, problems))
    seed = rng.normal(scale=(0.02, 0.06), size=(grids, seeds, 2)).transpose(0, 2, 1)[..., None]
    level = 0.6 + problem + rng.normal(scale=0.03, size=(grids, 2, 1, problems))
    chances = np.clip(level + seed + rng.normal(scale=0.1, size=(grids, 2, seeds, problems)), 0, 1)
    values = rng.binomial(samples, chances) / samples
    truth = level.mean((2, 3))
    means = [statistics.interval(table) for table in values[:, 1]]
    gaps = [statistics.paired_difference(*pair) for pair in values]
    for found, exact in ((means, truth[:, 1]), (gaps, truth[:, 0] - truth[:, 1])):
        hits = [low <= target <= high for (_, low, high), target in zip(map(ends, found), exact, strict=True)]
        assert 0.92 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize("values", [[0.5, 0.5], [[]], [[float("nan"), 0.5]], [[0.5], [float("inf")]], [[[0.5]]]])
def test_wrong_tables_are_refused(values: list[object]) -> None:
    for call in (statistics.interval, statistics.mean, statistics.of_seeds):
        with pytest.raises(ValueError, match="values"):
            call(np.array(values))


def test_different_problems_are_no_pair() -> None:
    for other in ((2, 6), (3, 5)):
        with pytest.raises(ValueError, match="same seeds and problems"):
            statistics.paired_difference(table(2, 5), table(*other))


@pytest.mark.parametrize("confidence", [0.0, 1.0, float("nan"), 95])
def test_a_confidence_is_a_share(confidence: float) -> None:
    for seeds in (1, 2):
        with pytest.raises(ValueError, match=f"confidence = {confidence} must lie"):
            statistics.interval(table(seeds, 3), confidence=confidence)


def test_no_samples_have_no_noise() -> None:
    with pytest.raises(ValueError, match="samples = 0"):
        statistics.model_interval(np.array([0.5]), samples=0)


def test_holm_by_hand() -> None:
    """0.01 ≤ 0.05/4, 0.015 ≤ 0.05/3, 0.03 > 0.05/2: there it stops, whatever follows."""
    assert statistics.stay_clear([0.03, 0.01, 0.04, 0.015]) == [False, True, False, True]
    assert statistics.stay_clear([None, 0.04, None]) == [False, True, False]
    assert statistics.stay_clear([]) == []


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=7))
def test_holm_agrees_with_its_adjusted_p_values(chances: list[float | None]) -> None:
    known = sorted(chance for chance in chances if chance is not None)
    adjusted = {
        chance: max(min(1.0, (len(known) - rank) * other) for rank, other in enumerate(known[: place + 1]))
        for place, chance in enumerate(known)
    }
    smallest = {chance: adjusted[chance] for chance in known}
    level = 1 - statistics.CONFIDENCE
    if all(abs(value - level) > 1e-9 for value in smallest.values()):
        expected = [chance is not None and smallest[chance] <= level for chance in chances]
        assert statistics.stay_clear(chances) == expected


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_subsets(case: tuple[int, int, int]) -> None:
    samples, correct, k = case
    marks = [1] * correct + [0] * (samples - correct)
    subsets = list(itertools.combinations(marks, k))
    assert passk.pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(st.integers(1, 1500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_keeps_to_the_binomials_at_any_size(case: tuple[int, int, int]) -> None:
    samples, correct, k = case
    exact = 1 - Fraction(comb(samples - correct, k), comb(samples, k))
    assert passk.pass_at_k(samples, correct, k) == pytest.approx(float(exact), abs=1e-11)


def test_pass_at_k_is_exact_at_its_ends_and_keeps_the_shape() -> None:
    counts = np.array([[0, 3], [9, 10]])
    found = passk.pass_at_k(10, counts, 2)
    assert found.shape == counts.shape
    assert found[0, 0] == 0.0
    assert found[1, 0] == 1.0
    assert found[1, 1] == 1.0
    assert np.allclose(passk.pass_at_k(10, counts, 1), counts / 10)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        passk.pass_at_k(samples, correct, k)


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [(4, 2, 2.5), (4, 2, True), (4.0, 2, 1), (4, np.array([0.5, np.nan]), 1), (4, "2", 1)]
)
def test_pass_at_k_refuses_what_is_no_count(samples: Any, correct: Any, k: Any) -> None:
    with pytest.raises(ValueError, match="must be whole numbers"):
        passk.pass_at_k(samples, correct, k)


@pytest.mark.parametrize("samples", [0, -1, -8])
def test_no_samples_have_no_k(samples: int) -> None:
    with pytest.raises(ValueError, match=f"samples = {samples}: "):
        passk.powers_of_two(samples)


@pytest.mark.parametrize(("problems", "samples"), [(0, 4), (2, 0), (0, 0)])
def test_nothing_has_no_accuracy(problems: int, samples: int) -> None:
    asked = [Problem(str(number), "p", "1", "own") for number in range(problems)]
    with pytest.raises(ValueError, match=f"an evaluation of {problems} problems with {samples} samples each has no"):
        summarise(asked, [], samples)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_no_wrong_answer(reward: float) -> None:
    graded = [Sample("a", number, value, True, 1) for number, value in enumerate([1.0, reward])]
    with pytest.raises(ValueError, match=f"sample 1 of problem 'a' has the reward {reward}"):
        summarise([Problem("a", "p", "1", "own")], graded, 2)


@pytest.mark.parametrize(("samples", "expected"), [(1, [1]), (5, [1, 2, 4]), (64, [1, 2, 4, 8, 16, 32, 64])])
def test_powers_of_two_end_at_the_samples(samples: int, expected: list[int]) -> None:
    assert passk.powers_of_two(samples) == expected
