"""Disks that are full or read-only, and checkpoints that a disk has damaged. Root may write anywhere: mount namespaces
make it real."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alp.errors import TRY_AGAIN
from tests.faults import jobs
from tests.faults.conftest import ALL, STEPS, Ledger, Words


def _answer(answer: str) -> dict[str, Any]:
    if answer.startswith("skip: "):
        pytest.skip(answer.removeprefix("skip: "))
    found: dict[str, Any] = json.loads(answer)
    return found


def full_disk(disk: Path, room: int, words: list[str], log: Path) -> str:
    """A job on a disk of 16 MiB with ``room`` bytes left once it starts; then the disk is emptied and the job started
    again."""
    disk.mkdir()
    if jobs.mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", disk) != 0:
        return "skip: no tmpfs can be mounted here"
    first = jobs.forked(words, log, _Fill(disk, room))
    said = log.read_text(encoding="utf-8")
    (disk / "ballast").unlink()
    again = jobs.forked(words, log)
    return json.dumps({"first": first, "said": said, "again": again, "found": jobs.digest(disk / "run", jobs.NOISY)})


class _Fill:
    """Fills the disk when the job has written its first metrics: a job that starts on a full disk is refused, and
    rightly."""

    def __init__(self, disk: Path, room: int) -> None:
        self.disk, self.room = disk, room

    def __call__(self) -> None:
        from alp.training import loop

        plain = loop.step

        def step(job: loop.Job, number: int) -> Any:
            if number == 2:
                size = shutil.disk_usage(self.disk).free - self.room
                with (self.disk / "ballast").open("wb") as stream:
                    stream.write(b"\0" * size)
            return plain(job, number)

        loop.step = step


@pytest.mark.parametrize("room", [0, 4096, 20_000, 200_000, 700_000] if ALL else [0])
def test_full_disk(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, room: int) -> None:
    """The job fails with one line or does without checkpoints; either way nothing is lost."""
    answer = _answer(
        jobs.in_mounts(full_disk, tmp_path / "disk", room, words(tmp_path / "disk" / "run"), tmp_path / "log")
    )
    assert answer["first"] in (0, 1), answer["said"][-2000:]
    assert "No space left on device" in answer["said"]
    assert "Traceback" not in answer["said"]
    assert answer["again"] == 0
    ledger.compare("disk full", answer["found"], whole)


def small_disk(disk: Path, words: list[str], log: Path) -> str:
    """A job on a disk that can never hold it."""
    disk.mkdir()
    if jobs.mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", disk) != 0:
        return "skip: no tmpfs can be mounted here"
    code = jobs.forked(words, log)
    return json.dumps(
        {
            "code": code,
            "said": log.read_text(encoding="utf-8"),
            "left": [path.name for path in (disk / "run").glob("*")],
        }
    )


def test_a_job_that_does_not_fit_is_refused(tmp_path: Path, words: Words, ledger: Ledger) -> None:
    answer = _answer(jobs.in_mounts(small_disk, tmp_path / "disk", words(tmp_path / "disk" / "run"), tmp_path / "log"))
    ledger.tried("disk too small")
    assert answer["code"] == 2
    assert "alp: error: run.dir: the job needs about" in answer["said"]
    assert answer["left"] == [], "nothing was begun"


def read_only(folder: Path, words: list[str], log: Path) -> str:
    """A job in a folder that becomes read-only, before it starts or in the middle; then the folder is writable
    again."""
    folder.mkdir(exist_ok=True)
    if not _cover(folder):
        return "skip: no read-only mounts here"
    refused = jobs.forked(words, log)
    said = log.read_text(encoding="utf-8")
    subprocess.run(["umount", folder], check=True)
    middle = jobs.forked(words, log, _Cover(folder))
    later = log.read_text(encoding="utf-8")[len(said) :]
    subprocess.run(["umount", folder], check=True)
    again = jobs.forked(words, log)
    found = jobs.digest(folder / "run", jobs.NOISY)
    return json.dumps(
        {"refused": refused, "said": said, "middle": middle, "later": later, "again": again, "found": found}
    )


def _cover(folder: Path) -> bool:
    """Lay a read-only mount of the folder over it: a mount with files open for writing cannot be made read-only
    itself."""
    return jobs.mount("--bind", folder, folder) == 0 and jobs.mount("-o", "remount,bind,ro", folder) == 0


class _Cover:
    """Makes the folder read-only in the middle of the training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        from alp.training import loop

        plain = loop.step

        def step(job: loop.Job, number: int) -> Any:
            if number == 3:
                assert _cover(self.folder)
            return plain(job, number)

        loop.step = step


