"""MLflow in trouble while a job trains: the job goes on, and what could not be logged is logged later."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from alp import tracking
from tests.faults import jobs
from tests.faults.conftest import ALL, Ledger, Words
from tests.test_tracking import expected, history


def _logged_later(run: Path, database: Path) -> None:
    """What the rule ``track`` does once MLflow is well again: every number of ``metrics.jsonl`` is there, once."""
    found = tracking.sync(run, uri=f"sqlite:///{database}", finished=True, **tracking.describe(run))
    assert found is not None
    assert history(database, found) == expected(run)


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Path:
    (tmp_path / "db").mkdir()
    return Path(shutil.copy(migrated, tmp_path / "db" / "mlflow.db"))


class Delete:
    """The database goes once the job has logged something to it, and the steps after it are long enough to notice."""

    def __init__(self, database: Path) -> None:
        self.database = database

    def __call__(self) -> None:
        from alp.training.trainer import Job

        plain = Job._step

        def step(job: Job, number: int) -> Any:
            if number == 3:
                for thread in threading.enumerate():
                    if thread.name == "alp.tracking":
                        thread.join()
                with sqlite3.connect(self.database) as connection:
                    assert connection.execute("SELECT count(*) FROM metrics").fetchone()[0] > 0
                self.database.unlink()
            return plain(job, number)

        Job._step = step  # type: ignore[method-assign]


def test_deleted(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, database: Path, migrated: Path) -> None:
    run = tmp_path / "run"
    chosen = [*words(run), f"run.tracking='sqlite:///{database}'"]
    assert jobs.train(chosen, tmp_path / "log", Delete(database)) == 0, (tmp_path / "log").read_text(encoding="utf-8")[-2000:]
    ledger.compare("MLflow's database deleted", jobs.digest(run, jobs.NOISY), whole)
    shutil.copy(migrated, database)
    _logged_later(run, database)


def test_unreachable(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, database: Path) -> None:
    run = tmp_path / "run"
    assert jobs.train([*words(run), "run.tracking='http://127.0.0.1:9'"], tmp_path / "log") == 0
    assert (tmp_path / "log").read_text(encoding="utf-8").count("MLflow is behind the files") == 1
    ledger.compare("MLflow unreachable", jobs.digest(run, jobs.NOISY), whole)
    _logged_later(run, database)


@pytest.mark.skipif(not ALL, reason="waits for a lock: make faults (tests/test_tracking.py has the call alone)")
def test_locked(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, database: Path) -> None:
    run = tmp_path / "run"
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert jobs.train([*words(run), f"run.tracking='sqlite:///{database}'"], tmp_path / "log") == 0
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert "database is locked" in (tmp_path / "log").read_text(encoding="utf-8")
    ledger.compare("MLflow's database locked", jobs.digest(run, jobs.NOISY), whole)
    _logged_later(run, database)


def read_only(folder: Path, words: list[str], log: Path) -> str:
    """A job whose tracking database lies on a read-only disk."""
    if jobs.mount("--bind", folder, folder) != 0 or jobs.mount("-o", "remount,bind,ro", folder) != 0:
        return "skip: no read-only mounts here"
    return json.dumps({"code": jobs.forked(words, log), "said": log.read_text(encoding="utf-8")})


@pytest.mark.skipif(not ALL, reason="imports MLflow once more: make faults (tests/test_tracking.py has the call alone)")
def test_read_only(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, database: Path) -> None:
    run = tmp_path / "run"
    text = jobs.in_mounts(read_only, database.parent, [*words(run), f"run.tracking='sqlite:///{database}'"], tmp_path / "log")
    if text.startswith("skip: "):
        pytest.skip(text.removeprefix("skip: "))
    answer = json.loads(text)
    assert answer["code"] == 0, answer["said"][-2000:]
    assert "MLflow is behind the files" in answer["said"]
    ledger.compare("MLflow's database read-only", jobs.digest(run, jobs.NOISY), whole)
    _logged_later(run, database)
