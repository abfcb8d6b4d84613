"""Jobs that hurt their process."""

from __future__ import annotations

import os
import time


def eat() -> int:
    """More memory than any limit of the tests."""
    return len(bytearray(3 * 1024**3))


def leave() -> None:
    """Die without a word."""
    os.kill(os.getpid(), 9)


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


JOBS = {"eat": eat, "leave": leave, "sleep": time.sleep, "spin": spin}
