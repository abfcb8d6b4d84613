"""Work on untrusted text in other processes: each request bounded in time and memory, callable from any thread, one pool per process.

Workers are plain subprocesses that know nothing of torch or CUDA, started when first needed and gone with the process that started them
(their input ends). A worker that does not answer in time is killed, and only that request is lost.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # run in workers alone, but their source is part of what a verdict follows from (alp.reproducibility.code_hash)
    from alp.tasks import bounded_worker  # noqa: F401

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Limits:
    """Of one request: CPU seconds and bytes of address space decide; ``wall_seconds`` only ends what makes no progress at all."""

    cpu_seconds: float = 5.0
    memory_bytes: int = 2 * 1024**3
    wall_seconds: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """``value``, or ``fault``: ``time``, ``memory``, ``depth``, ``died`` or an exception's text."""

    value: Any = None
    fault: str | None = None


class Pool:
    """At most ``size`` workers. Results come back in the order of the requests."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size or max(1, min(8, len(os.sched_getaffinity(0))))
        self.faults: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(self.size):
            self._idle.put(_Worker())

    def run(self, module: str, job: str, arguments: Sequence[Any], limits: Limits = Limits()) -> Outcome:
        """``JOBS[job](*arguments)`` of ``module`` in a worker; arguments and value are what JSON can carry."""
        worker = self._idle.get()
        try:
            outcome = worker.run(module, job, arguments, limits)
        finally:
            self._idle.put(worker)
        if outcome.fault is not None:
            with self._lock:
                self.faults[outcome.fault.partition(":")[0]] += 1
        return outcome

    def map(self, module: str, job: str, requests: Sequence[Sequence[Any]], limits: Limits = Limits()) -> list[Outcome]:
        """``run`` of every request, spread over the workers."""
        if len(requests) <= 1 or self.size == 1:
            return [self.run(module, job, arguments, limits) for arguments in requests]
        with ThreadPoolExecutor(min(self.size, len(requests))) as threads:
            return list(threads.map(lambda arguments: self.run(module, job, arguments, limits), requests))

    def close(self) -> None:
        """End the idle workers; the next request starts new ones."""
        with contextlib.suppress(queue.Empty):
            workers = [self._idle.get_nowait() for _ in range(self.size)]
            for worker in workers:
                worker.stop()
                self._idle.put(worker)


class _Worker:
    """One subprocess, started at the first request and again after a death."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, module: str, job: str, arguments: Sequence[Any], limits: Limits) -> Outcome:
        request: dict[str, Any] = {"module": module, "job": job, "arguments": list(arguments)}
        request |= {"cpu_seconds": limits.cpu_seconds, "memory_bytes": limits.memory_bytes}
        line = json.dumps(request).encode() + b"\n"
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            answer = self._exchange(line, monotonic() + limits.wall_seconds)
        except TimeoutError:
            self.stop()
            return Outcome(fault="time")
        except (OSError, EOFError):
            self.stop()
            return Outcome(fault="died")
        except BaseException:  # an interrupt in between: the answer still to come belongs to nobody
            self.stop()
            raise
        return Outcome(**json.loads(answer))

    def _start(self) -> None:
        # A fixed hash seed: the order of sets is part of what sympy and some generators of problems do.
        environment = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "alp.tasks.bounded_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._read(int.from_bytes(self._read(8, deadline), "little"), deadline)

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        found = bytearray()
        handle = self._process.stdout.fileno()
        while len(found) < count:
            if not select.select([handle], [], [], max(0.0, deadline - monotonic()))[0]:
                raise TimeoutError
            piece = os.read(handle, min(65536, count - len(found)))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)

    def stop(self) -> None:
        """Kill the worker and the fork it may have."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, 9)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()
        self._process.wait()
        self._process = None

    def forget(self) -> None:
        """In a fork of this process: the worker belongs to the parent."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                os.close(stream.fileno())
            self._process.returncode = 0
            self._process = None


_POOL: Pool | None = None
_POOL_LOCK = threading.Lock()


def pool() -> Pool:
    """The pool of this process."""
    global _POOL
    with _POOL_LOCK:
        if _POOL is None:
            _POOL = Pool()
            atexit.register(_POOL.close)
        return _POOL


def _after_fork() -> None:
    global _POOL, _POOL_LOCK
    _POOL, _POOL_LOCK = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
