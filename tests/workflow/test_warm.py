"""A warm parent: its jobs are what they are when started cold, and end as their stand-ins and parents do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alp import warm
from tests.conftest import TINY_TASK, TINY_TRAINER
from tests.signals import heard

ROOT = Path(__file__).resolve().parents[2]
ALP = Path(sys.executable).parent / "alp"
ONE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")}
ENVIRONMENT = os.environ | ONE | {"VECLIB_MAXIMUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PYTEST")}
FILES = (
    "metrics.jsonl",
    "updates.jsonl",
    "trajectories.jsonl",
    "active.json",
    "provenance.json",
    "config.yaml",
    "model/model.safetensors",
)
Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or Path("/proc/driver/nvidia/version").exists(),
    reason="warm parents are for Linux without a GPU",
)


def _until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


@pytest.fixture
def parent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    place = tmp_path_factory.mktemp("w") / "jobs"
    process = warm.start(place, ENVIRONMENT)
    assert process is not None
    _until(place.exists)  # a command that comes before it listens starts cold
    yield process, place
    process.terminate()
    assert process.wait(60) == 0
    assert not place.parent.exists()


@pytest.fixture
def words(base_model: Path) -> list[str]:
    return [*TINY_TASK, *TINY_TRAINER, f"model.path='{base_model}'", "run.tracking=null", "trainer.steps=3"]


def _start(verb: str, words: list[str], log: Path, place: Path | None = None, **more: str) -> subprocess.Popen[str]:
    environment = ENVIRONMENT | ({warm.VARIABLE: str(place)} if place else {}) | more
    with log.open("w", encoding="utf-8") as stream, heard():
        return subprocess.Popen(
            [str(ALP), verb, *words], env=environment, cwd=log.parent, stdout=stream, stderr=stream, text=True
        )


def test_results_logs_and_codes_are_those_of_a_cold_start(
    parent: tuple[subprocess.Popen[bytes], Path], words: list[str], tmp_path: Path
) -> None:
    for name, place in (("cold", None), ("warm", parent[1])):
        run = tmp_path / name / "run"
        run.parent.mkdir()
        log = run.parent / "log"
        assert _start("train", [*words, "method=seq_alp", "run.dir=run"], log, place).wait(120) == 0
        paths = [word for word in words if word.startswith("task.")]
        more = [*paths, "model.path=run/model", "run.dir=run", "run.tracking=null", "evaluation.samples=4"]
        assert _start("evaluate", more, run.parent / "log2", place).wait(120) == 0
        assert _start("train", ["method=gropo"], run.parent / "log3", place).wait(60) == 2
    for file in ("log", "log2", "log3", *(f"run/{file}" for file in (*FILES, "evaluation/test.json"))):
        cold, hot = ((tmp_path / name / file).read_bytes() for name in ("cold", "warm"))
        if file.startswith("log"):  # "2 s left", "in 3 s"
            cold, hot = (re.sub(rb"\b\d+ (s|min)\b", b"", content) for content in (cold, hot))
        assert cold == hot, file
    assert "did you mean 'grpo'" in (tmp_path / "warm" / "log3").read_text(encoding="utf-8")


def _running(parent: subprocess.Popen[bytes], metrics: Path) -> int:
    """The process of the one job, once it has logged a step."""
    _until(lambda: metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") >= 1)
    (job,) = _children(parent.pid)
    return job


LONG = ["trainer.steps=400", "trainer.validate_every=0", "trainer.probe_every=0", "trainer.checkpoint_every=50"]


def _long(words: list[str]) -> list[str]:
    keys = {word.split("=")[0] for word in LONG}
    return [*(word for word in words if word.split("=")[0] not in keys), *LONG, "method=grpo", "run.dir=run"]


def _newest(run: Path) -> dict[str, Any]:
    newest = max((run / "checkpoints").glob("step_*/checkpoint.json"))
    return json.loads(newest.read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_job_and_its_code_comes_back(
    number: int, parent: tuple[subprocess.Popen[bytes], Path], words: list[str], tmp_path: Path
) -> None:
    stand_in = _start("train", _long(words), tmp_path / "log", parent[1])
    job = _running(parent[0], tmp_path / "run" / "metrics.jsonl")
    stand_in.send_signal(number)
    assert stand_in.wait(60) == 75
    assert not _alive(job)
    assert "what is done is saved" in (tmp_path / "log").read_text(encoding="utf-8")
    assert _newest(tmp_path / "run")["step"] >= 1


def test_a_signal_that_the_caller_ignores_stays_ignored(
    parent: tuple[subprocess.Popen[bytes], Path], words: list[str], tmp_path: Path
) -> None:
    """As behind nohup."""
    environment = ENVIRONMENT | {warm.VARIABLE: str(parent[1])}
    command = 'trap \'\' HUP; exec "$0" train "$@"'
    with (tmp_path / "log").open("w", encoding="utf-8") as stream, heard():
        stand_in = subprocess.Popen(
            ["sh", "-c", command, str(ALP), *_long(words)], env=environment, cwd=tmp_path, stdout=stream, stderr=stream
        )
    job = _running(parent[0], tmp_path / "run" / "metrics.jsonl")
    stand_in.send_signal(signal.SIGHUP)
    os.kill(job, signal.SIGHUP)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    _until(lambda: (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").count("\n") > lines + 1)
    stand_in.send_signal(signal.SIGTERM)
    assert stand_in.wait(60) == 75


def test_a_job_dies_with_its_stand_in_and_the_other_way_round(
    parent: tuple[subprocess.Popen[bytes], Path], words: list[str], tmp_path: Path
) -> None:
    stand_in = _start("train", _long(words), tmp_path / "log", parent[1])
    job = _running(parent[0], tmp_path / "run" / "metrics.jsonl")
    stand_in.kill()
    _until(lambda: not _alive(job))
    stand_in.wait()

    (tmp_path / "run" / "metrics.jsonl").unlink()
    stand_in = _start("train", _long(words), tmp_path / "log", parent[1])
    job = _running(parent[0], tmp_path / "run" / "metrics.jsonl")
    os.kill(job, signal.SIGKILL)
    assert stand_in.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_stops_at_an_update_when_its_parent_goes(
    number: int, words: list[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("w") / "jobs"
    parent = warm.start(place, ENVIRONMENT)
    assert parent is not None
    stand_in = _start("train", _long(words), tmp_path / "log", place)
    job = _running(parent, tmp_path / "run" / "metrics.jsonl")
    parent.send_signal(number)
    assert stand_in.wait(60) == 75
    assert not _alive(job)
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))
    parent.wait(60)


def test_the_parent_goes_with_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from alp import warm;"
        f"print(warm.start(Path({str(tmp_path / 'w' / 'jobs')!r}), os.environ).pid, flush=True); time.sleep(300)"
    )
    (tmp_path / "w").mkdir()
    starter = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    _until(lambda: (tmp_path / "w" / "jobs").exists())
    starter.kill()  # in the middle of the parent's imports
    _until(lambda: not _alive(pid))
    starter.wait()
    assert not (tmp_path / "w").exists()


def test_a_place_that_no_socket_can_have_is_one_line(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 120) / "jobs"
    place.parent.mkdir()
    code = "import os, sys; sys.argv.append(str(os.getppid())); from alp import warm; sys.exit(warm.main())"
    ran = subprocess.run([sys.executable, "-c", code, str(place)], env=ENVIRONMENT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "jobs start cold" in ran.stderr
    assert not place.parent.exists()


@pytest.mark.parametrize("what", ["threads", "variable", "source", "nobody"])
def test_what_is_not_the_same_is_started_cold(
    what: str, words: list[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("w") / "jobs"
    source = tmp_path / "source"
    shutil.copytree(ROOT / "alp", source / "alp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", source / "configs")
    here = {"PYTHONPATH": str(source)}
    parent = warm.start(place, ENVIRONMENT | here)
    assert parent is not None
    same = _start("train", ["method=gropo"], tmp_path / "log", place, **here)
    assert same.wait(120) == 2
    before = _times(parent.pid)
    assert before > 0, "a job of the same environment and source is forked"
    if what == "source":
        os.utime(source / "alp" / "errors.py")
    elif what == "nobody":
        parent.kill()
        parent.wait()
    more = {"threads": {"OMP_NUM_THREADS": "2"}, "variable": {"CUDA_VISIBLE_DEVICES": "3"}}.get(what, {})
    assert _start("train", ["method=gropo"], tmp_path / "log", place, **here, **more).wait(120) == 2
    assert "did you mean 'grpo'" in (tmp_path / "log").read_text(encoding="utf-8")
    if what != "nobody":
        assert _times(parent.pid) == before
        parent.terminate()
        assert parent.wait(60) == 0


def _times(pid: int) -> int:
    """Clock ticks of the children that a process has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[13]) + int(fields[14])
