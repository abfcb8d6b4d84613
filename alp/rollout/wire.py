"""Messages between the trainer and an engine process: a JSON header and raw tensors over one stream socket, nothing
that runs code.

Frame: eight bytes with the header's length, the header (UTF-8 JSON), the bytes of its tensors in the order the header
lists them. Both ends are the same machine, so bytes are in its own order.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from typing import Any

import torch
from torch import Tensor

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 1 << 30  # bytes: a longer one is a stream out of step
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "int64", "int32")}


class Closed(Exception):
    """The other end is gone, or the stream makes no sense any more."""


class TimedOut(Exception):
    """The other end did not answer before the deadline."""


class Channel:
    """One end of the conversation. ``deadline`` is in seconds of ``time.monotonic``; None waits for ever."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def send(
        self, header: dict[str, Any], tensors: dict[str, Tensor] | None = None, *, deadline: float | None = None
    ) -> int:
        """Write one frame; returns the bytes of its tensors. Raises Closed and TimedOut."""
        values = {name: value.detach().cpu().contiguous() for name, value in (tensors or {}).items()}
        listed = [[name, str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in values.items()]
        text = json.dumps({"header": header, "tensors": listed}).encode()
        self._write(memoryview(_LENGTH.pack(len(text)) + text), deadline)
        total = 0
        for value in values.values():
            if value.numel():
                view = value.reshape(-1).view(torch.uint8).numpy().data
                self._write(view, deadline)
                total += len(view)
        return total

    def receive(self, *, deadline: float | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read one frame. Raises Closed and TimedOut."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        if length > _LONGEST_HEADER:
            raise Closed(f"a header of {length} bytes")
        frame = json.loads(bytes(self._read(length, deadline)))
        tensors = {}
        for name, dtype, shape in frame["tensors"]:
            kind = DTYPES[dtype]
            size = math.prod(shape) * kind.itemsize
            flat = torch.frombuffer(self._read(size, deadline), dtype=kind) if size else torch.empty(0, dtype=kind)
            tensors[name] = flat.reshape(shape)
        return frame["header"], tensors

    def close(self) -> None:
        """Hang up; the other end reads an end of file."""
        self._stream.close()

    def _write(self, content: memoryview, deadline: float | None) -> None:
        sent = 0
        while sent < len(content):
            self._wait_until(deadline)
            try:
                sent += self._stream.send(content[sent:])
            except TimeoutError:
                raise TimedOut from None
            except OSError as error:
                raise Closed(str(error)) from None

    def _read(self, size: int, deadline: float | None) -> bytearray:
        content = bytearray(size)
        view, filled = memoryview(content), 0
        while filled < size:
            self._wait_until(deadline)
            try:
                count = self._stream.recv_into(view[filled:])
            except TimeoutError:
                raise TimedOut from None
            except OSError as error:
                raise Closed(str(error)) from None
            if not count:
                raise Closed("end of file")
            filled += count
        return content

    def _wait_until(self, deadline: float | None) -> None:
        """Let the next operation block until the deadline at most."""
        if deadline is None:
            self._stream.settimeout(None)
            return
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut
        self._stream.settimeout(left)
