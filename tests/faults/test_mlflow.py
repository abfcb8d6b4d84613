"""MLflow in trouble while a job trains: the job goes on, and what could not be logged is logged later."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from alp.reporting import tracking, tracking_database
from tests.faults import jobs
from tests.faults.conftest import ALL, Ledger, Words
from tests.reporting.test_tracking import JOB, expected, folder, history


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

    def _logged(self) -> bool:
        with closing(sqlite3.connect(self.database)) as connection:
            return bool(connection.execute("SELECT count(*) FROM metrics").fetchone()[0])

    def __call__(self) -> None:
        from alp.training import loop

        plain = loop.step

        def step(job: loop.Job, number: int) -> Any:
            if number == 3:
                deadline = time.monotonic() + 120
                while not self._logged():
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                self.database.unlink()
            return plain(job, number)

        loop.step = step


def _killed_while_making(make: Callable[[], None], seconds: float | None) -> float:
    """Make a database in a process of its own, killed after ``seconds`` if that is given; returns how long it ran."""
    process = multiprocessing.get_context("fork").Process(target=make)  # MLflow is imported already
    started = time.monotonic()
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), "0: it ended just before the signal"
    return time.monotonic() - started


def _recovered(run: Path, database: Path, ledger: Ledger, kind: str, tried: int) -> None:
    """The next call makes a whole database with every number, and leaves nothing beside it."""
    found = tracking.sync(run, uri=f"sqlite:///{database}", finished=True, **JOB)
    lost = found is None or history(database, found) != expected(run)
    ledger.tried(kind, tried, int(lost))
    assert not lost
    aside = tuple(f"{database.name}.{kind}-" for kind in ("broken", "old"))  # half made may look like an older MLflow's
    left = [path.name for path in database.parent.iterdir() if not path.name.startswith(aside)]
    assert sorted(left) == ["mlartifacts", database.name, f"{database.name}.lock"]


@pytest.mark.long
@pytest.mark.usefixtures("migrated")
def test_killed_while_the_database_is_made(tmp_path: Path, ledger: Ledger) -> None:
    """At random moments; under its name there is never anything but a whole database."""
    run, database = folder(tmp_path / "run"), tmp_path / "results" / "mlflow.db"

    def make() -> None:
        tracking.sync(run, uri=f"sqlite:///{database}", finished=True, **JOB)

    whole = _killed_while_making(make, None)
    shutil.rmtree(database.parent)
    dice, kills = random.Random(5), 20 if ALL else 3
    for _ in range(kills):
        _killed_while_making(make, dice.uniform(0.02, 0.98) * whole)
        if database.exists():
            with closing(sqlite3.connect(database)) as connection:
                assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
            shutil.rmtree(database.parent)
    _recovered(run, database, ledger, "killed while MLflow's database is made", kills)
    assert not list(database.parent.glob("*broken*"))


@pytest.mark.long
@pytest.mark.usefixtures("migrated")
def test_half_made_databases_are_set_aside(tmp_path: Path, ledger: Ledger) -> None:
    """What MLflow itself leaves under the final name when it is killed in the middle, as earlier versions of ours let
    it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    run, kind = folder(tmp_path / "run"), "half-made MLflow database"

    def make(place: Path) -> Callable[[], None]:
        place.mkdir()
        return lambda: SqlAlchemyStore(f"sqlite:///{place}/mlflow.db", place.as_uri()) and None

    whole = _killed_while_making(make(tmp_path / "timed"), None)
    for number, share in enumerate(random.Random(6).uniform(0.1, 0.9) for _ in range(12 if ALL else 2)):
        place = tmp_path / f"results{number}"
        _killed_while_making(make(place), share * whole)
        _recovered(run, place / "mlflow.db", ledger, kind, 1)


def test_damaged(tmp_path: Path, migrated: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off, zeroed or overwritten at random places: the next call has a run with every number, in this database or a
    new one."""
    monkeypatch.setattr(
        tracking_database, "_make", lambda path: shutil.copy(migrated, path)
    )  # making one takes seconds
    monkeypatch.setattr(tracking_database, "SETTLE_SECONDS", 0.0)
    run, dice, whole = folder(tmp_path / "run"), random.Random(7), migrated.read_bytes()
    for number in range(150 if ALL else 8):
        database = tmp_path / f"results{number}" / "mlflow.db"
        database.parent.mkdir()
        place, size = dice.randrange(len(whole)), dice.choice([16, 512, 8192])
        size = min(size, len(whole) - place)
        content = [
            whole[:place],
            whole[:place] + bytes(size) + whole[place + size :],
            whole[:place] + dice.randbytes(size) + whole[place + size :],
        ]
        database.write_bytes(content[number % 3])
        found = tracking.sync(run, uri=f"sqlite:///{database}", finished=None, **JOB)
        lost = found is None or history(database, found) != expected(run)
        ledger.tried("MLflow's database damaged", 1, int(lost))
        assert not lost, (number, place, size)


@pytest.mark.long
def test_deleted(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, database: Path) -> None:
    run = tmp_path / "run"
    chosen = [*words(run), f"run.tracking='sqlite:///{database}'"]
    assert jobs.train(chosen, tmp_path / "log", Delete(database)) == 0, (tmp_path / "log").read_text(encoding="utf-8")[
        -2000:
    ]
    ledger.compare("MLflow's database deleted", jobs.digest(run, jobs.NOISY), whole)
    _logged_later(run, database)


@pytest.mark.long
def test_unreachable(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, database: Path) -> None:
    run = tmp_path / "run"
    assert jobs.train([*words(run), "run.tracking='http://127.0.0.1:9'"], tmp_path / "log") == 0
    assert (tmp_path / "log").read_text(encoding="utf-8").count("MLflow is behind the files") == 1
    ledger.compare("MLflow unreachable", jobs.digest(run, jobs.NOISY), whole)
    _logged_later(run, database)


@pytest.mark.skipif(
    not ALL, reason="waits for a lock: make faults (tests/reporting/test_tracking.py has the call alone)"
)
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


@pytest.mark.skipif(
    not ALL, reason="imports MLflow once more: make faults (tests/reporting/test_tracking.py has the call alone)"
)
def test_read_only(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, database: Path) -> None:
    run = tmp_path / "run"
    text = jobs.in_mounts(
        read_only, database.parent, [*words(run), f"run.tracking='sqlite:///{database}'"], tmp_path / "log"
    )
    if text.startswith("skip: "):
        pytest.skip(text.removeprefix("skip: "))
    answer = json.loads(text)
    assert answer["code"] == 0, answer["said"][-2000:]
    assert "MLflow is behind the files" in answer["said"]
    ledger.compare("MLflow's database read-only", jobs.digest(run, jobs.NOISY), whole)
    _logged_later(run, database)