def test_read_only_results(tmp_path: Path, words: Words, whole: Any, ledger: Ledger) -> None:
    folder = tmp_path / "results"
    answer = _answer(jobs.in_mounts(read_only, folder, words(folder / "run"), tmp_path / "log"))
    assert answer["refused"] == 2
    assert f"alp: error: run.dir: nothing can be written in {folder}: Read-only file system" in answer["said"]
    assert answer["middle"] == 1
    assert "Read-only file system; what is done is kept" in answer["later"]
    assert "Traceback" not in answer["said"] + answer["later"]
    assert answer["again"] == 0
    ledger.compare("results read-only", answer["found"], whole, count=2)


@pytest.fixture(scope="module")
def stopped(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that a signal stopped in the middle of its third rollout batch."""
    folder = tmp_path_factory.mktemp("stopped")
    assert jobs.train(words(folder / "run"), folder / "log", _StopInUpdate(5)) == TRY_AGAIN, (folder / "log").read_text(
        encoding="utf-8"
    )[-2000:]
    return folder / "run"


class _StopInUpdate:
    """SIGTERM to itself in the middle of that update."""

    def __init__(self, call: int) -> None:
        self.call = call

    def __call__(self) -> None:
        import os
        import signal

        from alp.training.update import Updater

        plain, calls = Updater.update, iter(range(1, 1000))

        def update(updater: Updater, *arguments: Any) -> Any:
            if next(calls) == self.call:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(updater, *arguments)

        Updater.update = update  # type: ignore[method-assign]


def _truncate(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def _flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "damage"), [("checkpoint truncated", _truncate), ("bit of a checkpoint flipped", _flip)]
)
@pytest.mark.parametrize("seed", range(8 if ALL else 1))
def test_damaged_checkpoints(
    tmp_path: Path,
    stopped: Path,
    words: Words,
    whole: Any,
    ledger: Ledger,
    seed: int,
    kind: str,
    damage: Callable[..., None],
) -> None:
    run, dice = tmp_path / "run", random.Random(seed)
    shutil.copytree(stopped, run)
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    damage(newest / ("checkpoint.json" if dice.random() < 0.2 else "state.pt"), dice)
    assert jobs.train(words(run), tmp_path / "log") == 0
    said = (tmp_path / "log").read_text(encoding="utf-8")
    # A flipped bit of the card may change nothing that it says but a name in the configuration; then the checkpoint is
    # still good.
    assert f"{newest} is damaged" in said or "not used" in said or "checkpoint.json" in str(newest)
    ledger.compare(kind, jobs.digest(run, jobs.NOISY), whole)


def test_checkpoints_of_another_configuration_and_of_an_older_format(
    tmp_path: Path, stopped: Path, words: Words, whole: Any, ledger: Ledger
) -> None:
    other = tmp_path / "other"
    assert jobs.train(words(other, "trainer.lr=2e-3"), tmp_path / "log", _StopInUpdate(3)) == TRY_AGAIN
    (foreign,) = sorted((other / "checkpoints").glob("step_*_update_0001_*"))
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    placed = run / "checkpoints" / foreign.name.replace("step_000001", f"step_{STEPS:06d}")  # it would be the newest
    shutil.copytree(foreign, placed)
    assert jobs.train(words(run), tmp_path / "log") == 0
    assert f"{placed} belongs to another job (trainer.lr: 0.002 there, 0.001 here): not used" in (
        tmp_path / "log"
    ).read_text(encoding="utf-8")
    ledger.compare("checkpoint of another configuration", jobs.digest(run, jobs.NOISY), whole)

    old = tmp_path / "old"
    shutil.copytree(stopped, old)
    newest = sorted((old / "checkpoints").glob("step_*"))[-1]
    card = json.loads((newest / "checkpoint.json").read_text(encoding="utf-8"))
    (newest / "checkpoint.json").write_text(json.dumps({key: card[key] for key in ("step", "identity", "sha256")}))
    assert jobs.train(words(old), tmp_path / "log") == 0
    assert f"{newest} has format 1" in (tmp_path / "log").read_text(encoding="utf-8")
    ledger.compare("checkpoint of an older format", jobs.digest(old, jobs.NOISY), whole)
