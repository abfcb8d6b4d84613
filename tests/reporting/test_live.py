"""MLflow beside a job, in a process of its own: the job never imports it, and its end is the end of both."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.reporting.test_tracking import expected, history, write_evaluation

# The command line with a training that only writes the files of one, and does then what the test says.
JOB = """
import os, signal, sys, types
from pathlib import Path

def train(config, on_step):
    folder = Path(config.run.dir)
    for step in range(3):
        on_step()
    {then}
    return folder

stand_in = types.ModuleType("alp.training.loop")
stand_in.train = train
sys.modules["alp.training"] = types.ModuleType("alp.training")
sys.modules["alp.training.loop"] = stand_in
sys.modules["alp.preflight"] = types.SimpleNamespace(check_training=lambda *_: None)
from alp.cli import main

code = main(["train", *sys.argv[1:]])
print(sorted({{"mlflow", "sqlalchemy"}} & set(sys.modules)))
sys.exit(code)
"""


@pytest.fixture
def database(migrated: Path, run_dir: Path) -> Path:
    return Path(shutil.copy(migrated, run_dir.parents[1] / "mlflow.db"))


def job(run_dir: Path, uri: str, then: str) -> subprocess.Popen[str]:
    words = ["method=grpo", "trainer.seed=3", f"run.dir='{run_dir}'", f"run.tracking='{uri}'"]
    return subprocess.Popen(
        [sys.executable, "-c", JOB.format(then=then), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def status(database: Path) -> list[tuple[str, str]]:
    """Run ids and status of the folder's runs; the fixture's own run is of another experiment."""
    query = "SELECT run_uuid, status FROM runs WHERE name = 'grpo/seed3'"
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_never_imports_mlflow_and_everything_is_logged(run_dir: Path, database: Path) -> None:
    process = job(run_dir, f"sqlite:///{database}", "pass")
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert output.splitlines()[-1] == "[]"
    ((run_id, state),) = status(database)
    assert state == "FINISHED"
    assert history(database, run_id) == expected(run_dir)

    write_evaluation(run_dir)
    code = (
        "import sys; from pathlib import Path; from alp.reporting.live import add_evaluation;"
        "add_evaluation(Path(sys.argv[1]), sys.argv[2]); assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run_dir), f"sqlite:///{database}"], check=True, timeout=240)
    assert ("evaluation/test/accuracy", 0, 0.5) in history(database, run_id)


def test_a_killed_job_takes_the_process_with_it(run_dir: Path, database: Path) -> None:
    process = job(run_dir, f"sqlite:///{database}", "signal.pause()")
    try:
        until(lambda: status(database))
        (beside,) = _children(process.pid)
        process.kill()
        process.communicate(timeout=60)
        until(lambda: not Path(f"/proc/{beside}").exists() or _state(beside) == "Z")
    finally:
        process.kill()
    assert [state for _, state in status(database)] == ["RUNNING"], "left for the next attempt"


def test_a_failed_job_says_so_and_one_that_cannot_be_logged_fails_nothing(run_dir: Path, database: Path) -> None:
    process = job(run_dir, f"sqlite:///{database}", "raise RuntimeError('diverged')")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "RuntimeError: diverged" in errors
    assert [state for _, state in status(database)] == ["FAILED"]

    process = job(run_dir, f"sqlite:///{run_dir}/config.yaml/mlflow.db", "pass")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert errors.count("MLflow is behind the files") == 1


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(word) for word in text.split()]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def test_without_a_uri_no_process_starts(run_dir: Path) -> None:
    from alp.reporting.live import Follower

    before = _children(os.getpid())
    follower = Follower(run_dir, None)
    follower.step()
    follower.close(finished=True)
    assert _children(os.getpid()) == before
