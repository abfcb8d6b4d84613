"""Jobs that hurt their process, and a grader that some answers hurt."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def eat() -> int:
    """More memory than any limit of the tests."""
    return len(bytearray(12 * 1024**3))


def leave() -> None:
    """Die without a word."""
    os.kill(os.getpid(), 9)


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


def overflow() -> None:
    """The stack of C."""
    ctypes.string_at(0)


def worker() -> None:
    """End the worker and not the fork alone."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def recurse() -> None:
    recurse()


def full() -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def babble() -> str:
    os._exit(0)


def answer(response: str, gold: str, style: str, prompt: str | None) -> Any:
    """The real grader, hurt by the act that the question names: ``leave``, or ``once leave <file>`` while there is no
    file."""
    from alp.tasks import algebra

    words = (prompt or "").split()
    if words[:1] == ["once"]:
        if not Path(words[2]).exists():
            Path(words[2]).touch()
            ACTS[words[1]]()
    elif words and words[0] in ACTS:
        ACTS[words[0]]()
    return algebra.grade(response, gold, style, None)


def warm(job: str, _: list[Any]) -> None:
    """In the worker, so that no fork imports the grader anew."""
    if job == "grade":
        from alp.tasks import algebra

        algebra.warm()


def doomed(*_: str) -> None:
    """Every fork is killed, whatever it is asked."""
    leave()


def mistaken(*_: str) -> Any:
    """A grader that finds everything right."""
    return True, None, ""


ACTS: dict[str, Callable[[], Any]] = {
    "eat": eat,
    "leave": leave,
    "spin": spin,
    "overflow": overflow,
    "worker": worker,
    "recurse": recurse,
    "full": full,
    "babble": babble,
}
JOBS = ACTS | {"sleep": time.sleep, "grade": answer, "doomed": doomed, "mistaken": mistaken}
