"""Sentences about the noise: few arms by name, many by range, and none called different that its interval does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alp.configuration.grid import Grid
from alp.rendering.tables import Row
from alp.reporting import noise_findings, runs
from alp.reporting.noise_findings import Compared, told_apart

from .conftest import Path

Finished = tuple[Grid, Path]
ENDS = st.floats(-0.5, 0.5).map(lambda value: round(value, 3))


@st.composite
def comparisons(draw: st.DrawFn) -> list[tuple[Compared, bool]]:
    """Differences of arms; what is clear at once excludes zero singly too."""
    found = []
    for number in range(draw(st.integers(1, 8))):
        low, mean, high = sorted(draw(st.tuples(ENDS, ENDS, ENDS)))
        one = Compared(f"arm{number}", mean, low, high)
        found.append((one, one.differs and draw(st.booleans())))
    return found


@given(comparisons())
def test_every_arm_is_told_once_and_as_its_interval_has_it(made: list[tuple[Compared, bool]]) -> None:
    found, clear = [one for one, _ in made], [one for one, mark in made if mark]
    text = told_apart(found, clear, len(found))
    for one, mark in made:
        assert (f"{one.name} (" in text) == one.differs
        if mark:
            assert text.index(f"{one.name} (") < (text.find("taken singly") % (len(text) + 1))
    assert text.startswith("none stays clear") == (not clear)
    assert ("with zero inside the interval" in text) == any(not one.differs for one in found)


def _row(method: str, control: str, changed: str, difference: float = 0.01, reach: float = 0.02) -> Row:
    ends = {"difference_low": difference - reach, "difference_high": difference + reach}
    return {"method": method, "control": control, "changed": changed, "difference": difference, "clear": False, **ends}


def test_an_arm_is_held_against_one_control_that_differs_in_the_noise_alone() -> None:
    rows = [
        _row("seq_alp", "seq_bypass-clip_tight", "noise, clip range"),
        _row("seq_alp", "seq_bypass", "noise"),
        _row("seq_alp", "seq_alp-sigma0", "noise", 0.3),
        _row("token_alp", "token_bypass", "noise, clip range"),
    ]
    assert [row["control"] for row in noise_findings.pairs(rows)] == ["seq_bypass"]
    first, missing = noise_findings.accuracy(rows, ["seq_alp", "token_alp"])
    assert first.startswith("Seq-ALP minus Seq-Bypass, which differs in the noise alone: +1.0 points [−1.0, +3.0];")
    assert missing.endswith("noise of Token-ALP.")


def test_tails_are_a_ratio_by_seed(finished: Finished) -> None:
    """Against scipy on the logarithms of the widths."""
    loaded = runs.load(*finished)
    row = _row("token_alp", "token_alp-sigma0", "noise")
    (own, *_) = noise_findings.tails(loaded, [row])
    logs = []
    for name in ("token_alp", "token_alp-sigma0"):
        arm = loaded.find(name)
        assert arm is not None
        widths = [replace(arm, runs=(run,)).tail_width("token") for run in arm.runs]
        logs.append(np.log(np.array(widths, dtype=np.float64)))
    interval = stats.ttest_rel(*logs).confidence_interval(0.95)
    figures = [np.exp(value) for value in (np.mean(logs[0] - logs[1]), interval.low, interval.high)]
    mean, low, high = (noise_findings.significant(float(value)) for value in figures)
    assert f"{mean} [{low}, {high}] times in Token-ALP" in own


@pytest.mark.parametrize("arms", [2, 5])
def test_who_makes_the_noise(arms: int) -> None:
    shares = {f"seq_alp-relative00{n}": 0.5 + n / 100 for n in range(1, arms + 1)}
    (text,) = noise_findings._whose({"0": shares, "logits": {"token_alp": 1.0}})
    assert ("51 to 55 % in 5 arms" in text) == (arms == 5)
    assert ("51 % in" in text) == (arms == 2)
    assert "the logits' makes 100 % in Token-ALP" in text
