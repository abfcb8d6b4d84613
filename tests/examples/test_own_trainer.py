"""The example is a training loop that learns, with the noise really on, as a user would start it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_own_trainer_learns_and_is_perturbed() -> None:
    done = subprocess.run(
        [sys.executable, "examples/own_trainer.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    steps = re.findall(r"step +\d+  reward (\S+)  noise (\S+), (\S+), (\S+)", done.stderr)
    assert len(steps) == 20
    assert float(steps[0][0]) < 0.35
    assert float(steps[-1][0]) > 0.9
    for _, *noise in steps:
        assert all(0.01 < float(size) < 0.04 for size in noise)


def test_it_is_as_short_as_promised() -> None:
    source = (ROOT / "examples" / "own_trainer.py").read_text(encoding="utf-8")
    body = source[source.index("def token_log_probs") : source.index("if __name__")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 60
    assert set(re.findall(r"from alp(\S*) import", source)) == {".policy"}
