"""`alp diagnose` of a folder of many steps and `alp check`, killed, twice at once, on full disks: nothing half made
passes for whole, nothing of the user's is touched, and no fault is a traceback."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from alp.marks import read_mark
from alp.ownership import Claim
from tests.conftest import TINY_MODEL, TINY_TASK, TINY_TRAINER
from tests.diagnosis import native
from tests.faults import jobs
from tests.faults.conftest import Ledger

STEPS = 12
PAGE = "report.html"
CHECK = [*TINY_TASK, *TINY_TRAINER, *TINY_MODEL, "rollout.dtype=float32", "against", "method.clip_high=0.9"]


class Brief:
    """One figure and one table of a page, then ``then``: drawing is not what these tests are about."""

    def __init__(self, then: jobs.Fault | None = None) -> None:
        self.then = then

    def __call__(self) -> None:
        from alp.diagnosis import verb

        verb.FIGURES, verb.TABLES = verb.FIGURES[:1], verb.TABLES[:2]
        if self.then is not None:
            self.then()


class KillAtCall:
    """SIGKILL at the ``count``-th call of a function of a module."""

    def __init__(self, module: str, name: str, count: int) -> None:
        self.module, self.name, self.left = module, name, count

    def __call__(self) -> None:
        owner = importlib.import_module(self.module)
        plain = getattr(owner, self.name)

        def run(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*arguments, **named)

        setattr(owner, self.name, run)


class Temporary:
    """Where temporary files go, then ``then``."""

    def __init__(self, folder: Path, then: jobs.Fault | None = None) -> None:
        self.folder, self.then = folder, then

    def __call__(self) -> None:
        tempfile.tempdir = str(self.folder)
        if self.then is not None:
            self.then()


def _words(place: Path) -> list[str]:
    return [f"input='{place}/dumps'", f"output='{place}/out'"]


def _diagnose(place: Path, then: jobs.Fault | None = None) -> tuple[int, str]:
    """The exit code and what was said."""
    log = place / "log"
    before = log.stat().st_size if log.exists() else 0
    code = jobs.train(_words(place), log, Brief(then), verb="diagnose")
    said = log.read_text(encoding="utf-8")[before:]
    assert "Traceback" not in said
    return code, said


def _dumps(place: Path, steps: int = STEPS) -> None:
    for step in range(1, steps + 1):
        native.prime_rl(place / "dumps", step)


def _files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, those of marks and locks left out."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".alp" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _state(folder: Path) -> str:
    mark = read_mark(folder, "diagnose")
    return "none" if mark is None else str(mark["state"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of an undisturbed diagnosis of all steps."""
    place = tmp_path_factory.mktemp("whole")
    _dumps(place)
    assert _diagnose(place)[0] == 0
    return _files(place / "out")


