"""Variance components against the truth of simulated grids, power against published sample sizes and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alp.evaluation import power, statistics
from alp.evaluation.power import Components


def test_components_are_those_that_the_grid_was_drawn_with() -> None:
    """Two arms of many seeds; the parts of a difference are those of both arms."""
    rng, seeds, problems, samples = np.random.default_rng(0), 400, 50, 4
    between, interaction = 0.03, 0.1
    chances = (
        0.5
        + rng.normal(scale=0.1, size=problems)
        + rng.normal(scale=between, size=(2, seeds, 1))
        + rng.normal(scale=interaction, size=(2, seeds, problems))
    )
    chances = np.clip(chances, 0, 1)
    found = power.difference_components(*rng.binomial(samples, chances) / samples, samples=samples)
    assert found.seeds == pytest.approx(2 * between**2, rel=0.2)
    assert found.problems == pytest.approx(2 * interaction**2 / problems, rel=0.2)
    drawn = (chances * (1 - chances)).mean() / samples / problems
    assert found.samples == pytest.approx(2 * drawn, rel=0.05)


def test_the_residual_by_hand() -> None:
    """Two seeds, two problems: rows 0, 0.5 and 0.5, 0; their means agree, so all there is between seeds is none."""
    first = np.array([[0.0, 0.5], [0.5, 0.0]])
    found = power.difference_components(first, np.zeros((2, 2)), samples=2)
    assert found == Components(0.0, 0.0, 0.0)
    # rows 0.5, 1 and 0, 0.5: means 0.75 and 0.25, variance 0.125; no residual, so all of it is of seeds
    first = np.array([[0.5, 1.0], [0.0, 0.5]])
    assert power.difference_components(first, np.zeros((2, 2)), samples=2) == Components(0.125, 0.0, 0.0)


@given(st.integers(2, 5), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 10**6))
def test_the_parts_are_all_of_the_variance_between_seeds(seeds: int, sizes: list[int], stream: int) -> None:
    first, second = np.random.default_rng(stream).integers(0, 9, size=(2, seeds, sum(sizes))) / 8
    found = power.difference_components(first, second, samples=8, sizes=sizes)
    numbers = statistics.of_seeds(first - second, sizes=sizes)
    assert min(found.seeds, found.problems, found.samples) >= 0
    assert found.deviation() == pytest.approx(float(numbers.std(ddof=1)), abs=1e-9)
    assert found.deviation(math.inf) == pytest.approx(math.sqrt(found.seeds))
    again = power.difference_components(second, first, samples=8, sizes=sizes)
    assert (again.seeds, again.problems) == pytest.approx((found.seeds, found.problems), abs=1e-12)


def test_one_seed_has_no_variance() -> None:
    with pytest.raises(ValueError, match="two seeds or more"):
        power.difference_components(np.zeros((1, 3)), np.zeros((1, 3)), samples=2)


@pytest.mark.parametrize(("effect", "published"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_sample_sizes_of_a_paired_t_test_are_the_published_ones(effect: float, published: int) -> None:
    """Cohen's small, medium and large effect, 80 % power, two-sided 5 %: as G*Power 3 has them."""
    assert power.seeds_needed(effect, 1.0) == published
    assert power.chance_to_tell(effect, published) >= 0.8 > power.chance_to_tell(effect, published - 1)


@pytest.mark.parametrize("seeds", [3, 5, 16])
def test_the_power_is_how_often_the_interval_excludes_zero(seeds: int) -> None:
    smallest = power.smallest_difference(seeds)
    numbers = np.random.default_rng(seeds).normal(smallest, 1.0, size=(20_000, seeds))
    clear = np.abs(numbers.mean(-1)) > statistics.half_width(numbers)
    assert clear.mean() == pytest.approx(0.8, abs=0.01)
    assert power.chance_to_tell(0.0, seeds) == pytest.approx(0.05, abs=1e-9)


def test_problems_take_away_what_is_theirs() -> None:
    part = Components(seeds=1.0, problems=2.0, samples=1.0)
    growth = power.problems_needed(part, 1.5)
    assert growth is not None
    assert part.deviation(growth) == pytest.approx(1.5)
    assert power.problems_needed(part, 1.0) is None
    assert power.pooled([part, Components(0.0, 0.0, 0.0)]) == Components(0.5, 1.0, 0.5)


def test_what_no_grid_resolves_is_none() -> None:
    assert power.seeds_needed(1e-6, 1.0) is None
    assert power.seeds_needed(1.0, 0.0) == 2


@pytest.mark.parametrize("wrong", [0.0, 0.05, 1.0, float("nan")])
def test_a_power_is_a_chance(wrong: float) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        power.smallest_difference(3, power=wrong)
    with pytest.raises(ValueError, match="two or more"):
        power.chance_to_tell(1.0, 1)
