"""Work on untrusted text in other processes: each request bounded in time and memory, callable from any thread, one
pool per process.

Workers are plain subprocesses that know nothing of torch or CUDA (:mod:`alp.tasks.grading_process`), started when first
needed and gone with the process that started them. What a request does to its own process is an outcome; a pool that
cannot work is a GraderError.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from alp.errors import GraderError
from alp.tasks.grading_process import Limits, Outcome, Worker
from alp.tasks.pool import alone

__all__ = ["Limits", "Outcome", "Pool", "Work", "pool"]

LIMITS = Limits()
_AGAIN = ("time", "memory", "died", "unfit")  # what may be the machine's doing


@dataclass(frozen=True)
class Work:
    """A job of a module, with requests whose values are known: (job, arguments, value)."""

    module: str
    job: str
    known: Sequence[tuple[str, Sequence[Any], Any]]


class Pool:
    """At most ``size`` workers. Results come back in the order of the requests."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size or max(1, min(8, len(os.sched_getaffinity(0))))
        self.workers = [Worker() for _ in range(self.size)]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._gathering = threading.Lock()
        for worker in self.workers:
            self._idle.put(worker)

    def run(self, module: str, job: str, arguments: Sequence[Any], limits: Limits = LIMITS) -> Outcome:
        """``JOBS[job](*arguments)`` of ``module`` in a worker, tried once; arguments and value are what JSON can
        carry."""
        worker = self._idle.get()
        worker.fresh = worker.proven = False
        try:
            return worker.run(module, job, arguments, limits)
        finally:
            self._idle.put(worker)

    def settle(
        self, work: Work, requests: Sequence[Sequence[Any]], limits: Limits = LIMITS
    ) -> list[tuple[Outcome, bool]]:
        """What becomes of every request, and whether that took a second try.

        A request that met a limit, or whose process died, is tried again alone, with wider limits, in a fresh worker
        that has given the known values before. So a fault of the machine becomes no result: raises GraderError when no
        fresh worker gives the known values.
        """
        outcomes = self._once(work, requests, limits)
        return [
            (outcome, False) if outcome.fault not in _AGAIN else (self._again(work, arguments, limits.wider()), True)
            for arguments, outcome in zip(requests, outcomes, strict=True)
        ]

    def _once(self, work: Work, requests: Sequence[Sequence[Any]], limits: Limits) -> list[Outcome]:
        """Every request, spread over the workers. Where a worker does not start, the rest wait for what a second try
        finds."""
        unfit = threading.Event()

        def one(arguments: Sequence[Any]) -> Outcome:
            if unfit.is_set():
                return Outcome(fault="unfit")
            outcome = self.run(work.module, work.job, arguments, limits)
            if outcome.fault == "unfit":
                unfit.set()
            return outcome

        if len(requests) <= 1 or self.size == 1:
            return [one(arguments) for arguments in requests]
        with ThreadPoolExecutor(min(self.size, len(requests))) as threads:
            return list(threads.map(one, requests))

    def _again(self, work: Work, arguments: Sequence[Any], limits: Limits) -> Outcome:
        with alone(self._idle, self.size, self._gathering) as worker:
            _prove(worker, work, limits)
            outcome = worker.run(work.module, work.job, arguments, limits)
            worker.proven = worker.proven and outcome.fault not in _AGAIN
            if outcome.fault == "unfit":
                raise GraderError(f"grading is broken: {outcome.detail}")
            return outcome

    def close(self) -> None:
        """End the idle workers; the next request starts new ones."""
        held = []
        with contextlib.suppress(queue.Empty):
            while True:
                held.append(self._idle.get_nowait())
        for worker in held:
            worker.stop()
            self._idle.put(worker)


def _prove(worker: Worker, work: Work, limits: Limits) -> None:
    """A fresh worker that gave the known values, tried twice. Raises GraderError naming what happened instead."""
    found, tries = "", 0
    while not worker.proven and tries < 2:
        if not worker.fresh or found:
            worker.stop()
        tries += worker.pid is None
        for job, arguments, value in work.known:
            outcome = worker.run(work.module, job, arguments, limits)
            if outcome.fault is not None or outcome.value != value:
                found = (
                    f"{outcome.fault}: {outcome.detail}"
                    if outcome.fault
                    else f"a known answer was judged {outcome.value!r}"
                )
                break
        else:
            worker.proven = True
    if not worker.proven:
        worker.stop()
        raise GraderError(f"grading is broken: {found} ({work.module}, in two fresh workers)")


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
    if _POOL is not None:
        atexit.unregister(_POOL.close)
        for worker in _POOL.workers:
            worker.forget()
    _POOL, _POOL_LOCK = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