@pytest.mark.parametrize("moment", ["reading", "writing", "installing", "page"])
def test_a_kill(tmp_path: Path, whole: dict[str, str], ledger: Ledger, moment: str) -> None:
    """Over an earlier diagnosis of fewer steps, with files of the user's beside it: until the new one is all there, the
    folder holds the old one as it was, or no page and a mark that says so."""
    _dumps(tmp_path, steps=3)
    assert _diagnose(tmp_path)[0] == 0
    out = tmp_path / "out"
    (out / "notes.txt").write_text("mine")
    (out / "figures" / "mine.png").write_bytes(b"mine")
    mine = {name: digest for name, digest in _files(out).items() if "mine" in name or name == "notes.txt"}
    old = {name: digest for name, digest in _files(out).items() if name not in mine}
    _dumps(tmp_path)
    given = _files(tmp_path / "dumps")
    kill = {
        "reading": KillAtCall("alp.diagnosis.readers.records", "read", STEPS // 2),
        "writing": KillAtCall("alp.rendering.plots", "save", 1),
        "installing": KillAtCall("alp.reproducibility", "note", 3),
        "page": KillAtCall("alp.reproducibility", "install", 2),
    }[moment]
    code, _ = _diagnose(tmp_path, kill)
    assert code == -signal.SIGKILL
    found = _files(out)
    assert mine.items() <= found.items()
    made = {name: digest for name, digest in found.items() if name not in mine}
    if moment == "reading":
        assert (made, _state(out)) == (old, "finished")
    else:
        assert _state(out) == "in progress"
        assert all(digest in (old.get(name), whole.get(name)) for name, digest in made.items())
        assert (PAGE in made) == (moment == "writing")
        assert moment != "writing" or made == old
    assert _files(tmp_path / "dumps") == given
    assert _diagnose(tmp_path)[0] == 0
    assert (_files(out), _state(out)) == (whole | mine, "finished")
    assert not (out / ".alp" / "diagnose" / "tmp").exists()
    ledger.tried("SIGKILL of a diagnosis of many steps")


def test_two_at_once(tmp_path: Path, whole: dict[str, str], ledger: Ledger) -> None:
    """Into one folder: each is whole or is refused in one line, and what is there in the end is that of one alone."""
    _dumps(tmp_path)
    processes = [jobs.start(_words(tmp_path), tmp_path / f"log{one}", Brief(), verb="diagnose") for one in (1, 2)]
    for process in processes:
        process.join(300)
    said = [(tmp_path / f"log{one}").read_text(encoding="utf-8") for one in (1, 2)]
    for process, text in zip(processes, said, strict=True):
        assert process.exitcode in (0, 2), text
        assert process.exitcode == 0 or "another job is running" in text
        assert "Traceback" not in text
    assert 0 in [process.exitcode for process in processes]
    assert (_files(tmp_path / "out"), _state(tmp_path / "out")) == (whole, "finished")
    ledger.tried("two diagnoses into one folder")


def test_one_that_another_holds_is_refused(tmp_path: Path, whole: dict[str, str]) -> None:
    """However late it comes to the folder."""
    _dumps(tmp_path)
    assert _diagnose(tmp_path)[0] == 0
    with Claim(tmp_path / "out", "diagnose", outputs=[PAGE], key="diagnose: output"):
        code, said = _diagnose(tmp_path)
    assert code == 2
    assert f"another job is running in {tmp_path / 'out'}: alp diagnose, process {os.getpid()}" in said
    assert _files(tmp_path / "out") == whole


def full_disk(disk: Path, room: int) -> str:
    """A diagnosis onto a disk with ``room`` bytes; then there is more."""
    disk.mkdir()
    if jobs.mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", disk) != 0:
        return "skip: no tmpfs can be mounted here"
    _dumps(disk)
    (disk / "out").mkdir()
    with (disk / "ballast").open("wb") as stream:
        stream.write(b"\0" * (shutil.disk_usage(disk).free - room))
    log = disk.parent / "log"
    first = jobs.forked(_words(disk), log, Brief(), verb="diagnose")
    said, left = log.read_text(encoding="utf-8"), list(_files(disk / "out"))
    (disk / "ballast").unlink()
    again = jobs.forked(_words(disk), log, Brief(), verb="diagnose")
    return json.dumps({"first": first, "said": said, "left": left, "again": again, "found": _files(disk / "out")})


@pytest.mark.parametrize("room", [0, 40_000])
def test_a_full_disk(tmp_path: Path, whole: dict[str, str], ledger: Ledger, room: int) -> None:
    """One line, nothing that looks like a result, and the same command gets through once there is room."""
    answer = _answer(jobs.in_mounts(full_disk, tmp_path / "disk", room))
    assert answer["first"] in (1, 2), answer["said"]
    assert "No space left on device" in answer["said"]
    assert "Traceback" not in answer["said"]
    assert answer["left"] == []
    assert answer["again"] == 0
    assert answer["found"] == whole
    ledger.tried("disk full under a diagnosis")


def _answer(answer: str) -> dict[str, Any]:
    if answer.startswith("skip: "):
        pytest.skip(answer.removeprefix("skip: "))
    found: dict[str, Any] = json.loads(answer)
    return found


# ---- alp check -------------------------------------------------------------------------------------------------------


def _check(place: Path, log: str, then: jobs.Fault | None = None) -> tuple[int, str]:
    """The exit code and all that was said, with temporary files in ``place``/tmp."""
    (place / "tmp").mkdir(parents=True, exist_ok=True)
    code = jobs.train(CHECK, place / log, Temporary(place / "tmp", then), verb="check")
    said = (place / log).read_text(encoding="utf-8")
    assert "Traceback" not in said
    return code, said


def _verdict(said: str) -> list[str]:
    """What stands on standard output: its lines behind the verdict."""
    lines = said.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith(("active: ", "no difference: "))]
    return lines[first:]


def test_a_check_killed_and_two_at_once(tmp_path: Path, ledger: Ledger) -> None:
    """Nothing is written but temporary files of its own: the next one is not disturbed by what a killed one left."""
    code, _ = _check(tmp_path, "killed", KillAtCall("alp.diagnosis.check_updates", "scored", 3))
    assert code == -signal.SIGKILL
    left = _files(tmp_path / "tmp")
    assert all(name.startswith("alp-check-") for name in left)
    (tmp_path / "tmp").mkdir(exist_ok=True)
    processes = [
        jobs.start(CHECK, tmp_path / name, Temporary(tmp_path / "tmp"), verb="check") for name in ("one", "other")
    ]
    for process in processes:
        process.join(300)
    verdicts = [_verdict((tmp_path / name).read_text(encoding="utf-8")) for name in ("one", "other")]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0]
    assert [process.exitcode for process in processes] in ([0, 0], [1, 1])
    assert _files(tmp_path / "tmp") == left
    ledger.tried("SIGKILL of a check", 1)


def no_room(place: Path, room: int) -> str:
    """A check whose temporary files have ``room`` bytes."""
    (place / "tmp").mkdir(parents=True)
    if jobs.mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", place / "tmp") != 0:
        return "skip: no tmpfs can be mounted here"
    with (place / "tmp" / "ballast").open("wb") as stream:
        stream.write(b"\0" * (shutil.disk_usage(place / "tmp").free - room))
    code = jobs.forked(CHECK, place / "log", Temporary(place / "tmp"), verb="check")
    return json.dumps(
        {
            "code": code,
            "said": (place / "log").read_text(encoding="utf-8"),
            "left": [path.name for path in (place / "tmp").iterdir()],
        }
    )


@pytest.mark.parametrize("room", [0, 20_000])
def test_a_check_on_a_full_disk(tmp_path: Path, ledger: Ledger, room: int) -> None:
    """Exit code 2: 1 would say that the option changes nothing."""
    answer = _answer(jobs.in_mounts(no_room, tmp_path, room))
    assert answer["code"] == 2, answer["said"]
    assert "alp: error: check: no " in answer["said"]
    assert "(TMPDIR)" in answer["said"]
    assert "Traceback" not in answer["said"]
    assert answer["left"] == ["ballast"]
    ledger.tried("disk full under a check")


def test_a_check_without_a_folder_for_temporary_files(tmp_path: Path, ledger: Ledger) -> None:
    code = jobs.train(CHECK, tmp_path / "log", Temporary(tmp_path / "gone"), verb="check")
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert code == 2
    assert "alp: error: check: no folder for temporary files (TMPDIR): " in said
    assert "Traceback" not in said
    ledger.tried("no folder for temporary files")
