"""How a process ends: asked to stop it finishes an update first, orphaned it stops by itself, and a reader that is gone
stops nothing."""

from __future__ import annotations

import ctypes
import io
import os
import select
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, TextIO

_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
)  # the last is what users have Slurm send before a limit
_PATIENCE = 2.0  # seconds for a reader that is slow
_PIECE = 512  # bytes; a pipe that select() calls ready takes that many without blocking
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class StopRequest:
    """Notes a signal that asks this process to stop; the work looks at ``signal`` where it can be taken up again.

    A second Ctrl-C stops at once. Signals that the caller ignores (nohup) stay ignored.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> bool:
    """Have the kernel send ``number`` to this process when the one that started it is gone; whether that was asked for.

    Asked for by ALP_PARENT and ALP_SHELL, which a shell that ``exec``s this process sets to $PPID and $$. So the jobs
    of a killed workflow stop (at their next update) instead of going on beside those of the next. Linux alone.
    """
    parent, shell = os.environ.get("ALP_PARENT"), os.environ.get("ALP_SHELL")
    return parent is not None and shell == str(os.getpid()) and end_with(int(parent), number)


def end_with(parent: int, number: signal.Signals) -> bool:
    """The same for a process that knows which one started it."""
    if not sys.platform.startswith("linux"):
        return False
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, int(number))
    if os.getppid() != parent:  # it went before the call
        os.kill(os.getpid(), number)
    return True


class _Unblocked(io.TextIOBase):
    """Standard output or error as a stream that neither waits for long nor fails: what cannot be written is dropped."""

    def __init__(self, handle: int) -> None:
        self._handle, self._patience = handle, _PATIENCE

    def write(self, text: str) -> int:
        data = text.encode(errors="replace")
        try:
            for start in range(0, len(data), _PIECE):
                if not select.select([], [self._handle], [], self._patience)[1]:
                    self._patience = 0.0  # waited for once; from now on only what fits at once
                    break
                os.write(self._handle, data[start : start + _PIECE])
                self._patience = _PATIENCE
        except OSError:  # the reader is gone, the disk under the log is full
            pass
        return len(text)

    def fileno(self) -> int:
        return self._handle

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


def hold_standard_streams() -> None:
    """Put the null device where standard input, output or error is closed: the next file to be opened would take its
    number, and whatever is printed would go into that file."""
    for handle in range(3):  # in this order: a new one gets the lowest number that is free
        try:
            os.fstat(handle)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # of the processes started from here too


def speak_utf8() -> None:
    """Begin this process again in Python's UTF-8 mode where the locale says otherwise: names of files are texts like
    any other."""
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for the processes it starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def unblock(stream: TextIO | None, handle: int = 1) -> Any:
    """``stream`` unless it is no terminal: then one that a full or broken pipe, or a full disk, cannot stop.

    None, which Python makes of a stream that was closed when it started, becomes the one behind ``handle``. A terminal
    without a character that is printed shows it spelled out.
    """
    if stream is None or stream.closed:
        return _Unblocked(handle)
    if stream.isatty():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    with suppress(OSError):  # the reader is gone
        stream.flush()
    return _Unblocked(stream.fileno())
