"""Two builds of a grid compared by what they conclude: equal numbers agree, a shift beyond noise and a turned sign are
named, and a difference that is clear on one side alone, within noise, contradicts nothing."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from alp.configuration.grid import Grid
from alp.reporting import runs
from alp.reporting.aggregate import aggregate
from alp.reporting.conclusions import Arm, Comparison, Difference, Estimate, Numbers, compare, numbers_of

from .conftest import GRID, fabricate, write_grid

Finished = tuple[Grid, Path]
Given = tuple[float, float | None, float | None]  # mean, error, degrees of freedom


def difference(first: str, mean: float, error: float | None, df: float | None) -> Difference:
    ends = Estimate(mean=mean, error=error, df=df).interval
    return Difference(first=first, second="grpo", mean=mean, error=error, df=df, low=ends.low, high=ends.high)


def numbers(given: dict[str, Given]) -> Numbers:
    """Differences to GRPO by arm, and arms that lie as far above a half."""
    arms = {
        name: Arm(mean=0.5 + mean / 2, error=error, df=df, seeds=None if df is None else int(df) + 1)
        for name, (mean, error, df) in given.items()
    }
    return Numbers(arms=arms, differences=[difference(name, *values) for name, values in given.items()])


def one(there: Given, here: Given) -> Comparison:
    return compare(numbers({"alp": there}), numbers({"alp": here}))


_GIVEN = st.tuples(st.floats(-0.5, 0.5), st.floats(1e-4, 0.01), st.integers(2, 20).map(float))
_GRID = st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), _GIVEN, min_size=1, max_size=12)


@given(_GRID)
def test_equal_numbers_agree(given: dict[str, Given]) -> None:
    found = compare(numbers(given), numbers(given))
    assert (found.differing, found.alone, found.unmatched, found.open) == ([], [], [], 0)
    assert found.both + found.neither == found.known == len(given)
    assert found.both == sum(difference("x", *values).sign != 0 for values in given.values())
    assert found.summary.endswith("no conclusion differs")
    assert all("at most 0.0 combined standard errors" in line and line.endswith(": none") for line in found.tables)


@given(_GRID, st.data())
def test_a_shift_of_many_standard_errors_is_found(given: dict[str, Given], data: st.DataObject) -> None:
    """Of one difference among up to twelve, from two degrees of freedom on; where it ends a conclusion, or makes one,
    that is a conclusion which differs."""
    name = data.draw(st.sampled_from(sorted(given)))
    mean, error, df = given[name]
    assert error is not None
    shifted = mean + data.draw(st.sampled_from([-1, 1])) * 80 * math.hypot(error, error / 2)
    if not -1 <= shifted <= 1:
        return
    there, here = numbers(given), numbers(given | {name: (shifted, error / 2, df)})
    found = compare(there, here)
    assert found.tables[-1].endswith(f"more than noise explains: {name} − grpo")
    old, new = (difference(name, *values).sign for values in (given[name], (shifted, error / 2, df)))
    assert len(found.differing) == (old != new)
    assert all(line.startswith(f"{name} − grpo: ") for line in found.differing)
    assert found.alone == []


@given(st.floats(0.02, 0.5), st.floats(0.02, 0.5), st.integers(2, 20), st.sampled_from([-1, 1]))
def test_a_turned_sign_of_a_clear_difference_is_named(there: float, here: float, df: int, sign: int) -> None:
    found = one((sign * there, there / 10, df), (-sign * here, here / 10, df))
    assert len(found.differing) == 1
    assert "clear of zero in both builds, with opposite signs" in found.differing[0]
    assert found.summary.endswith("1 conclusion differs")


@given(st.floats(1e-3, 0.05), st.integers(3, 20))
def test_clear_on_one_side_alone_and_within_noise_is_said_and_differs_from_nothing(error: float, df: int) -> None:
    """Three standard errors and a half above zero there, one here: the two lie 1.8 combined ones apart."""
    for there, here, side in ((3.5, 1.0, "there"), (1.0, 3.5, "here")):
        found = one((there * error, error, df), (here * error, error, df))
        assert (found.differing, len(found.alone)) == ([], 1)
        assert f"clear of zero {side} alone, 1.8 combined standard errors apart, within noise" in found.alone[0]
        assert "1 in one alone and within noise of the other; no conclusion differs" in found.summary


def test_one_side_alone_further_apart_than_noise_differs() -> None:
    found = one((0.05, 0.004, 4), (0.0, 0.004, 4))
    assert found.differing == [
        "alp − grpo: +5.0 [+3.9, +6.1] there, 0.0 [−1.1, +1.1] here: clear of zero there alone, 8.8 combined standard"
        " errors apart, more than noise explains"
    ]


def test_differences_without_noise_or_without_an_interval() -> None:
    assert one((0.1, 0.0, 4), (0.1, 0.0, 4)).both == 1, "every seed agrees to the last answer"
    assert "without any noise" in one((0.1, 0.0, 4), (-0.1, 0.0, 4)).differing[0]
    found = one((0.1, None, None), (-0.1, 0.01, 4))
    assert (found.known, found.open) == (0, 1)
    assert "nothing is concluded" in found.summary
    found = compare(numbers({"alp": (0.1, 0.01, 4)}), numbers({"other": (0.1, 0.01, 4)}))
    assert found.unmatched == ["alp − grpo only there", "other − grpo only here"]


def test_two_draws_of_one_truth_seldom_differ() -> None:
    """What the page promises: at most one pair of builds in twenty says that any conclusion differs, whether truths lie
    at zero, at the ends of intervals or far away."""
    rng, seeds, builds = np.random.default_rng(18), 5, 400
    truths, spread = np.array([0, 0, 0.01, 0.02, 0.02, 0.03, -0.02, 0.2]), 0.015

    def build() -> Numbers:
        drawn = rng.normal(truths, spread, size=(seeds, len(truths)))
        errors = drawn.std(axis=0, ddof=1) / math.sqrt(seeds)
        return numbers(
            {
                f"arm{place}": (float(mean), float(error), seeds - 1.0)
                for place, (mean, error) in enumerate(zip(drawn.mean(axis=0), errors, strict=True))
            }
        )

    pairs = [compare(build(), build()) for _ in range(builds)]
    wrong = sum(bool(found.differing) for found in pairs)
    assert wrong / builds <= 0.05
    assert sum(len(found.alone) for found in pairs) > builds, "while verdicts by themselves change all the time"


# ---- of a grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finished", "several"])
def test_numbers_are_those_of_the_tables(name: str, request: pytest.FixtureRequest) -> None:
    grid, results = request.getfixturevalue(name)
    loaded = runs.load(grid, results)
    found = numbers_of(loaded)
    with (aggregate(grid, results) / "main.csv").open(encoding="utf-8") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert found.arms.keys() == rows.keys()
    for arm, row in rows.items():
        estimate = found.arms[arm]
        ends = estimate.interval.within(0, 1)
        said = [float(row[f"accuracy_{part}"]) for part in ("mean", "low", "high")]
        assert [ends.mean, ends.low, ends.high] == pytest.approx(said, abs=1e-6)
    gaps = {gap.first: gap for gap in found.differences if gap.second == "grpo"}
    for arm in rows.keys() - {"grpo"}:
        values = (gaps[arm].mean, gaps[arm].low, gaps[arm].high)
        named = ("difference_to_reference", "difference_low", "difference_high")
        assert values == pytest.approx([float(rows[arm][part]) for part in named], abs=1e-6)
    controls = [(gap.first, gap.second) for gap in found.differences if gap.second != "grpo"]
    assert ("token_alp", "token_alp-sigma0") in controls


def test_an_arm_s_error_is_student_s(finished: Finished) -> None:
    """Against scipy, from the seeds' own accuracies."""
    loaded = runs.load(*finished)
    arm = loaded.arms[0]
    seeds = [run.evaluation.accuracy for run in arm.runs]
    found = numbers_of(loaded).arms[arm.name]
    assert found.error == pytest.approx(stats.sem(seeds), rel=1e-9)
    assert (found.df, found.seeds) == (len(seeds) - 1, len(seeds))


def test_one_seed_concludes_nothing(tmp_path: Path) -> None:
    grid, results = fabricate(write_grid(tmp_path, GRID.replace("[0, 1]", "[0]")), tmp_path / "results", steps=3)
    found = numbers_of(runs.load(grid, results))
    assert {arm.error for name, arm in found.arms.items() if name != "base"} == {None}
    assert compare(found, found).known == 0


BROKEN: list[dict[str, Any]] = [
    {"low": -0.5},
    {"low": None},
    {"mean": 1.5},
    {"mean": math.nan},
    {"mean": "0.1"},
    {"error": -0.01},
    {"error": None},
    {"df": 0.0},
    {"df": None},
    {"second": "../grpo"},
    {"more": 1},
]


@pytest.mark.parametrize("change", BROKEN, ids=str)
def test_a_difference_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    plain = difference("alp", 0.1, 0.01, 4).model_dump()
    Difference.model_validate(plain)
    with pytest.raises(ValidationError):
        Difference.model_validate(plain | change)


def test_a_difference_stands_once() -> None:
    plain = numbers({"alp": (0.1, 0.01, 4)}).model_dump()
    with pytest.raises(ValidationError, match="stands twice"):
        Numbers.model_validate(plain | {"differences": plain["differences"] * 2})
