"""Training jobs as processes of their own that start warm: a fork server has imported torch, so an attempt costs a
second, not ten.

The functions below run inside such a process: real signals, real limits and real mounts, on the command line ``alp
train``.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import pkgutil
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from tests.signals import heard

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["alp.training.loop", "alp.cli", "alp.evaluation.evaluate", "alp.reporting.report", "alp.reporting.draw"]
)
RESULTS = (
    "metrics.jsonl",
    "updates.jsonl",
    "trajectories.jsonl",
    "active.json",
    "provenance.json",
    "model/model.safetensors",
    "model/config.json",
)
NOISY = (*RESULTS, "model/perturbation.json")
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_WRITERS = (
    "alp.training.checkpoint save",
    "alp.training.checkpoint _write",
    "alp.training.records.Records append",
    "alp.training.job write_text",
    "alp.training.job write_json",
    "alp.models save_model",
    "alp.ownership.Claim __enter__",
    "alp.ownership.Claim begin",
    "alp.ownership.Claim note",
    "alp.ownership.Claim forget",
    "alp.ownership.Claim finish",
    "alp.ownership.Claim __exit__",
    "alp.reproducibility write_file",
    "alp.models install",
)
Fault = Callable[[], None]


def digest(folder: Path, names: tuple[str, ...] = RESULTS) -> dict[str, str | None]:
    """SHA-256 of every result; None for one that is missing."""
    paths = {name: folder / name for name in names}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None for name, path in paths.items()
    }


def _to_log(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _run(words: list[str], log: Path | None, arm: Fault | None, verb: str = "train") -> None:
    if log is not None:
        _to_log(log)
    from alp.cli import main

    if arm is not None:
        arm()
    sys.argv = ["alp", verb, *words]
    with heard():
        sys.exit(main())


def start(words: list[str], log: Path | None, arm: Fault | None = None, verb: str = "train") -> BaseProcess:
    """``alp <verb> <words>`` under way; ``arm`` (picklable) runs first, inside it."""
    process = CONTEXT.Process(target=_run, args=(words, log, arm, verb))
    process.start()
    return process


def train(words: list[str], log: Path | None, arm: Fault | None = None, verb: str = "train") -> int:
    """The exit code of ``alp <verb> <words>``; minus the number of the signal that ended it."""
    process = start(words, log, arm, verb)
    process.join(300)
    assert process.exitcode is not None, "the job hangs"
    return process.exitcode


class InEnvironment:
    """Variables of the job's own (the fork server keeps those it was started with), then ``then``."""

    def __init__(self, environment: dict[str, str], then: Fault | None = None) -> None:
        self.environment, self.then = environment, then

    def __call__(self) -> None:
        os.environ.update(self.environment)
        if self.then is not None:
            self.then()


class KillAtLine:
    """SIGKILL at the ``count``-th line that runs inside the functions that write: checkpoints, records, the model."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> None:
        for entry in _WRITERS:
            place, name = entry.split()
            owner = pkgutil.resolve_name(place)
            setattr(owner, name, self._traced(getattr(owner, name)))

    def _traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` under a trace, which everything else is spared: it is slow."""

        def run(*arguments: Any, **named: Any) -> Any:
            sys.settrace(self._enter)
            try:
                return function(*arguments, **named)
            finally:
                sys.settrace(None)

        return run

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if "/alp/" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.left -= 1
        if self.left <= 0:
            self._end()
        return self._line

    def _end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class CountLines(KillAtLine):
    """Writes how many such lines there are to a file, and ends nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(0)
        self.path = path

    def _end(self) -> None:
        self.path.write_text(str(-self.left + 1))


class KillAtByte:
    """The kernel ends the process in the middle of a write, when any file grows beyond ``size`` bytes; half of it
    stays."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def kill_later(process: BaseProcess, seconds: float, number: signal.Signals) -> None:
    """Send the signal after ``seconds``, unless the process is done by then."""
    process.join(seconds)
    if process.exitcode is None and process.pid is not None:
        os.kill(process.pid, number)
    process.join(300)
    assert process.exitcode is not None, "the job hangs"


def in_mounts(script: Callable[..., str], *arguments: Any) -> str:
    """Run ``script`` in a mount namespace of its own, where root's disks can be full or read-only; returns what it
    returns."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_in_mounts, args=(sender, script, arguments))
    process.start()
    sender.close()
    try:
        answer: str = receiver.recv()
    except EOFError:
        answer = "the process of the namespace died"
    process.join(300)
    return answer


def _in_mounts(sender: Any, script: Callable[..., str], arguments: tuple[Any, ...]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) != 0 or mount("--make-rprivate", "/") != 0:
        sender.send(f"skip: no mount namespaces here ({os.strerror(ctypes.get_errno())})")
        return
    try:
        sender.send(script(*arguments))
    except BaseException as error:
        sender.send(f"{type(error).__name__}: {error}")


def mount(*words: str | Path) -> int:
    """``mount`` and its exit code."""
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode


def forked(words: list[str], log: Path, arm: Fault | None = None, verb: str = "train") -> int:
    """Like ``train``, for a script inside a namespace: the job shares it."""
    pid = os.fork()
    if pid == 0:
        try:
            _run(words, log, arm, verb)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        except BaseException:
            os._exit(70)
        os._exit(71)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise TimeoutError("the job hangs")


def as_the_workflow_does(folder: Path, dice: random.Random) -> None:
    """Before another attempt Snakemake deletes the outputs; whoever starts a job by hand does not."""
    if dice.random() < 0.5:
        for name in NOISY:
            (folder / name).unlink(missing_ok=True)
