"""What surrounds a job: another job in its folder, a reader that does not read, a clock that is set back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults import jobs
from tests.faults.conftest import ALL, Ledger, Words


class Slow:
    """Every step takes so much longer."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> None:
        from alp.training import loop

        plain = loop.step

        def step(job: loop.Job, number: int) -> Any:
            time.sleep(self.seconds)
            return plain(job, number)

        loop.step = step


def _wait_for(path: Path, process: Any) -> None:
    deadline = time.monotonic() + 60
    while not path.is_file():
        assert process.exitcode is None, "the job ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_second_job_of_a_folder_is_refused(tmp_path: Path, words: Words, whole: Any, ledger: Ledger) -> None:
    run, logs = tmp_path / "run", [tmp_path / "first", tmp_path / "second"]
    first = jobs.start(words(run), logs[0], Slow(1.0))
    _wait_for(run / "active.json", first)
    assert jobs.train(words(run), logs[1]) == 2
    said = logs[1].read_text(encoding="utf-8")
    assert f"alp: error: run.dir: another job is running in {run}: alp train, process {first.pid} on " in said
    assert "Traceback" not in said
    first.join(120)
    assert first.exitcode == 0
    ledger.compare("two jobs in one folder", jobs.digest(run, jobs.NOISY), whole)


@pytest.mark.long
def test_a_dead_job_s_lock_blocks_nobody(tmp_path: Path, words: Words, whole: Any, ledger: Ledger) -> None:
    run = tmp_path / "run"
    first = jobs.start(words(run), tmp_path / "log", Slow(1.0))
    _wait_for(run / "active.json", first)
    jobs.kill_later(first, 0.0, signal.SIGKILL)
    assert (run / ".alp" / "train" / "lock").is_file()
    assert jobs.train(words(run), tmp_path / "log") == 0
    ledger.compare("lock of a dead job", jobs.digest(run, jobs.NOISY), whole)


@pytest.mark.long
def test_an_orphan_s_folder_is_waited_for(tmp_path: Path, words: Words, whole: Any, ledger: Ledger) -> None:
    """A workflow was killed and started again: its orphaned job stops at its next update, and the new job takes over
    from there."""
    run = tmp_path / "run"
    first = jobs.start(words(run), tmp_path / "log", Slow(1.0))
    _wait_for(run / "active.json", first)
    second = jobs.start(words(run), tmp_path / "log2", InWorkflow())
    jobs.kill_later(first, 1.5, signal.SIGTERM)
    second.join(120)
    assert second.exitcode == 0, (tmp_path / "log2").read_text(encoding="utf-8")[-2000:]
    assert "continuing" in (tmp_path / "log2").read_text(encoding="utf-8")
    ledger.compare("orphan of a killed workflow", jobs.digest(run, jobs.NOISY), whole)


class InWorkflow:
    """As in a job that a rule started."""

    def __call__(self) -> None:
        os.environ |= {"ALP_PARENT": "0", "ALP_SHELL": "0"}


class Pipe:
    """Standard output and error are a pipe: full and never read, or without a reader."""

    def __init__(self, full: bool) -> None:
        self.full = full

    def __call__(self) -> None:
        reading, writing = os.pipe()
        if self.full:
            os.set_blocking(writing, False)
            try:
                while True:
                    os.write(writing, b"x")
            except BlockingIOError:
                os.set_blocking(writing, True)
        else:
            os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)


@pytest.mark.parametrize("full", [True, False], ids=["full", "broken"])
def test_a_pipe_that_nobody_reads(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, full: bool) -> None:
    started = time.monotonic()
    assert jobs.train(words(tmp_path / "run"), None, Pipe(full)) == 0
    assert time.monotonic() - started < 120
    ledger.compare(
        "stdout and stderr a full pipe" if full else "stdout and stderr a broken pipe",
        jobs.digest(tmp_path / "run", jobs.NOISY),
        whole,
    )


def test_the_last_line_still_reaches_a_reader(tmp_path: Path, words: Words) -> None:
    """The stream that cannot block must not drop what is read."""
    command = [
        sys.executable,
        "-c",
        "from alp.lifetime import unblock; import sys; s = unblock(sys.stdout); print('é' * 40_000, 'end', file=s)",
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout == "é" * 40_000 + " end\n"


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that sets the clock back for the process that loads it (what libfaketime does)."""
    library = tmp_path_factory.mktemp("shim") / "clock.so"
    source = Path(__file__).parent / "clock.c"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler here to build the clock that goes back")
    return library


@pytest.mark.long
def test_clock_set_back(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, shim: Path) -> None:
    """By a day, in the middle of the training, tracking included."""
    run = tmp_path / "run"
    moment = run / "active.json"  # written before the first step
    environment = os.environ | {"LD_PRELOAD": str(shim), "CLOCK_BACK_WHEN": str(moment)}
    chosen = words(run, f"run.tracking='sqlite:///{tmp_path}/mlflow.db'" if ALL else "run.tracking=null")
    done = subprocess.run(
        [sys.executable, "-m", "alp.cli", "train", *chosen], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MLflow is behind" not in done.stderr
    check = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"], env=environment, capture_output=True, text=True
    )
    assert time.time() - float(check.stdout) > 80_000, "the clock did go back"
    ledger.compare("clock set back", jobs.digest(run, jobs.NOISY), whole)
