"""What a job says of itself while it works and at its end, and what a grid's log takes from there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alp import progress
from alp.following import JobLines
from alp.progress import Progress, span


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_says_where_the_work_stands_and_how_long_it_takes(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("train grpo seed 3", 25, "step") as bar:
        for done in range(1, 26):
            clock[0] += 8.0
            bar.update(done, f"reward {done / 100:.2f}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train grpo seed 3: step 1/25, reward 0.01, 3 min left"  # 24 · 8 s
    assert lines[1] == "train grpo seed 3: step 3/25, reward 0.03, 3 min left"  # a line every 15 s at most
    assert lines[-2] == "train grpo seed 3: step 23/25, reward 0.23, 16 s left"
    assert lines[-1] == "train grpo seed 3: done, 25 steps in 3 min, reward 0.25"
    assert len(lines) == 13


def test_what_was_there_before_says_nothing_of_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("evaluate grpo seed 0 on test", 100, "problem") as bar:
        for done in (20, 40):  # read from files in no time
            bar.keep(done)
            bar.update(done, "accuracy 0.500")
        clock[0] += 30.0
        bar.update(50, "accuracy 0.510")
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "evaluate grpo seed 0 on test: problem 20/100, accuracy 0.500"
    assert second.endswith("problem 50/100, accuracy 0.510, 2 min left")  # 50 more at 3 s each
    assert last == "evaluate grpo seed 0 on test: done, 100 problems in 30 s, accuracy 0.510"


def test_a_failed_job_is_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress("train grpo seed 0", 2, "step")
    with pytest.raises(KeyError), bar:
        raise KeyError
    assert "done" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (5939, "99 min"), (6000, "1 h 40 min"), (180_000, "2 d 2 h")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_grids_log_takes_the_newest_line_of_each_job(tmp_path: Path) -> None:
    old, new = tmp_path / "evaluate" / "grpo_seed0.log", tmp_path / "train" / "grpo_seed1.log"
    for path in (old, new):
        path.parent.mkdir()
    old.write_text("evaluate grpo seed 0 on test: done, 12 problems in 3 s, accuracy 0.500\n", encoding="utf-8")
    jobs = JobLines(tmp_path)
    assert jobs.news() == []  # of a run before
    line = "train grpo seed 1: step 2/3, reward 0.4, 1 s left"
    new.write_text(f"alp train method=grpo\ntrain grpo seed 1: step 1/3, reward 0.3\n{line}\n", encoding="utf-8")
    assert jobs.news() == [line]
    assert jobs.news() == []
    done = "train grpo seed 1: done, 3 steps in 4 s, reward 0.5"
    new.write_text(f"{line}\n{done}\nresults/smoke/grpo/seed1\nWARNING train: no such line\n", encoding="utf-8")
    os.utime(new, ns=(1, 1))
    assert jobs.news() == [done]
    new.unlink()
    assert jobs.news() == []
