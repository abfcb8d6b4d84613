"""TensorBoard, Weights & Biases and Trackio as views of a job's files: real packages, real processes beside a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alp.cli import main
from alp.errors import UserError
from alp.reporting import mirror, trackers
from tests.reporting.test_live import JOB
from tests.reporting.test_tracking import record, write_evaluation, write_metrics

Logged = list[tuple[int, dict[str, float]]]


def told(last: int) -> Logged:
    """What a tracker should have of ``write_metrics``."""
    return [(step, mirror.finite(record(step))) for step in range(last + 1)]


def train(run_dir: Path, uri: str, **environment: str) -> str:
    """Run a job beside which the tracker's process runs; returns what it said."""
    words = ["method=grpo", "trainer.seed=3", f"run.dir='{run_dir}'", "run.tracking=null"]
    done = subprocess.run(
        [sys.executable, "-c", JOB.format(then="pass"), *words],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=run_dir.parents[2],
        env=os.environ | {trackers.VARIABLE: uri} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def evaluated(run_dir: Path, uri: str, **environment: str) -> str:
    """What ``alp evaluate`` does at its end."""
    code = (
        "import sys; from pathlib import Path; from alp.reporting.live import add_evaluation;"
        "add_evaluation(Path(sys.argv[1]), sys.argv[2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_dir), uri],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        cwd=run_dir.parents[2],
        env=os.environ | environment,
    )
    return done.stderr


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed: an extra of its own")


@needs("tensorboard")
def test_tensorboard_has_every_step_once(run_dir: Path) -> None:
    place = run_dir.parents[2] / "tensorboard"
    assert "behind" not in train(run_dir, f"tensorboard:{place}")
    write_metrics(run_dir, 5)  # a second attempt goes on
    assert "behind" not in train(run_dir, f"tensorboard:{place}")
    (folder,) = place.glob("adhoc/grpo/seed3-??????")
    assert _events(folder) == told(5)
    write_evaluation(run_dir)
    for _ in range(2):
        assert "behind" not in evaluated(run_dir, f"tensorboard:{place}")
    extra = _events(folder)[len(told(5)) :]
    assert [step for step, _ in extra] == [5]
    assert extra[0][1]["evaluation/test/accuracy"] == 0.5
    assert b"trainer.seed: 3" in b"".join(path.read_bytes() for path in folder.iterdir())


def _events(folder: Path) -> Logged:
    """Scalars of a run as TensorBoard itself reads them, step by step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    logged = []
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            values = {v.tag: make_ndarray(v.tensor) for v in event.summary.value if v.tag != "configuration"}
            if values:
                logged.append((event.step, {tag: pytest.approx(float(v), rel=1e-6) for tag, v in values.items()}))
    return logged


@needs("wandb")
def test_wandb_offline_has_every_step(run_dir: Path) -> None:
    """Offline nothing says what an earlier attempt logged: each has its run's whole, under the same id."""
    place, said = run_dir.parents[2] / "offline", ""
    place.mkdir()
    for last in (3, 5):
        write_metrics(run_dir, last)
        said += train(run_dir, "wandb:pilot", WANDB_MODE="offline", WANDB_DIR=str(place))
    assert "behind" not in said
    (first, second) = sorted(place.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert first.name == second.name
    assert _history(first) == told(3)
    assert _history(second) == told(5)


def _history(path: Path) -> Logged:
    """Steps of an offline run's file, with its own figures (names that begin with _) left out."""
    from wandb.proto.wandb_internal_pb2 import Record

    logged = []
    for content in _log_entries(path.read_bytes()):
        entry = Record()
        entry.ParseFromString(content)
        if entry.WhichOneof("record_type") == "history":
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
            logged.append((entry.history.step.num, {k: v for k, v in values.items() if not k.startswith("_")}))
    return logged


def _log_entries(content: bytes) -> Iterator[bytes]:
    """Entries of LevelDB's log format, which W&B writes behind a header of 7 bytes: blocks of 32 KiB, each piece with
    checksum, length and kind (1 whole, 2 first, 3 middle, 4 last)."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@needs("trackio")
def test_trackio_has_every_step_once(run_dir: Path) -> None:
    place = run_dir.parents[2] / "trackio"
    environment = {"TRACKIO_DIR": str(place), "HF_HUB_OFFLINE": "1"}
    said = ""
    for last in (3, 5):
        write_metrics(run_dir, last)
        said += train(run_dir, "trackio:pilot", **environment)
    write_evaluation(run_dir)
    for _ in range(2):
        said += evaluated(run_dir, "trackio:pilot", **environment)
    assert "behind" not in said
    code = (
        "import json, trackio; from trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = trackio.Api().runs('pilot')\n"
        "print(json.dumps([run.name, run.config, SQLiteStorage.get_logs('pilot', run.name)]))"
    )
    read = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    name, config, logs = json.loads(read.stdout.splitlines()[-1])
    assert name.startswith("grpo/seed3-")
    assert config["trainer.seed"] == 3
    plain = [(line.pop("step"), {k: v for k, v in line.items() if k != "timestamp"}) for line in logs]
    assert plain[:-1] == told(5)
    assert plain[-1][0] == 5
    assert plain[-1][1]["evaluation/test/accuracy"] == 0.5


class InMemory:
    """A tracker that keeps what it is told."""

    runs: ClassVar[dict[str, Logged]] = {}
    fails = False

    def __init__(self, place: str, job: trackers.Job) -> None:
        if InMemory.fails:
            raise ConnectionError(f"no way\nto {place}")
        self._run = InMemory.runs.setdefault(job.key, [])
        self.logged = max((step for step, _ in self._run), default=-1)

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._run.append((step, figures))

    def conclude(self, figures: dict[str, float]) -> None:
        self._run.append((-1, figures))

    def close(self, finished: bool) -> None:
        self._run.append((-2, {"finished": finished}))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(trackers.TRACKERS, "memory", f"{__name__}:InMemory")
    InMemory.runs.clear()
    yield "memory:here"
    InMemory.fails = False


IDENTITY: Any = {"experiment": "pilot", "name": "grpo/seed3", "tags": {"config_hash": "c0ffee"}}


def test_what_is_new_is_told_once_and_nothing_is_no_number(run_dir: Path, memory: str) -> None:
    now = [0.0]
    view = mirror.Mirror(run_dir, uri=memory, clock=lambda: now[0], **IDENTITY)
    write_metrics(run_dir, 4)
    view.step()  # too early
    ((_, run),) = InMemory.runs.items()
    assert run == told(3)
    now[0] = 10.0
    view.step()
    assert run == told(4)
    assert all(key != "policy/kl" for _, figures in run for key in figures), "null is no figure"
    mirror.Mirror(run_dir, uri=memory, **IDENTITY).close(False)
    assert run == [*told(4), (-2, {"finished": False})]


def test_another_training_is_another_run(run_dir: Path, memory: str) -> None:
    for identity in ("a", "b"):
        tags = {"config_hash": "c0ffee", "alp.identity": identity}
        mirror.Mirror(run_dir, uri=memory, **(IDENTITY | {"tags": tags}))
    assert len(InMemory.runs) == 2


def test_a_tracker_that_fails_is_one_warning(run_dir: Path, memory: str, caplog: pytest.LogCaptureFixture) -> None:
    InMemory.fails = True
    view = mirror.Mirror(run_dir, uri=memory, interval=0.0, **IDENTITY)
    view.step()
    assert not view.conclude()
    assert [entry.getMessage() for entry in caplog.records] == [
        f"memory is behind the files of {run_dir}, everything else goes on: ConnectionError: no way to here"
    ]
    InMemory.fails = False
    assert view.conclude()
    assert next(iter(InMemory.runs.values()))[:4] == told(3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tensorbord:x", "ALP_TRACKERS: unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("wandb", "ALP_TRACKERS: wandb needs a project: wandb:<project>"),
        ("tensorboard:", "ALP_TRACKERS: tensorboard needs a folder: tensorboard:<folder>"),
        (
            "no_such_package:x",
            "ALP_TRACKERS: the package no_such_package is not installed: pip install no_such_package, or the extra of"
            " that name (make install EXTRAS=dev,no_such_package)",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_before_anything_is_computed(
    words: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if words.startswith("no_such"):
        monkeypatch.setitem(trackers.TRACKERS, "no_such_package", "nowhere:Nothing")
    monkeypatch.setenv(trackers.VARIABLE, words)
    with pytest.raises(UserError, match=message[:20]):
        trackers.asked()
    assert main(["train", f"run.dir='{tmp_path}/run'"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"alp: error: {message}"
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers.TRACKERS, "no_such_package", "nowhere:Nothing")
    monkeypatch.setenv(trackers.VARIABLE, "no_such_package:x")
    with pytest.raises(UserError, match="not installed"):
        trackers.asked()


def test_without_the_variable_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(trackers.VARIABLE, raising=False)
    assert trackers.asked() == []
