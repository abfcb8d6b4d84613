"""The sqlite file behind MLflow: broken ones are set aside, those of others stay, it moves with its folder, and any
name will do."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from alp.configuration import compose, grid
from alp.errors import UserError
from alp.reporting import tracking, tracking_database
from tests.reporting.test_tracking import JOB, client, expected, folder, history, runs, write_evaluation


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_database, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def results(migrated: Path, tmp_path: Path) -> Path:
    """A results folder with a whole database and one finished run."""
    place = tmp_path / "results"
    place.mkdir()
    shutil.copy(migrated, place / "mlflow.db")
    folder(place / "pilot" / "seed0")
    assert _sync(place)
    return place


@pytest.fixture
def making_is_quick(migrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real new database, made once for the session: making one takes seconds."""
    monkeypatch.setattr(tracking_database, "_make", lambda path: shutil.copy(migrated, path))


def _sync(place: Path) -> str | None:
    return tracking.sync(place / "pilot" / "seed0", uri=f"sqlite:///{place}/mlflow.db", finished=True, **JOB)


def _tree(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def _sql(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(9000))


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    dice = random.Random(0)
    for _ in range(400):
        content[dice.randrange(100, len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def _no_version(path: Path) -> None:
    _sql(path, "DROP TABLE alembic_version")


def _version_unwritten(path: Path) -> None:
    _sql(path, "DELETE FROM alembic_version")


def _table_lost(path: Path) -> None:
    _sql(path, "DROP TABLE metrics")


def _column_lost(path: Path) -> None:
    _sql(path, "ALTER TABLE metrics RENAME COLUMN step TO stop")


def _in_the_middle(path: Path) -> None:
    """An early revision's name over the tables of the last: what follows cannot be done a second time."""
    _sql(path, "UPDATE alembic_version SET version_num = '451aebb31d03'")


BROKEN = [
    _empty,
    _garbage,
    _truncated,
    _flipped,
    _no_version,
    _version_unwritten,
    _table_lost,
    _column_lost,
    _in_the_middle,
]


@pytest.mark.parametrize("spoil", BROKEN)
@pytest.mark.usefixtures("making_is_quick")
def test_a_broken_database_is_set_aside_with_a_sentence_and_everything_logged_anew(
    spoil: Callable[[Path], None], results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = results / "mlflow.db"
    for number in (1, 2):
        spoil(database)
        spoilt = database.read_bytes()
        caplog.clear()
        tracking_database._whole.clear()  # what another process would begin with
        found = _sync(results)
        assert history(database, found) == expected(results / "pilot" / "seed0")
        assert [entry.levelname for entry in caplog.records] == ["WARNING"]
        assert "mlflow.db is broken (" in caplog.text
        assert f"it is kept as mlflow.db.broken-{number}, a new one is made" in caplog.text
        assert (results / f"mlflow.db.broken-{number}").read_bytes() == spoilt
    assert not list(results.glob(".*")), "temporary files"


@pytest.mark.usefixtures("making_is_quick")
def test_journal_and_log_go_along(results: Path) -> None:
    database, names = results / "mlflow.db", ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm")
    with sqlite3.connect(database) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("DROP TABLE alembic_version")
        writer.commit()
        killed = {name: (results / name).read_bytes() for name in names}  # what a kill at this moment leaves
    writer.close()
    for name, content in killed.items():
        (results / name).write_bytes(content)
    with sqlite3.connect(database) as reader:  # the UI, say: with it open, sqlite does not tidy up
        reader.execute("SELECT count(*) FROM metrics").fetchone()
        assert _sync(results)
        assert {path.name.replace("db.broken-1", "db") for path in results.glob("mlflow.db.broken-1*")} == set(names)
        assert reader.execute("SELECT count(*) FROM metrics").fetchone()[0] > 0
    assert not [name for name in names[1:] if (results / name).exists()]


def test_an_older_database_is_migrated_in_a_copy(
    results: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Back by MLflow's own last step, then forward again with the runs it holds."""
    from alembic import command
    from mlflow.store.db import utils

    database = results / "mlflow.db"
    (run,) = runs(f"sqlite:///{database}")
    script = tracking_database._scripts().get_revision("head")
    try:
        command.downgrade(utils._get_alembic_config(f"sqlite:///{database}"), str(script.down_revision))
    except Exception as error:  # MLflow's steps need not lead back
        _sql(database, f"UPDATE alembic_version SET version_num = '{script.down_revision}'")
        pytest.skip(f"this MLflow has no way back: {error}")
    old = database.read_bytes()
    assert _sync(results) == run.info.run_id
    assert "was of an older MLflow: a migrated copy takes its place, it is kept as mlflow.db.old-1" in caplog.text
    assert (results / "mlflow.db.old-1").read_bytes() == old
    assert history(database, run.info.run_id) == expected(results / "pilot" / "seed0")


@pytest.mark.usefixtures("making_is_quick")
def test_a_database_that_is_not_mlflow_s_is_left_alone(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes, profile, named = results / "notes.db", results / ".profile", results / "other" / "mlflow.db"
    named.parent.mkdir()
    for path in (notes, named):
        _sql(path, "CREATE TABLE notes (line TEXT)", "INSERT INTO notes VALUES ('mine')")
    profile.write_text("export PATH=/bin\n", encoding="utf-8")
    for path in (notes, profile, named):
        before = path.read_bytes()
        caplog.clear()
        assert tracking.sync(results / "pilot" / "seed0", uri=f"sqlite:///{path}", finished=True, **JOB) is None
        assert "is not a database of MLflow" in caplog.text
        assert path.read_bytes() == before
    assert not list(results.rglob("*broken*"))


def test_renamed_and_copied_results_keep_their_artifacts(results: Path, tmp_path: Path) -> None:
    moved, copied = tmp_path / "moved é #1", tmp_path / "copied"
    results.rename(moved)
    run_id = _sync(moved)
    assert run_id
    write_evaluation(moved / "pilot" / "seed0")
    assert _sync(moved) == run_id
    mlflow = client(f"sqlite:///{moved}/mlflow.db")
    assert {item.path for item in mlflow.list_artifacts(run_id)} == {"config.yaml", "active.json", "evaluation"}
    assert (moved / "mlartifacts" / run_id / "artifacts" / "evaluation" / "test.json").is_file()
    assert not results.exists()
    shutil.copytree(moved, copied)
    before = _tree(moved)
    write_evaluation(copied / "pilot" / "seed0", name="more")
    assert _sync(copied) == run_id
    assert _tree(moved) == before, "the original"
    assert (copied / "mlartifacts" / run_id / "artifacts" / "evaluation" / "more.json").is_file()
    found = client(f"sqlite:///{copied}/mlflow.db").get_experiment_by_name("pilot")
    assert found is not None
    assert found.artifact_location == (copied / "mlartifacts").as_uri()


def test_runs_of_others_and_other_ways_to_the_same_folder_stay(results: Path, tmp_path: Path) -> None:
    mlflow = client(f"sqlite:///{results}/mlflow.db")
    theirs = mlflow.create_run(mlflow.create_experiment("theirs", "file:///elsewhere/mlartifacts")).info
    link = tmp_path / "link"
    link.symlink_to(results)
    assert _sync(link)
    (ours,) = runs(f"sqlite:///{link}/mlflow.db")
    assert ours.info.artifact_uri == f"{(results / 'mlartifacts').as_uri()}/{ours.info.run_id}/artifacts"
    assert mlflow.get_run(theirs.run_id).info.artifact_uri == f"file:///elsewhere/mlartifacts/{theirs.run_id}/artifacts"


@pytest.mark.parametrize(
    "name",
    ["a b", "é", "a#b", "50%", "%41", "a&b=c", "it's", 'say "x"', "a;b", "a:b", "a@b", "[x]*", "back\\slash", "$HOME"],
)
def test_any_folder_name_is_that_folder(name: str, migrated: Path, tmp_path: Path) -> None:
    place = tmp_path / name
    place.mkdir()
    shutil.copy(migrated, place / "mlflow.db")
    folder(place / "pilot" / "seed0")
    run_id = _sync(place)
    assert run_id
    assert history(place / "mlflow.db", run_id) == expected(place / "pilot" / "seed0")
    assert os.listdir(tmp_path) == [name]
    assert sorted(os.listdir(place)) == ["mlartifacts", "mlflow.db", "mlflow.db.lock", "pilot"]
    assert {item.path for item in client(f"sqlite:///{place}/mlflow.db").list_artifacts(run_id)} == {
        "config.yaml",
        "active.json",
    }


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///a?b/mlflow.db", "sqlite:///file:a.db", "sqlite:///", "sqlite://", "sqlite:///:memory:", "sqlite:///a/"],
)
def test_a_uri_that_names_another_file_or_none_is_refused_before_anything(uri: str) -> None:
    with pytest.raises(UserError, match=r"run\.tracking: "):
        compose.load("train", [f"run.tracking='{uri}'"])


def test_a_results_root_that_no_uri_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a path with '\\?' would be read as another database"):
        grid.load("smoke").overrides("train", tmp_path / "what?", arm=grid.load("smoke").arms[0].name)


def test_track_without_a_usable_database_warns_and_the_next_call_catches_up(
    tmp_path: Path, migrated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen, place = grid.load("smoke"), tmp_path / "results"
    jobs = [(arm.name, seed) for arm in chosen.arms for seed in chosen.seeds]
    for arm, seed in jobs:
        path = folder(chosen.run_dir(place, arm, seed))
        loaded = compose.load("train", chosen.overrides("train", place, arm=arm, seed=seed))
        (path / "config.yaml").write_text(compose.to_yaml(loaded), encoding="utf-8")
    shutil.copy(migrated, place / "mlflow.db")
    _sql(place / "mlflow.db", "UPDATE alembic_version SET version_num = 'f00000000000'")
    caplog.set_level(logging.WARNING)
    path = tracking.track(chosen, place)
    assert set(logged := json.loads(path.read_text(encoding="utf-8"))) == {f"{arm}/seed{seed}" for arm, seed in jobs}
    assert set(logged.values()) == {None}
    assert f"{len(jobs)} of {len(jobs)} runs could not be logged" in caplog.messages[-1]
    shutil.copy(migrated, place / "mlflow.db")
    caplog.clear()
    assert None not in json.loads(tracking.track(chosen, place).read_text(encoding="utf-8")).values()
    assert not caplog.records
