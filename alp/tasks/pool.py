"""What pools of worker processes share."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Worker = TypeVar("Worker")


@contextlib.contextmanager
def alone(idle: queue.Queue[Worker], size: int, gathering: threading.Lock) -> Iterator[Worker]:
    """One of the ``size`` workers of ``idle`` while no other works: all of them are held meanwhile. ``gathering`` lets
    one at a time gather them."""
    held: list[Worker] = []
    with gathering:
        try:
            while len(held) < size:
                held.append(idle.get())
            yield held[0]
        finally:
            for worker in reversed(held):
                idle.put(worker)
