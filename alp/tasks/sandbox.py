"""Programs that nobody has read, contained: no network, no files but a scratch folder, no other process, and limits.

::

    with Sandbox(workers=2) as box:
        result = box.run("print(6 * 7)", timeout=3.0)

A result says what ``python -c`` would have said, and which limit the program met. It does not depend on which worker
ran the program, on the programs before it or beside it: hash seed and random numbers are fixed, CPU time decides, and
what may be the machine's doing is tried again alone. What is defended against what stands in ``docs/sandbox.md``.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from types import TracebackType

from alp.errors import SandboxError, SandboxUnavailable, UserError
from alp.tasks.pool import alone
from alp.tasks.sandbox_process import Ended, GoneError, Worker, find_bubblewrap

__all__ = ["Limits", "Result", "Sandbox", "SandboxError", "SandboxUnavailable"]

_KIBI = 1024
_MEBI = 1024 * _KIBI
_SMALLEST = {
    "memory_bytes": 16 * _MEBI,
    "scratch_bytes": 64 * _KIBI,
    "scratch_files": 16,
    "processes": 1,
    "file_bytes": 4 * _KIBI,
    "output_bytes": 1,
}
_LARGEST = {"processes": 4096, "output_bytes": 256 * _MEBI}
_TRIES = 3  # of a worker that goes
_LONGEST_TIMEOUT = 3600.0
# How Python ends where a limit shows as an error, in the last line of stderr; without a traceback it is a source that
# Python cannot read.
_ERRORS = (
    ("memory", re.compile(r"(?:\w+\.)*_?(?:Array)?MemoryError\b")),
    ("file", re.compile(r"OSError: \[Errno 27\] ")),
    ("scratch", re.compile(r"OSError: \[Errno 28\] ")),
    ("processes", re.compile(r"(?:BlockingIOError: \[Errno 11\] Resource|RuntimeError: can't start new thread)")),
)


@dataclass(frozen=True)
class Limits:
    """What one program may use. Raises UserError for a value that makes no sense."""

    memory_bytes: int = 512 * _MEBI
    """Of each process beyond the loaded interpreter's, in address space; of all together, in memory."""
    processes: int = 16
    """Processes and threads at a time, the first included."""
    file_bytes: int = 16 * _MEBI
    """Of one file."""
    scratch_bytes: int = 32 * _MEBI
    """Of all files in the scratch folder (/tmp, the program's working folder), which lies in memory."""
    scratch_files: int = 1024
    """Files and folders there."""
    output_bytes: int = _MEBI
    """Of stdout, and of stderr; the program ends when it writes more, and so many first bytes of it are kept."""
    wall_factor: float = 3.0
    """Wall time over CPU time: ``timeout`` seconds of CPU time may take ``wall_factor * timeout`` seconds, at least
    ``least_wall_seconds``."""
    least_wall_seconds: float = 2.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            name = f"the sandbox's limits: {each.name}"
            if isinstance(each.default, float):
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
                    raise UserError(f"{name}: {value!r} is no positive number (at most 1000000)")
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"{name}: {value!r} is no whole number")
            least, most = _SMALLEST[each.name], _LARGEST.get(each.name, 2**40)
            if not least <= value <= most:
                raise UserError(f"{name}: {value} is out of range; the nearest is {min(max(value, least), most)}")
        if self.wall_factor < 1:
            raise UserError(f"the sandbox's limits: wall_factor: {self.wall_factor} is less than 1: CPU time decides")

    def wall_seconds(self, timeout: float) -> float:
        """What ``timeout`` seconds of CPU time may take."""
        return max(self.wall_factor * timeout, self.least_wall_seconds)


@dataclass(frozen=True)
class Result:
    """How a program ended.

    ``limit``: ``cpu`` or ``wall`` (``timed_out``), ``memory``, ``output``: the program was ended; ``memory``, ``file``,
    ``scratch``, ``processes``: it ended by the error that Python makes of the limit. A program that catches such an
    error goes on, and has met no limit. ``exit_code``: as Python's ``subprocess`` says it, negative for a signal.
    ``stdout``, ``stderr``: bytes that are no UTF-8 are replaced.
    """

    stdout: str
    stderr: str
    exit_code: int
    timed_out: bool
    limit: str | None
    seconds: float = field(compare=False)  # of wall time, without waiting for a worker


