"""Bootstrap against closed forms and a plain resampling loop; pass@k against counted subsets."""

from __future__ import annotations

import itertools
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
from alp.tasks.task import Problem


def table(seeds: int, problems: int, stream: int = 0) -> np.ndarray:
    rng = np.random.default_rng(stream)
    return np.clip(0.6 + rng.normal(scale=0.05, size=(seeds, 1)) + rng.normal(scale=0.3, size=problems), 0, 1)


def exact_variance(values: np.ndarray) -> float:
    """Variance of the replicate mean: counts are independent multinomials, with covariance I - 11'/n about a mean
    of 1."""
    seeds, problems = values.shape
    centre = [np.eye(n) - np.full((n, n), 1 / n) for n in (seeds, problems)]
    rows, columns = values.sum(axis=1), values.sum(axis=0)
    total = (
        rows @ centre[0] @ rows + columns @ centre[1] @ columns + np.trace(centre[0] @ values @ centre[1] @ values.T)
    )
    return float(total / (seeds * problems) ** 2)


@pytest.mark.parametrize("shape", [(1, 30), (3, 200), (8, 25), (5, 1)])
def test_replicates_have_the_mean_and_variance_of_the_closed_form(shape: tuple[int, int]) -> None:
    values = table(*shape)
    means = statistics.bootstrap_means(values)
    assert means.shape == (10_000,)
    deviation = exact_variance(values) ** 0.5
    assert means.mean() == pytest.approx(values.mean(), abs=4 * deviation / 100)
    assert means.std() == pytest.approx(deviation, rel=0.03)


def test_interval_agrees_with_resampling_written_out() -> None:
    values = table(4, 50, stream=3)
    rng = np.random.default_rng(99)
    means = [values[np.ix_(rng.integers(4, size=4), rng.integers(50, size=50))].mean() for _ in range(10_000)]
    found = statistics.interval(values)
    low, high = np.quantile(means, [0.025, 0.975])
    width = high - low
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(low, abs=0.04 * width)
    assert found.high == pytest.approx(high, abs=0.04 * width)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 10**6))
def test_sets_count_alike_whatever_their_sizes(sizes: list[int], seeds: int, stream: int) -> None:
    values = table(seeds, sum(sizes), stream)
    ends = np.cumsum([0, *sizes])
    parts = [values[:, start:end] for start, end in itertools.pairwise(ends)]
    found = statistics.interval(values, sizes=sizes, replicates=50)
    assert found.mean == pytest.approx(np.mean([part.mean() for part in parts]))
    assert statistics.interval(values, sizes=[sum(sizes)], replicates=50) == statistics.interval(values, replicates=50)


def test_sets_are_resampled_each_by_itself() -> None:
    """Constant within each set: problems drawn across sets would make the mean vary."""
    values = np.repeat([[0.2, 0.8]], [30, 5], axis=1)
    found = statistics.interval(values, sizes=[30, 5])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("sizes", [[], [3, 3], [7, 0], [8, -1], [6]])
def test_sizes_that_are_no_split_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="no split of 7 problems into sets"):
        statistics.interval(table(2, 7), sizes=sizes)


def test_one_seed_resamples_problems_alone() -> None:
    values = table(1, 400, stream=5)
    found = statistics.interval(values)
    normal = 1.96 * values.std() / 400**0.5
    assert found.high - found.low == pytest.approx(2 * normal, rel=0.05)


def test_equal_values_give_an_interval_of_no_width() -> None:
    found = statistics.interval(np.full((3, 7), 0.25))
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


def test_the_interval_covers_the_truth() -> None:
    """Crossed effects of seeds and problems; the bootstrap is slightly narrow at 12 seeds, far from broken."""
    rng = np.random.default_rng(1)
    hits, trials = 0, 300
    for _ in range(trials):
        values = (
            0.5
            + rng.normal(scale=0.1, size=(12, 1))
            + rng.normal(scale=0.3, size=60)
            + rng.normal(scale=0.1, size=(12, 60))
        )
        found = statistics.interval(values, replicates=500)
        hits += found.low <= 0.5 <= found.high
    assert 0.88 <= hits / trials <= 0.99


def test_a_paired_difference_forgets_what_both_methods_share() -> None:
    shared = table(3, 80, stream=2)
    first = shared + 0.02
    found = statistics.paired_difference(first, shared)
    assert found.mean == pytest.approx(0.02)
    assert found.low == pytest.approx(0.02)
    assert found.high == pytest.approx(0.02)


def test_a_paired_difference_draws_both_methods_with_the_same_indices() -> None:
    first, second = table(3, 40, stream=1), table(3, 40, stream=2)
    apart = statistics.bootstrap_means(first) - statistics.bootstrap_means(second)
    found = statistics.paired_difference(first, second)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(apart, [0.025, 0.975])))


def test_the_base_model_stands_beside_every_seed() -> None:
    base, values = table(1, 40, stream=1), table(3, 40, stream=2)
    assert statistics.paired_difference(base, values).mean == pytest.approx(base.mean() - values.mean())


def test_draws_repeat_and_follow_the_stream() -> None:
    values = table(3, 40)
    assert np.array_equal(statistics.bootstrap_means(values), statistics.bootstrap_means(values))
    assert not np.array_equal(
        statistics.bootstrap_means(values, stream=1), statistics.bootstrap_means(values, stream=2)
    )


@pytest.mark.parametrize("values", [[0.5, 0.5], [[]], [[float("nan"), 0.5]], [[[0.5]]]])
def test_wrong_tables_are_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match="values"):
        statistics.interval(np.array(values))


def test_different_problems_are_no_pair() -> None:
    with pytest.raises(ValueError, match="same seeds and problems"):
        statistics.paired_difference(table(2, 5), table(2, 6))
    with pytest.raises(ValueError, match="same seeds and problems"):
        statistics.paired_difference(table(2, 5), table(3, 5))


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"confidence": 0.0}, "confidence = 0.0 must lie"),
        ({"confidence": float("nan")}, "confidence = nan must lie"),
        ({"confidence": 95}, "confidence = 95 must lie"),
        ({"replicates": 0}, "replicates = 0"),
    ],
)
def test_an_interval_of_nothing_is_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics.interval(table(2, 3), **words)


@pytest.mark.parametrize(("samples", "expected"), [(1, [1]), (5, [1, 2, 4]), (64, [1, 2, 4, 8, 16, 32, 64])])
def test_powers_of_two_end_at_the_samples(samples: int, expected: list[int]) -> None:
    assert passk.powers_of_two(samples) == expected
