"""The workflow itself killed at random moments; the sample that `make test` runs is in tests/workflow/test_dag.py."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.reproduce import build, command
from tests.faults.conftest import ALL, Ledger
from tests.faults.kill_grid import compare, kill_until_done


@pytest.mark.skipif(not ALL, reason="builds the smoke grid twice: make faults")
def test_workflow_killed_ten_times(tmp_path: Path, ledger: Ledger) -> None:
    started = time.monotonic()
    manifest = build(tmp_path / "whole", "smoke", 2)
    seconds = time.monotonic() - started
    other, sent = kill_until_done(tmp_path / "killed", "smoke", 2, 10, random.Random(5), max(8.0, seconds / 4))
    assert len(sent) >= 5, "the build got through too early"
    lost, changed = compare(manifest, other)
    ledger.tried("workflow killed", len(sent), len(lost), len(changed))
    assert not lost
    assert not changed


@pytest.mark.skipif(not ALL, reason="builds a base model: make faults")
def test_a_job_that_is_asked_to_stop_is_tried_again(tmp_path: Path, ledger: Ledger) -> None:
    """SIGTERM to the training job alone: the workflow starts it again by itself, and it goes on from its checkpoint."""
    run = "results/smoke/arithmetic/arithmetic_tiny/seq_alp/seed0"
    names = ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "model/model.safetensors")
    words = [*command(tmp_path, "smoke", 1)[:-2], f"{run}/metrics.jsonl", "--config", "grid=smoke"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    whole = [(tmp_path / run / name).read_bytes() for name in names]
    for name in names:
        (tmp_path / run / name).unlink()
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / run).glob("checkpoints/step_*")):
        assert process.poll() is None
        time.sleep(0.02)
    children = {
        int(pid)
        for path in Path(f"/proc/{process.pid}/task").glob("*/children")
        for pid in path.read_text(encoding="utf-8").split()
    }
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    assert process.wait(300) == 0
    assert "continuing" in (tmp_path / "results/smoke/logs/train/seq_alp_seed0.log").read_text(encoding="utf-8")
    found = [(tmp_path / run / name).read_bytes() for name in names]
    ledger.tried("SIGTERM to a job of the workflow", changed=sum(a != b for a, b in zip(found, whole, strict=True)))
    assert found == whole
