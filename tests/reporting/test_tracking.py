"""The MLflow view of a run folder: complete, never doubled, shared by parallel jobs, and no danger to training. Real
sqlite."""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from alp.configuration import compose
from alp.reporting import tracking, tracking_database, tracking_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

JOB: tracking.Identity = {
    "experiment": "pilot",
    "name": "grpo/seed0",
    "tags": {"config_hash": "c0ffee", "method": "grpo", "seed": "0"},
}


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return Path(shutil.copy(migrated, tmp_path / "results" / "mlflow.db"))


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def run_dir(database: Path) -> Path:
    return folder(database.parent / "pilot" / "grpo" / "seed0")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_database, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(tracking_database, "SETTLE_SECONDS", 0.1)


def folder(path: Path, steps: int = 3) -> Path:
    """A run folder as training leaves it after ``steps`` steps."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        "method:\n  name: grpo\n  dual_clip: null\ntrainer:\n  lr: 1.0e-06\n  layers: [1, 2]\n"
    )
    (path / "active.json").write_text('{"device": "cpu", "threads": 1}')
    write_metrics(path, steps)
    return path


def record(step: int) -> dict[str, Any]:
    if step == 0:
        return {"step": 0, "validation/accuracy": 0.125}
    return {
        "step": step,
        "reward/mean": 1 / (step + 2),
        "ratio/token/log_q001": -1e-7 * step,
        "policy/kl": None,
        "policy/skipped": 0,
    }


def write_metrics(path: Path, steps: int) -> None:
    (path / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in range(steps + 1)))


def write_evaluation(path: Path, name: str = "test", accuracy: float = 0.5) -> None:
    (path / "evaluation").mkdir(exist_ok=True)
    result = {"set": name, "accuracy": accuracy, "greedy": None, "pass_at_k": {"1": accuracy, "4": 0.75}}
    (path / "evaluation" / f"{name}.json").write_text(json.dumps(result))


def client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs(uri: str, experiment: str = "pilot") -> list[Run]:
    found = client(uri).get_experiment_by_name(experiment)
    return list(client(uri).search_runs([found.experiment_id])) if found else []


def history(database: Path, run_id: str | None) -> list[tuple[str, int, float]]:
    """Every point MLflow holds, straight from its table."""
    with sqlite3.connect(database) as connection:
        return sorted(connection.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (run_id,)))


def expected(run_dir: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return sorted(
        (tracking_view.metric_name(key), line["step"], float(value))
        for line in lines
        for key, value in line.items()
        if value is not None
    )


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_import_is_light() -> None:
    code = (
        "import sys, alp.reporting.tracking; print([name for name in ('mlflow', 'torch', 'sqlalchemy') if name in"
        " sys.modules])"
    )
    assert python(code).communicate(timeout=60)[0].strip() == "[]"


def test_steps_are_logged_once_over_repeated_calls_and_a_resume(run_dir: Path, database: Path, uri: str) -> None:
    first = tracking.sync(run_dir, uri=uri, finished=None, **JOB)
    assert history(database, first) == expected(run_dir)
    assert tracking.sync(run_dir, uri=uri, finished=None, **JOB) == first
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as stream:  # the trainer is in the middle of a line
        stream.write(json.dumps(record(4)) + "\n" + json.dumps(record(5))[:20])
    tracking.sync(run_dir, uri=uri, finished=None, **JOB)
    assert max(step for _, step, _ in history(database, first)) == 4
    write_metrics(run_dir, 2)  # a resumed job starts from an older checkpoint ...
    assert tracking.sync(run_dir, uri=uri, finished=None, **JOB) == first
    write_metrics(run_dir, 7)  # ... and goes on
    assert tracking.sync(run_dir, uri=uri, finished=True, **JOB) == first
    assert history(database, first) == expected(run_dir)
    assert [run.info.status for run in runs(uri)] == ["FINISHED"]


def test_many_metrics_need_several_calls(run_dir: Path, database: Path, uri: str) -> None:
    lines = [
        {"step": step, **{f"perturbation/std/{layer}": step + layer / 100 for layer in range(69)}}
        for step in range(1, 41)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert history(database, tracking.sync(run_dir, uri=uri, finished=None, **JOB)) == expected(run_dir)


def test_what_is_no_finite_number_is_skipped(run_dir: Path, database: Path, uri: str) -> None:
    (run_dir / "metrics.jsonl").write_text(
        '{"step": 1, "a": NaN, "b": Infinity, "c": null, "d": "text", "e": true, "f@g": 2}\n'
    )
    run_id = tracking.sync(run_dir, uri=uri, finished=None, **JOB)
    assert history(database, run_id) == [("f_g", 1, 2.0), ("step", 1, 1.0)]


def test_params_and_tags(run_dir: Path, uri: str) -> None:
    long = {f"k{i}": "x" * 7000 if i == 0 else i for i in range(150)}
    with open(run_dir / "config.yaml", "a", encoding="utf-8") as stream:
        stream.write(f"many: {json.dumps(long)}\n")
    tracking.sync(run_dir, uri=uri, finished=None, **JOB)
    (run,) = runs(uri)
    assert len(run.data.params) == 154
    wanted = {"method.name": "grpo", "method.dual_clip": "null", "trainer.lr": "1e-06", "trainer.layers": "[1, 2]"}
    assert wanted.items() <= run.data.params.items()
    assert len(run.data.params["many.k0"]) == 6000
    assert run.info.run_name == "grpo/seed0"
    tags = {
        "alp.identity": "c0ffee",
        "config_hash": "c0ffee",
        "alp.run_dir": "pilot/grpo/seed0",
        "alp.active": '{"device": "cpu", "threads": 1}',
        "seed": "0",
    }
    assert tags.items() <= run.data.tags.items()
    (run_dir / "config.yaml").write_text(
        "method: {name: other, new: 1}\n"
    )  # params never change, missing ones are added
    assert tracking.sync(run_dir, uri=uri, finished=None, **(JOB | {"tags": JOB["tags"] | {"commit": "abc"}}))
    (again,) = runs(uri)
    assert again.data.params == run.data.params | {"method.new": "1"}
    assert again.data.tags["commit"] == "abc"


def test_parallel_jobs_on_a_fresh_database(tmp_path: Path, migrated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [folder(tmp_path / "pilot" / f"seed{seed}", steps=20) for seed in range(5)]
    database = tmp_path / "new" / "deep folder" / "mlflow.db"
    fork = multiprocessing.get_context("fork")  # MLflow is imported already: all reach the database at the same moment
    start = fork.Barrier(4)

    def job(own: int) -> None:
        start.wait()
        for seed in (0, own):  # all share folder 0: one run, whoever creates it
            identity = JOB | {"tags": {"config_hash": f"c{seed}"}}
            assert tracking.sync(paths[seed], uri=f"sqlite:///{database}", finished=True, **identity)

    jobs = [fork.Process(target=job, args=(own,)) for own in range(1, 5)]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join(60)
    assert [process.exitcode for process in jobs] == [0] * 4
    assert capfd.readouterr() == ("", "")  # no chatter about the migration
    found = runs(f"sqlite:///{database}")
    assert [run.info.status for run in found] == ["FINISHED"] * 5
    for run in found:
        assert history(database, run.info.run_id) == expected(paths[0])


def test_evaluation_joins_the_run_and_keeps_its_status(run_dir: Path, database: Path, uri: str) -> None:
    (run_dir / "config.yaml").write_text(compose.to_yaml(compose.load("train", ["run.grid=pilot", "run.arm=grpo"])))
    job = tracking.describe(run_dir)
    trained = tracking.sync(run_dir, uri=uri, finished=True, **job)
    for accuracy in (0.5, 0.5, 0.625):  # a new value is a new point, the same one is not
        write_evaluation(run_dir, accuracy=accuracy)
        assert tracking.sync_evaluation(run_dir, uri=uri) == trained
        assert tracking.sync(run_dir, uri=uri, finished=None, **job) == trained
    (run,) = runs(uri)
    assert run.info.status == "FINISHED"
    points = [point for point in history(database, trained) if point[0].startswith("evaluation/")]
    assert points == [
        ("evaluation/test/accuracy", 0, 0.5),
        ("evaluation/test/accuracy", 0, 0.625),
        ("evaluation/test/pass_at_1", 0, 0.5),
        ("evaluation/test/pass_at_1", 0, 0.625),
        ("evaluation/test/pass_at_4", 0, 0.75),
    ]
    assert run.data.metrics["evaluation/test/accuracy"] == 0.625
    assert {item.path for item in client(uri).list_artifacts(run.info.run_id)} == {
        "config.yaml",
        "active.json",
        "evaluation",
    }
    copy = database.parent / "mlartifacts" / run.info.run_id / "artifacts" / "evaluation" / "test.json"
    assert copy.read_bytes() == (run_dir / "evaluation" / "test.json").read_bytes()


@pytest.mark.parametrize("finished", [None, False])
def test_evaluation_does_not_change_an_unfinished_status(run_dir: Path, uri: str, finished: bool | None) -> None:
    (run_dir / "config.yaml").write_text(compose.to_yaml(compose.load("train", [])))
    tracking.sync(run_dir, uri=uri, finished=finished, **tracking.describe(run_dir))
    before = runs(uri, "adhoc")[0].info.status
    write_evaluation(run_dir)
    tracking.sync_evaluation(run_dir, uri=uri)
    assert [run.info.status for run in runs(uri, "adhoc")] == [before]


def test_evaluation_of_a_folder_without_a_run(run_dir: Path, database: Path, uri: str) -> None:
    chosen = compose.load("train", ["method=token_alp", "trainer.seed=3"])
    (run_dir / "config.yaml").write_text(compose.to_yaml(chosen))
    write_evaluation(run_dir)
    run_id = tracking.sync_evaluation(run_dir, uri=uri)
    (run,) = runs(uri, "adhoc")
    assert (run.info.run_id, run.info.status, run.info.run_name) == (run_id, "FINISHED", "token_alp/seed3")
    assert run.data.tags["config_hash"] == compose.identity(chosen)
    assert set(expected(run_dir)) < set(history(database, run_id))


def test_killed_job_is_continued(run_dir: Path, database: Path, uri: str) -> None:
    code = (
        "import json, os, signal, sys; from pathlib import Path; from alp.reporting import tracking\n"
        "tracking.Live(Path(sys.argv[1]), uri=sys.argv[2], **json.loads(sys.argv[3]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job = python(code, run_dir, uri, json.dumps(JOB))
    job.communicate(timeout=60)
    assert job.returncode == -9
    (killed,) = runs(uri)
    assert killed.info.status == "RUNNING"
    live = tracking.Live(run_dir, uri=uri, **JOB)
    write_metrics(run_dir, 6)
    live.close(finished=True)
    (run,) = runs(uri)
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    assert live.run_id == run.info.run_id
    assert history(database, live.run_id) == expected(run_dir)


def test_failed_job_runs_again(run_dir: Path, uri: str) -> None:
    statuses = []
    for finished in (None, False, None, True, None):
        tracking.sync(run_dir, uri=uri, finished=finished, **JOB)
        statuses += [run.info.status for run in runs(uri)]
    assert statuses == ["RUNNING", "FAILED", "RUNNING", "FINISHED", "FINISHED"]


def test_training_anew_gets_a_new_run(run_dir: Path, database: Path, uri: str) -> None:
    old = tracking.sync(run_dir, uri=uri, finished=True, **JOB)
    before = history(database, old)
    (run_dir / "metrics.jsonl").unlink()  # same configuration, changed code: the workflow starts over
    new = tracking.sync(run_dir, uri=uri, finished=None, **JOB)
    write_metrics(run_dir, 2)
    assert tracking.sync(run_dir, uri=uri, finished=None, **JOB) == new != old
    assert (history(database, old), history(database, new)) == (before, expected(run_dir))


def test_other_folders_and_configurations_have_their_own_runs(run_dir: Path, uri: str) -> None:
    other = folder(run_dir.parent / "it's seed1")
    ids = {tracking.sync(path, uri=uri, finished=None, **JOB) for path in (run_dir, other)}
    ids.add(tracking.sync(run_dir, uri=uri, finished=None, **(JOB | {"tags": {"config_hash": "beef"}})))
    assert len(ids - {None}) == 3


def test_deleted_in_the_ui(run_dir: Path, uri: str) -> None:
    first = tracking.sync(run_dir, uri=uri, finished=None, **JOB)
    assert first
    client(uri).delete_run(first)
    second = tracking.sync(run_dir, uri=uri, finished=None, **JOB)
    assert second not in (None, first)
    client(uri).delete_experiment(runs(uri)[0].info.experiment_id)
    assert tracking.sync(run_dir, uri=uri, finished=None, **JOB)


def test_relative_uri_and_a_clean_working_directory(
    run_dir: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(database.parent.parent)
    assert tracking.sync(run_dir, uri="sqlite:///results/mlflow.db", finished=True, **JOB)
    assert os.listdir() == ["results"]
    assert sorted(os.listdir("results")) == ["mlartifacts", "mlflow.db", "mlflow.db.lock", "pilot"]


def _read_only(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[18] = 3  # a write version sqlite does not know: it then only reads, even for root
    database.write_bytes(content)


def _no_folder(database: Path) -> None:
    database.parent.rename(database.parent.with_name("moved"))
    database.parent.write_text("a file where the folder should be")


def _newer(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'f00000000000'")


@pytest.mark.parametrize("spoil", [_read_only, _no_folder, _newer])
def test_database_that_cannot_be_used_is_one_warning_and_left_as_it_is(
    spoil: Callable[[Path], None], tmp_path: Path, database: Path, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(database)
    run_dir = folder(tmp_path / "elsewhere")
    start = time.monotonic()
    live = tracking.Live(run_dir, uri=uri, interval=0.0, **JOB)
    for _ in range(5):
        live.step()
        time.sleep(0.05)
    live.close(finished=True)
    assert live.run_id is None
    assert time.monotonic() - start < 5
    assert [(entry.levelname, "\n" in entry.getMessage()) for entry in caplog.records] == [("WARNING", False)]
    assert tracking.sync(run_dir, uri=uri, finished=None, **JOB) is None
    assert not list(database.parent.glob("*broken*")) if database.parent.is_dir() else True


def test_locked_database_is_caught_up(
    run_dir: Path, database: Path, uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_database, "LOCK_SECONDS", 0.1)
    with sqlite3.connect(database, isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert tracking.sync(run_dir, uri=uri, finished=None, **JOB) is None
        writer.execute("ROLLBACK")
    with open(f"{database}.lock", "a", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        live = tracking.Live(run_dir, uri=uri, interval=0.0, **JOB)
    assert ["locked" in caplog.messages[0], "another process holds" in caplog.messages[1]] == [True, True]
    live.close(finished=True)
    assert len(caplog.records) == 2
    assert history(database, live.run_id) == expected(run_dir)


def test_warning_reaches_stderr_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = (
        "import json, sys; from pathlib import Path; from alp.reporting import tracking\n"
        "uri = f'sqlite:///{sys.argv[1]}/file/mlflow.db'\n"
        "live = tracking.Live(Path(sys.argv[1]), uri=uri, **json.loads(sys.argv[2]))\n"
        "live.step(); live.close(finished=True); print('trained')\n"
    )
    output, errors = python(code, tmp_path, json.dumps(JOB)).communicate(timeout=60)
    assert output == "trained\n"
    assert len(errors.splitlines()) == 1
    assert "MLflow is behind" in errors


def test_live_waits_its_interval_and_touches_no_random_state(run_dir: Path, database: Path, uri: str) -> None:
    states = random.getstate(), str(np.random.get_state())
    now = [0.0]
    live = tracking.Live(run_dir, uri=uri, interval=10.0, clock=lambda: now[0], **JOB)
    before = history(database, live.run_id)
    write_metrics(run_dir, 4)
    now[0] = 9.9
    live.step()
    assert history(database, live.run_id) == before != expected(run_dir)
    now[0] = 10.0
    live.step()
    assert history(database, live.run_id) == expected(run_dir)
    assert runs(uri)[0].info.status == "RUNNING"
    live.close(finished=False)
    assert runs(uri)[0].info.status == "FAILED"
    assert states == (random.getstate(), str(np.random.get_state()))


def test_without_a_uri_nothing_happens(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    live = tracking.Live(run_dir, uri=None, **JOB)
    live.step()
    live.close(finished=True)
    assert (
        live.run_id
        is tracking.sync(run_dir, uri=None, finished=True, **JOB)
        is tracking.sync_evaluation(run_dir, uri=None)
        is None
    )
    assert not caplog.records
