"""The workflow itself killed at random moments; the sample that `make test` runs is in tests/workflow/test_dag.py."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from benchmarks.reproduce import build
from tests.faults.conftest import ALL, Ledger
from tests.faults.kill_grid import compare, kill_until_done


@pytest.mark.skipif(not ALL, reason="builds the smoke grid twice: make faults")
def test_workflow_killed_ten_times(tmp_path: Path, ledger: Ledger) -> None:
    started = time.monotonic()
    manifest = build(tmp_path / "whole", "smoke", 2)
    seconds = time.monotonic() - started
    other, sent = kill_until_done(tmp_path / "killed", "smoke", 2, 10, random.Random(5), seconds)
    assert len(sent) >= 5, "the build got through too early"
    lost, changed = compare(manifest, other)
    ledger.tried("workflow killed", len(sent), len(lost), len(changed))
    assert not lost
    assert not changed
