"""``benchmarks/sandbox.py`` at its smallest: every side gives the program's answer, and is counted."""

from __future__ import annotations

import pytest

from benchmarks import sandbox


def test_every_side_runs_the_program_and_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.main(["rounds=2", "programs=40", "workers=2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:5]] == ["warm workers", "python -c", "new sandbox"]
    assert lines[5].startswith("goal: 500 a second on 2 cores")
    for line in lines[2:4]:
        p50, p99, processor = map(float, line.strip("| ").split(" | ")[-3:])
        assert 0 < p50 <= p99
        assert 0 < processor < 100  # ms: the programs' processes were found, and nobody else's


def test_a_wrong_answer_stops_it() -> None:
    side = sandbox.Side(lambda: "384\n", None)
    with pytest.raises(RuntimeError, match="384"):
        side.round(1, 1, counts=True)
