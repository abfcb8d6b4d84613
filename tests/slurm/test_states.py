"""What a real Slurm says of jobs, and what the workflow's executor makes of it."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from pathlib import Path

import pytest

from alp import cluster as alp_cluster
from alp.errors import UserError
from tests.slurm.cluster import CPUS, Cluster, until

pytestmark = pytest.mark.long


@pytest.fixture
def here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """This process submits to the cluster."""
    monkeypatch.setenv("PATH", cluster.environment["PATH"])
    return cluster


def _submit(cluster: Cluster, folder: Path, name: str, *words: str) -> str:
    common = ["--parsable", "--job-name", name, "-D", str(folder), "--output=/dev/null", "--mem=100"]
    return cluster.ask("sbatch", *common, *words, "--wrap=exec sleep 300").strip()


def _state(cluster: Cluster, number: str) -> str:
    return cluster.jobs("%T", f"--jobs={number}")[0][0]


def test_a_job_that_was_pushed_out_for_good_counts_as_failed(here: Cluster, tmp_path: Path) -> None:
    """By itself the executor waits for it for ever."""
    name = "snakemake_executor_plugin_slurm"
    kept = sys.modules.pop(name, None)
    try:
        executor = importlib.import_module(name)
        alp_cluster.adapt(executor, "smoke")
        pushed = _submit(here, tmp_path, "train-grpo-seed0@smoke", "--partition=spare")
        until(lambda: _state(here, pushed) == "RUNNING")
        urgent = _submit(here, tmp_path, "other", "--partition=urgent", f"--cpus-per-task={CPUS}")
        until(lambda: _state(here, pushed) == "PREEMPTED", 120.0)
        command = executor.query_job_status_squeue("a-name-that-no-job-has")
        states, _ = asyncio.run(executor.query_job_status(command, logging.getLogger("test")))
        assert states[pushed] == "CANCELLED"
        assert states[urgent] in ("RUNNING", "PENDING", "CONFIGURING")
    finally:
        sys.modules.pop(name)
        if kept is not None:
            sys.modules[name] = kept
    here.ask("scancel", urgent)


def test_jobs_of_an_earlier_start_are_found_by_grid_and_folder(here: Cluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    mine = _submit(here, tmp_path, "train-grpo-seed0@smoke", "--hold")
    prepare = _submit(here, tmp_path, "prepare@smoke", "--hold")
    others = [
        _submit(here, other, "train-grpo-seed0@smoke", "--hold"),
        _submit(here, tmp_path, "train-grpo-seed0@smoke2", "--hold"),
        _submit(here, tmp_path, "train-grpo-seed0@other-smoke", "--hold"),
    ]
    try:
        assert alp_cluster.left_behind("smoke", tmp_path) == {mine: "train-grpo-seed0@smoke", prepare: "prepare@smoke"}
        with pytest.raises(UserError, match=rf"Slurm still has jobs of grid smoke .*scancel .*{mine}"):
            alp_cluster.check_nothing_runs("smoke", tmp_path)
    finally:
        here.ask("scancel", mine, prepare, *others)
    until(lambda: not alp_cluster.left_behind("smoke", tmp_path))
    alp_cluster.check_nothing_runs("smoke", tmp_path)
