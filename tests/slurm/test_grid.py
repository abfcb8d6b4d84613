"""The smoke grid through the Slurm profile: its Snakemake killed, a job requeued, a job killed; then every byte is that
of a local build."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from alp import warm
from alp.cluster import job_name
from alp.configuration import compose, grid, resources
from benchmarks.reproduce import ROOT, build
from tests.signals import heard
from tests.slurm.cluster import CPUS, MEMORY, Cluster, until

pytestmark = pytest.mark.long

SMOKE = grid.load("smoke")
ARMS, SEEDS = [arm.name for arm in SMOKE.arms], SMOKE.seeds
ORPHANED, REQUEUED, KILLED = ("seq_alp", 0), ("grpo", 0), ("seq_alp", 1)
MINUTES = 60  # for a build on a busy machine
PARTITIONS = {
    "cpu": {"max_runtime": 10_000, "max_mem_mb": MEMORY, "max_threads": CPUS},
    "gpu": {"max_runtime": 10_000, "max_mem_mb": MEMORY, "max_threads": CPUS, "max_gpu": 1},
}


def _run(arm: str, seed: int) -> Path:
    return SMOKE.run_dir("results", arm, seed)


class Held(threading.Thread):
    """Stops a training job as soon as its first checkpoint is there."""

    def __init__(self, folder: Path, arm: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.arm, self.seed = folder, arm, seed
        self.process: int | None = None
        self.start()

    def run(self) -> None:
        """From its claim of the folder on it runs a few milliseconds at a time, or it would be past the checkpoint."""
        run = self.folder / _run(self.arm, self.seed)
        until((run / ".alp" / "train" / "holder.json").exists, 60 * MINUTES)
        process = json.loads((run / ".alp" / "train" / "holder.json").read_text(encoding="utf-8"))["process"]
        while not any(run.glob("checkpoints/step_*/checkpoint.json")):
            os.kill(process, signal.SIGCONT)
            time.sleep(0.02)
            os.kill(process, signal.SIGSTOP)
        self.process = process

    def log_end(self) -> str:
        return (self.folder / "workflow.log").read_text(encoding="utf-8")[-3000:]

    def wait(self, workflow: subprocess.Popen[bytes]) -> int:
        until(
            lambda: self.process or workflow.poll() is not None, 60 * MINUTES, f"{self.arm} {self.seed} did not begin"
        )
        assert self.process is not None, f"the workflow ended before that:\n{self.log_end()}"
        return self.process


class Starts:
    """The workflow in a folder, started again and again."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder.resolve()
        self.folder.mkdir()
        (self.folder / "partitions.yaml").write_text(yaml.safe_dump({"partitions": PARTITIONS}), encoding="utf-8")

    @property
    def log(self) -> str:
        return (self.folder / "workflow.log").read_text(encoding="utf-8")

    @contextmanager
    def start(self, *targets: str) -> Iterator[subprocess.Popen[bytes]]:
        """The profile as it is shipped; waits that suit a real cluster are cut short, and evaluations ask for a GPU."""
        profile = ["--profile", str(ROOT / "workflow" / "profiles" / "slurm")]
        short = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "20"]
        there = ["--slurm-partition-config", str(self.folder / "partitions.yaml")]
        place = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(self.folder)]
        command = [sys.executable, "-m", "snakemake", *targets, *place, *profile, *short, *there]
        command += ["--set-resources", "evaluate:gpu=1", "--config", "grid=smoke"]
        with (self.folder / "workflow.log").open("ab") as log, heard():
            process = subprocess.Popen(command, env=self.cluster.environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def jobs(self) -> list[dict[str, str]]:
        """Every job that was submitted from this folder."""
        names = ("number", "name", "partition", "state", "memory", "limit", "place")
        rows = self.cluster.jobs("%i|%j|%P|%T|%m|%l|%Z")
        return [job for row in rows if (job := dict(zip(names, row, strict=True)))["place"] == str(self.folder)]

    def job(self, name: str) -> dict[str, str]:
        """The newest of that name."""
        return max((job for job in self.jobs() if job["name"] == name), key=lambda job: int(job["number"]))

    def log_of(self, arm: str, seed: int) -> str:
        path = self.folder / "results" / "smoke" / "logs" / "train" / f"{arm}_seed{seed}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.fixture(scope="module")
def starts(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Starts:
    return Starts(cluster, tmp_path_factory.mktemp("slurm") / "house")


@pytest.fixture(scope="module")
def orphaned(starts: Starts) -> str:
    """What the workflow says that is started while a job of a killed one still runs."""
    arm, seed = ORPHANED
    held = Held(starts.folder, arm, seed)
    with starts.start(str(_run(arm, seed) / "metrics.jsonl")) as workflow:
        job = held.wait(workflow)
    before = len(starts.log)
    with starts.start() as again:
        assert again.wait(600) == 2, starts.log[-3000:]
    said = starts.log[before:]
    number = starts.job(f"train-{arm}-seed{seed}@smoke")["number"]
    assert starts.job(f"train-{arm}-seed{seed}@smoke")["state"] == "RUNNING"
    starts.cluster.ask("scancel", number)
    until(lambda: not Path(f"/proc/{job}").exists(), 120.0)
    until(lambda: starts.job(f"train-{arm}-seed{seed}@smoke")["state"] == "CANCELLED", 120.0)
    return said.replace(number, "NUMBER")


@pytest.fixture(scope="module")
def built(starts: Starts, orphaned: str) -> dict[str, str]:
    """The grid, with what was seen on the way."""
    seen: dict[str, str] = {"log of the orphan": starts.log_of(*ORPHANED)}
    holds = {which: Held(starts.folder, *which) for which in (REQUEUED, KILLED)}
    with starts.start() as workflow:
        for which, act in ((REQUEUED, _requeue), (KILLED, _kill)):
            act(starts, holds[which].wait(workflow), seen)
        assert workflow.wait(60 * MINUTES) == 0, starts.log[-3000:]
    return seen


def _requeue(starts: Starts, process: int, seen: dict[str, str]) -> None:
    name = job_name("smoke", "train", {"arm": REQUEUED[0], "seed": str(REQUEUED[1])})
    number = starts.job(name)["number"]
    environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    seen["warm"] = str([word for word in environment if word.startswith(warm.VARIABLE.encode())])
    starts.cluster.ask("scontrol", "requeue", number)
    until(lambda: starts.job(name)["state"] == "PENDING", 180.0, "the job is not back in the queue")
    seen["log before the requeue"] = starts.log_of(*REQUEUED)
    starts.cluster.ask("scontrol", "update", f"jobid={number}", "starttime=now")  # instead of two minutes later
    seen["requeued"] = number


def _kill(starts: Starts, process: int, seen: dict[str, str]) -> None:
    held = starts.folder / _run(*KILLED) / ".alp" / "train"
    seen["held"] = str(sorted(path.name for path in held.iterdir()))
    os.kill(process, signal.SIGKILL)
    seen["killed"] = starts.job(job_name("smoke", "train", {"arm": KILLED[0], "seed": str(KILLED[1])}))["number"]


def test_a_start_beside_jobs_of_a_killed_one_is_refused(orphaned: str) -> None:
    arm, seed = ORPHANED
    lines = [line for line in orphaned.splitlines() if line.startswith("alp: error: ")]
    assert lines == [
        f"alp: error: Slurm still has jobs of grid smoke from an earlier start: NUMBER (train-{arm}-seed{seed}@smoke);"
        " wait for their end, or stop them (training goes on from its checkpoints): scancel NUMBER"
    ]
    assert "Traceback" not in orphaned
    assert "has been submitted" not in orphaned


def test_every_job_has_a_name_that_says_what_it_is(starts: Starts, built: dict[str, str]) -> None:
    each = {f"{verb}-{arm}-seed{seed}@smoke" for verb in ("train", "evaluate") for arm in ARMS for seed in SEEDS}
    whole = ("prepare", "pretrain", "evaluate_base", "aggregate", "figures", "report", "manifest", "track")
    assert {job["name"] for job in starts.jobs()} == each | {f"{rule}@smoke" for rule in whole}


def test_what_a_job_asks_for_is_what_its_rule_says(starts: Starts, built: dict[str, str]) -> None:
    words = SMOKE.overrides("train", "results", arm="grpo", seed=0)
    job = starts.job("train-grpo-seed0@smoke")
    assert job["memory"] == f"{resources.memory_mb('train', compose.load('train', words))}M"
    hours, minutes = divmod(resources.minutes("train"), 60)
    assert job["limit"] == f"{hours}:{minutes:02d}:00"
    assert {job["partition"] for job in starts.jobs() if not job["name"].startswith("evaluate-")} == {"cpu"}
    evaluations = [job for job in starts.jobs() if job["name"].startswith("evaluate-")]
    assert {job["partition"] for job in evaluations} == {"gpu"}
    for evaluation in evaluations:
        assert "gres:gpu:1" in starts.cluster.ask("scontrol", "show", "job", evaluation["number"])


def test_a_requeued_job_is_the_same_job_and_goes_on(starts: Starts, built: dict[str, str]) -> None:
    assert "what is done is saved" in built["log before the requeue"]
    assert "continuing" in starts.log_of(*REQUEUED)
    shown = starts.cluster.ask("scontrol", "show", "job", built["requeued"])
    assert "Restarts=1" in shown
    assert "JobState=COMPLETED" in shown
    of_that_name = [job for job in starts.jobs() if job["name"] == "train-grpo-seed0@smoke"]
    assert [job["number"] for job in of_that_name] == [built["requeued"]]


def test_a_killed_job_is_tried_again_though_its_lock_is_left(starts: Starts, built: dict[str, str]) -> None:
    assert "'holder.json'" in built["held"]
    assert "'lock'" in built["held"]
    arm, seed = KILLED
    tries = sorted(
        (job for job in starts.jobs() if job["name"] == f"train-{arm}-seed{seed}@smoke"),
        key=lambda job: int(job["number"]),
    )
    states = [(job["number"] == built["killed"], job["state"]) for job in tries]
    assert states == [(True, "FAILED"), (False, "COMPLETED")]
    assert "continuing" in starts.log_of(*KILLED)


def test_a_cancelled_job_of_a_killed_workflow_goes_on(starts: Starts, built: dict[str, str]) -> None:
    assert "what is done is saved" in built["log of the orphan"]
    assert "continuing" in starts.log_of(*ORPHANED)


def test_logs_lie_by_rule_and_wildcards(starts: Starts, built: dict[str, str]) -> None:
    for verb in ("train", "evaluate"):
        for arm in ARMS:
            for seed in SEEDS:
                path = starts.folder / "results" / "smoke" / "logs" / verb / f"{arm}_seed{seed}.log"
                assert path.read_text(encoding="utf-8").startswith(f"alp {verb} "), path
    arm, seed = KILLED
    kept = starts.folder / ".snakemake" / "slurm_logs" / "rule_train" / f"{arm}_{seed}" / f"{built['killed']}.log"
    assert "Error in rule train" in kept.read_text(encoding="utf-8")


def test_no_job_is_forked_from_a_warm_parent(starts: Starts, built: dict[str, str]) -> None:
    """Which lives on one machine, and not on that of the job."""
    assert built["warm"] == "[]"


def test_the_mlflow_database_that_jobs_opened_at_once_holds_every_run(starts: Starts, built: dict[str, str]) -> None:
    results = starts.folder / "results"
    runs = json.loads((results / "smoke" / "mlflow.json").read_text(encoding="utf-8"))
    assert re.findall(r"\bnull\b", json.dumps(runs)) == []
    assert list(results.glob("mlflow.db.broken*")) == []


def test_every_byte_is_that_of_a_local_build(
    starts: Starts, built: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = build(tmp_path_factory.mktemp("local"), "smoke", 2)
    command = [sys.executable, "-m", "alp.cli", "verify", str(local), str(starts.folder / "results" / "smoke")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("0 differing files, 0 missing")) == (0, 1), done.stdout
