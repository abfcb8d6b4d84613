"""What the Snakemake workflow catalogue asks for, and what a dry run and a refused tracker say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def _dry_run(house: Path, snakefile: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "-n", "-s", str(ROOT / snakefile), "--config", "grid=smoke"]
    environment = {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=house, env=os.environ | environment, capture_output=True, text=True)


def test_the_catalogue_s_files_are_there() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["software-stack-deployment"]["report"] is True
    assert usage["mandatory-flags"]["flags"] == "--config grid=quick"
    assert "docs/configuration.md" in (ROOT / "config" / "README.md").read_text(encoding="utf-8")


def test_the_catalogue_s_workflow_is_the_workflow_and_a_dry_run_names_its_jobs(tmp_path: Path) -> None:
    done = _dry_run(tmp_path, "workflow/Snakefile")
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout + done.stderr
    for job in ("prepare the data", "train seq_alp seed 1", "evaluate grpo seed 0", "report of the grid"):
        assert job in said
    assert "seq_alp: train seeds 0, 1; evaluate seeds 0, 1" in said


def test_a_tracker_that_cannot_be_is_refused_before_any_job(tmp_path: Path) -> None:
    done = _dry_run(tmp_path, "Snakefile", ALP_TRACKERS="tensorbord:x")
    assert done.returncode == 2
    assert done.stderr.endswith("alp: error: ALP_TRACKERS: unknown tracker 'tensorbord'; did you mean 'tensorboard'?\n")
