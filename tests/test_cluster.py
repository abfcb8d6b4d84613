"""What the workflow adds to the executor for Slurm, as far as no Slurm is needed for it (tests/slurm has the rest)."""

from __future__ import annotations

import getpass
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from alp import cluster
from alp.configuration import grid
from alp.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NAME = "snakemake_executor_plugin_slurm"


@pytest.fixture
def executor() -> Iterator[ModuleType]:
    """The plugin's module, a copy of its own: it is changed."""
    kept = sys.modules.pop(NAME, None)
    yield importlib.import_module(NAME)
    del sys.modules[NAME]
    if kept is not None:
        sys.modules[NAME] = kept


def test_names_tell_rule_arm_seed_and_grid() -> None:
    assert cluster.job_name("quick", "train", {"arm": "seq_alp", "seed": "3"}) == "train-seq_alp-seed3@quick"
    assert cluster.job_name("quick", "aggregate", {}) == "aggregate@quick"


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("PREEMPTED", "CANCELLED"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED", "CANCELLED"),
        ("COMPLETED", "COMPLETED"),
        ("OUT_OF_MEMORY", "OUT_OF_MEMORY"),
        ("PENDING", "PENDING"),
        ("", ""),
    ],
)
def test_states_in_the_executor_s_words(said: str, known: str) -> None:
    assert cluster.plain_state(said) == known


@pytest.mark.parametrize("query", ["query_job_status_squeue", "query_job_status_sacct"])
def test_the_executor_asks_for_the_user_s_jobs_instead_of_one_name(executor: ModuleType, query: str) -> None:
    before = shlex.split(getattr(executor, query)("a-name"))
    assert before[before.index("--name") + 1] == "a-name"
    cluster.adapt(executor, "smoke")
    after = shlex.split(getattr(executor, query)("a-name"))
    assert "--name" not in after
    assert after[after.index("--user") + 1] == getpass.getuser()
    assert [word for word in after if word not in ("--user", getpass.getuser())] == [
        word for word in before if word not in ("--name", "a-name")
    ]


def test_the_executor_calls_what_is_replaced_as_it_is_replaced(executor: ModuleType) -> None:
    """Another version of the plugin may not."""
    assert list(inspect.signature(executor.get_submit_command).parameters)[:2] == ["job", "params"]
    assert list(inspect.signature(executor.query_job_status).parameters) == ["command", "logger"]
    submits, asks = (
        inspect.getsource(executor.Executor.run_job),
        inspect.getsource(executor.Executor.check_active_jobs),
    )
    assert "get_submit_command(" in submits
    assert '"run_uuid": self.run_uuid' in submits
    for name in ("query_job_status_squeue(", "query_job_status_sacct(", "await query_job_status("):
        assert name in asks


def test_without_squeue_the_start_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no squeue here"):
        cluster.check_nothing_runs("smoke", tmp_path)


def test_a_squeue_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(UserError, match=r"^Slurm: squeue does not answer: slurm_load_jobs error: Unable to contact"):
        cluster.check_nothing_runs("smoke", tmp_path)


def test_snakemake_reads_the_profile() -> None:
    from snakemake.cli import parse_args

    words = ["--profile", str(ROOT / "workflow" / "profiles" / "slurm"), "--workflow-profile", "none"]
    _, found = parse_args(words)
    assert (found.executor, found.slurm_status_command, found.slurm_requeue) == ("slurm", "squeue", True)
    assert {"runtime", "slurm_extra"} <= set(found.default_resources)


def test_the_page_s_commands_are_there() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines]
    programs = {"snakemake", "make", "alp", "squeue", "apptainer", "srun", "docker"}
    assert {words[0] for words in commands} == programs
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for program, *words in commands:
        if program == "make":
            assert words[0] in targets
            settings = dict(word.split("=") for word in words[1:])
            assert (ROOT / settings.get("LOCK", "locks/cpu.txt")).is_file()
        for name in (word.removeprefix("grid=") for word in words if word.startswith("grid=")):
            assert grid.load(name).name == name
        if "--profile" in words:
            assert (ROOT / words[words.index("--profile") + 1] / "profile.yaml").is_file()
        for path in (word for word in words if word.startswith("containers/")):
            assert (ROOT / path).is_file()


def test_the_executor_reads_the_page_s_partitions(executor: ModuleType, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    path = tmp_path / "partitions.yaml"
    path.write_text(re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[0], encoding="utf-8")
    assert [partition.name for partition in executor.read_partition_file(path)] == ["cpu", "gpu"]


@pytest.mark.parametrize(("devices", "each", "count"), [(8, None, 1), (8, 8, 1), (2, 8, 1), (16, 8, 2), (6, 2, 3)])
def test_machines_are_filled(devices: int, each: int | None, count: int) -> None:
    assert cluster.machines(devices, each) == count


@pytest.mark.parametrize(("devices", "each", "nearest"), [(12, 8, 16), (9, 8, 8), (7, 2, 8)])
def test_devices_that_fill_no_machine_are_refused(devices: int, each: int, nearest: int) -> None:
    with pytest.raises(UserError, match=rf"trainer.devices = {devices} .*nearest that is: {nearest}$"):
        cluster.machines(devices, each)


@pytest.mark.parametrize("said", ["", "none", "-1", "0", "1.5"])
def test_the_devices_of_a_machine_are_a_number(said: str) -> None:
    with pytest.raises(UserError, match=r"^key: an integer above 0 expected"):
        cluster.devices_per_node(said, "key")
    assert (cluster.devices_per_node("8", "key"), cluster.devices_per_node(None, "key")) == (8, None)


def test_several_machines_are_those_of_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"takes 2 machines of 8 devices .*: start it in an allocation of Slurm"):
        cluster.over_machines(["train"], 2, 8)
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    words = cluster.over_machines(["train", "method=grpo"], 2, 8)
    assert {"--nodes=2", "--ntasks=2", "--nnodes=2", "--nproc-per-node=8"} <= set(words)
    assert words[-3:] == ["alp.cli", "train", "method=grpo"]
