"""Ranks that torchrun starts, on one machine and on two (two agents of this one): the bytes are those of ``alp train``
itself, and a wrong number is one line."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-P", "-m", "torch.distributed.run"]
ALP = ["-m", "alp.cli", "train"]
WORDS = [
    *("method=seq_alp", "trainer.kl=0.1", "trainer.device=cpu", "run.tracking=null", "rollout.dtype=float32"),
    *("task.digits=1", "task.train=30", "task.validation=6", "task.test=8", "trainer.lr=1e-3"),
    *("trainer.steps=2", "trainer.prompts=4", "trainer.samples=4", "trainer.updates_per_batch=2"),
    *(
        "trainer.validate_every=0",
        "trainer.probe_every=0",
        "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=true",
    ),
]
SRUN = """#!/bin/sh
# As many tasks as nodes, all of them here; the options before the first word that is a path.
for word; do case $word in --nodes=*) count=${word#*=};; esac; done
while [ "${1#/}" = "$1" ]; do shift; done
for task in $(seq "$count"); do "$@" & tasks="$tasks $!"; done
trap 'kill -TERM $tasks' TERM
code=0
for task in $tasks; do wait "$task" || code=$?; done
exit $code
"""


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment
    return subprocess.run(command, env=known, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def words(base_model: Path) -> list[str]:
    return [*WORDS, f"model.path='{base_model}'"]


@pytest.fixture(scope="module")
def ours(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What ``alp train trainer.devices=2`` makes: its files, and what a checkpoint holds but for the times in it."""
    folder = tmp_path_factory.mktemp("ours") / "run"
    done = _run(sys.executable, "-P", *ALP, *words, "trainer.devices=2", f"run.dir='{folder}'")
    assert done.returncode == 0, done.stderr[-3000:]
    return _files(folder)


def _files(folder: Path) -> dict[str, bytes]:
    names = ["metrics.jsonl", "updates.jsonl", "model/model.safetensors", "active.json"]
    (path,) = folder.glob("checkpoints/*/state.pt")  # after the first step
    state = torch.load(path, weights_only=True)
    del state["records"]["timings.jsonl"]
    torch.save(state, checkpoint := io.BytesIO())
    return {"checkpoint": checkpoint.getvalue()} | {name: (folder / name).read_bytes() for name in names}


def test_torchrun_makes_the_same_bytes(words: list[str], ours: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started = [*TORCHRUN, "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = _run(*started, *ALP, *words, "trainer.devices=2", f"run.dir='{folder}'")
    assert done.returncode == 0, done.stderr[-3000:]
    assert _files(folder) == ours
    said = [line for line in done.stderr.splitlines() if line.startswith("alp train")]
    assert len(said) == 1, "the first rank speaks"


def test_another_number_of_processes_is_one_line(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started = [*TORCHRUN, "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = _run(*started, *ALP, *words, "trainer.devices=3", f"run.dir='{folder}'")
    said = [line for line in done.stderr.splitlines() if "alp: error" in line]
    assert [line.removesuffix(" (rank 1)") for line in said] == [
        "alp: error: trainer.devices = 3, but torchrun started 2 processes; give trainer.devices=2"
    ]
    codes = re.findall(r"exitcode +: (\d+)", done.stderr)
    assert codes, done.stderr[-2000:]
    assert set(codes) == {"2"}, "of the ranks; torchrun's own is 1"
    assert not folder.exists()


@pytest.mark.long
def test_two_machines_of_an_allocation_make_the_same_bytes(
    words: list[str], ours: dict[str, bytes], tmp_path: Path
) -> None:
    """``alp train`` itself starts torchrun on each, by srun: here one that starts all on this machine."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(stat.S_IRWXU)
    folder = tmp_path / "run"
    command = [sys.executable, "-P", *ALP, *words, "trainer.devices=2", f"run.dir='{folder}'"]
    job = {"ALP_DEVICES_PER_NODE": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = _run(*command, **job)
    assert done.returncode == 2
    assert "takes 2 machines of 1 devices (devices_per_node): start it in an allocation" in done.stderr
    done = _run(*command, **job, SLURM_JOB_ID=str(os.getpid()))
    assert done.returncode == 0, done.stderr[-3000:]
    assert _files(folder) == ours
