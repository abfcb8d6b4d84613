"""Jobs killed again and again, anywhere, until they get through: their results are those of a job that nothing
disturbed."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alp.errors import TRY_AGAIN
from tests.faults import jobs
from tests.faults.conftest import ALL, Ledger, Words

_ROUND = 8 if ALL else 2  # kills of one job before it is left alone to finish


def _attempt_until_done(
    folder: Path, words: Words, dice: random.Random, attempt: Callable[[list[str], Path], int]
) -> list[int]:
    """Disturbed attempts, then one in peace; returns the exit codes of the disturbed ones that did not get through."""
    run, log, codes = folder / "run", folder / "log", []
    while len(codes) < _ROUND:
        code = attempt(words(run), log)
        if code == 0:
            break
        codes.append(code)
        jobs.as_the_workflow_does(run, dice)
    else:
        assert jobs.train(words(run), log) == 0, log.read_text(encoding="utf-8")[-2000:]
    assert [path.name for path in run.glob(".*")] == [".alp"]
    assert not (run / ".alp" / "train" / "tmp").exists(), "nor temporary files behind the last attempt"
    assert "is damaged" not in log.read_text(encoding="utf-8"), (
        "a kill never leaves half a checkpoint under its final name"
    )
    return codes


def _kill_rounds(
    wanted: int,
    kind: str,
    tmp_path: Path,
    words: Words,
    whole: Any,
    ledger: Ledger,
    attempt: Callable[[random.Random], Callable[..., int]],
) -> list[int]:
    """Rounds until ``wanted`` attempts were cut off; returns all their exit codes."""
    dice, codes, rounds = random.Random(kind), [], 0
    while len(codes) < wanted:
        folder = tmp_path / str(rounds)
        folder.mkdir()
        found = _attempt_until_done(folder, words, dice, attempt(dice))
        ledger.compare(kind, jobs.digest(folder / "run", jobs.NOISY), whole, count=len(found))
        codes += found
        rounds += 1
        assert rounds < 10 * wanted, "the kills come too late to meet anything"
    return codes


def test_sigkill_at_random_moments(tmp_path: Path, words: Words, whole: Any, ledger: Ledger, seconds: float) -> None:
    def attempt(dice: random.Random) -> Callable[[list[str], Path], int]:
        def run(chosen: list[str], log: Path) -> int:
            process = jobs.start(chosen, log)
            jobs.kill_later(process, dice.uniform(0.1, 1.0) * seconds, signal.SIGKILL)
            assert process.exitcode is not None
            return process.exitcode

        return run

    codes = _kill_rounds(40 if ALL else 2, "SIGKILL at a random moment", tmp_path, words, whole, ledger, attempt)
    assert set(codes) == {-signal.SIGKILL}


@pytest.mark.long
def test_sigkill_inside_writes(tmp_path: Path, words: Words, whole: Any, ledger: Ledger) -> None:
    """At a random line of the code that writes checkpoints, records and the model."""

    def attempt(dice: random.Random) -> Callable[[list[str], Path], int]:
        return lambda chosen, log: jobs.train(chosen, log, jobs.KillAtLine(dice.randrange(1, 400 if ALL else 200)))

    codes = _kill_rounds(
        40 if ALL else 2,
        "SIGKILL inside a write of checkpoint, record or model",
        tmp_path,
        words,
        whole,
        ledger,
        attempt,
    )
    assert set(codes) == {-signal.SIGKILL}


@pytest.mark.long
def test_killed_at_a_random_byte_of_a_write(tmp_path: Path, words: Words, whole: Any, ledger: Ledger) -> None:
    """Half a file is what a kill can leave at the worst."""

    def attempt(dice: random.Random) -> Callable[[list[str], Path], int]:
        return lambda chosen, log: jobs.train(chosen, log, jobs.KillAtByte(int(10 ** dice.uniform(3.5, 5.9))))

    codes = _kill_rounds(
        24 if ALL else 2, "killed at a random byte of a write", tmp_path, words, whole, ledger, attempt
    )
    assert set(codes) == {-signal.SIGXFSZ}


@pytest.mark.long
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP] if ALL else [signal.SIGTERM]
)
def test_signals_that_ask(
    tmp_path: Path, words: Words, whole: Any, ledger: Ledger, seconds: float, number: signal.Signals
) -> None:
    def attempt(dice: random.Random) -> Callable[[list[str], Path], int]:
        def run(chosen: list[str], log: Path) -> int:
            process = jobs.start(chosen, log)
            jobs.kill_later(process, dice.uniform(0.5, 1.0) * seconds, number)
            assert process.exitcode is not None
            return process.exitcode

        return run

    codes = _kill_rounds(8 if ALL else 2, number.name, tmp_path, words, whole, ledger, attempt)
    # Before the job listens (it is still importing, or reading its model) a signal ends the process as it ends any
    # other.
    assert set(codes) <= {TRY_AGAIN, -number, 130}
    assert TRY_AGAIN in codes
