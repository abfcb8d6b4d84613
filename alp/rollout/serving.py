"""The other end of an engine process: requests from the trainer are answered until it hangs up or asks for the end.

An engine's server module hands ``main`` what makes its ``Server``. The process ends when the trainer does, however that
ended: the kernel kills it (PR_SET_PDEATHSIG), and elsewhere than on Linux a thread sees the socket close.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from alp.rollout.transport import Inbox
from alp.rollout.wire import Channel, Closed

_PR_SET_PDEATHSIG = 1
Answer = tuple[dict[str, Any], dict[str, Tensor]]  # a header and tensors


class Refused(Exception):
    """The engine will not serve this request, now or later."""


class Server(Protocol):
    """What answers: ``sync``, ``readback``, ``generate`` and ``describe`` (``alp.rollout.supervised``).

    Its attribute ``gpu``, where it has one, is the UUID of the one GPU it runs on (``alp.rollout.transport``).
    """

    def answer(self, operation: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> Answer:
        """Do one operation. Raises Refused for a request that it cannot serve."""
        ...


def main(arguments: list[str], make: Callable[[dict[str, Any]], Server]) -> int:
    """Serve one trainer: ``arguments`` are the trainer's pid, the socket and, where there is one, the memory of the
    weights; the first message is what ``make`` is given. Returns the exit code."""
    parent, descriptor, *memory = map(int, arguments)
    stream = socket.socket(fileno=descriptor)
    end_with(parent, stream)
    channel = Channel(stream)
    try:
        settings, _ = channel.receive()
        try:
            server = make(settings)
        except Exception as error:  # a model or option that the engine has not: the trainer says so and stops
            traceback.print_exc()
            channel.send({"refused": f"{type(error).__name__}: {error}"})
            return 1
        channel.send({"ready": True, "gpu": getattr(server, "gpu", None)})
        serve(channel, server, Inbox(next(iter(memory), None)))
    except Closed:
        pass
    return 0


def serve(channel: Channel, server: Server, inbox: Inbox) -> None:
    """Answer requests until ``stop``.

    A failed one is answered with its error: the trainer then starts a new process. One that the engine refuses is
    answered with ``refused``, weights that cannot be opened with ``unreachable``.
    """
    while True:
        header, tensors = channel.receive()
        operation = header.pop("operation")
        if operation == "stop":
            return
        channel.send(*_answer(server, inbox, operation, header, tensors))


def _answer(server: Server, inbox: Inbox, operation: str, header: dict[str, Any], tensors: dict[str, Tensor]) -> Answer:
    weights = header.pop("weights", None)
    if weights is not None:
        try:
            tensors = inbox.open(weights, tensors)
        except Exception as error:
            traceback.print_exc()
            return {"unreachable": f"{type(error).__name__}: {error}"}, {}
    try:
        return server.answer(operation, header, tensors)
    except Refused as error:
        return {"refused": str(error)}, {}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{operation}: {type(error).__name__}: {error}"}, {}
    finally:
        if weights is not None:
            del tensors
            inbox.close(weights)


def end_with(parent: int, stream: socket.socket) -> None:
    """Make sure this process does not outlive the trainer."""
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the line above
        os._exit(1)
    threading.Thread(target=_watch, args=(stream,), daemon=True).start()


def _watch(stream: socket.socket) -> None:
    """End the process when the socket's other end is closed, even in the middle of a batch."""
    poll = select.poll()
    poll.register(stream, getattr(select, "POLLRDHUP", 0))  # POLLHUP and POLLERR are always reported
    poll.poll()
    time.sleep(0.5)  # an orderly stop is faster than this
    os._exit(0)