class Sandbox:
    """A pool of ``workers`` sandboxes. :meth:`run` may be called from any thread; more calls than workers wait.

    ``libraries``: installed packages (top-level names, with all that they import) that programs find loaded. ``counts``
    says how many programs were run (``programs``), how many again alone (``again``) and how many of those were ended by
    the clock of the wall even then (``wall``), and how many workers were lost (``lost``).

    Raises SandboxUnavailable where this machine cannot contain programs, UserError for what makes no sense.
    """

    def __init__(self, workers: int = 2, limits: Limits | None = None, libraries: tuple[str, ...] = ()) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 256:
            raise UserError(f"the sandbox's workers: {workers!r} is no whole number from 1 to 256")
        find_bubblewrap()
        self.limits = limits or Limits()
        config = {name: getattr(self.limits, name) for name in _SMALLEST}
        self.workers = [Worker(config, libraries) for _ in range(workers)]
        self.counts: Counter[str] = Counter()
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._gathering, self._counting = threading.Lock(), threading.Lock()
        # Workers end with the thread that started them, so that one lives as long as the pool.
        self._starter: ThreadPoolExecutor | None = ThreadPoolExecutor(1, thread_name_prefix="sandbox")
        _OPEN.add(self)
        try:
            for worker in self.workers:
                self._start(worker)
        except BaseException:
            self.close()
            raise
        for worker in self.workers:
            self._idle.put(worker)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, code: str, stdin: str = "", timeout: float = 3.0) -> Result:
        """Run a program as ``python -c`` would, with ``timeout`` seconds of CPU time for all of its processes.

        Raises SandboxError when no fresh worker can run it, UserError for a timeout that makes no sense.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _LONGEST_TIMEOUT:
            raise UserError(f"the sandbox's timeout: {timeout!r} is no number of seconds (at most {_LONGEST_TIMEOUT})")
        request = (code.encode("utf-8", "surrogatepass"), stdin.encode("utf-8", "surrogatepass"), float(timeout))
        worker = self._idle.get()
        try:
            self._count("programs")
            ended = self._on(worker, *request)
        finally:
            self._idle.put(worker)
        if _settled(ended):
            return _result(ended)
        with alone(self._idle, len(self.workers), self._gathering) as worker:
            self._count("again")
            ended = self._on(worker, *request)
        if ended.ended_by == "wall":
            self._count("wall")
        return _result(ended)

    def _on(self, worker: Worker, code: bytes, stdin: bytes, timeout: float) -> Ended:
        """On that worker, or its successor. Raises SandboxError."""
        why = ""
        for _ in range(_TRIES):
            try:
                if not worker.running:
                    self._start(worker)
                return worker.run(code, stdin, timeout, self.limits.wall_seconds(timeout))
            except GoneError as error:
                self._count("lost")
                why = str(error)
            except SandboxUnavailable as error:
                why = str(error)
        raise SandboxError(f"the sandbox is broken: {why} ({_TRIES} tries)")

    def _start(self, worker: Worker) -> None:
        if self._starter is None:
            raise SandboxError("the sandbox is closed")
        self._starter.submit(worker.start).result()

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1

    def close(self) -> None:
        """End the workers, and wait until nothing of them is left."""
        starter, self._starter = self._starter, None
        for worker in self.workers:
            worker.stop()
        if starter is not None:
            starter.shutdown(wait=True)

    def _forget(self) -> None:
        self._starter = None
        for worker in self.workers:
            worker.forget()


def _settled(ended: Ended) -> bool:
    """Whether nothing of how it ended may be the machine's doing: a clock, or the kernel short of memory."""
    return ended.ended_by != "wall" and not (ended.ended_by == "itself" and _exit_code(ended) == -9)


def _exit_code(ended: Ended) -> int:
    return os.waitstatus_to_exitcode(ended.status)


def _result(ended: Ended) -> Result:
    stdout, stderr = (text.decode("utf-8", "replace") for text in (ended.stdout, ended.stderr))
    limit = None if ended.ended_by == "itself" else ended.ended_by
    if limit is None and _exit_code(ended) == 1 and "Traceback" in stderr:
        last = stderr.rstrip("\n").rpartition("\n")[2]
        limit = next((name for name, error in _ERRORS if error.match(last)), None)
    return Result(stdout, stderr, _exit_code(ended), limit in ("cpu", "wall"), limit, ended.seconds)


_OPEN: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _after_fork() -> None:
    for box in list(_OPEN):
        box._forget()


os.register_at_fork(after_in_child=_after_fork)
