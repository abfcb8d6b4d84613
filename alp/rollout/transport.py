"""How the served model's weights reach an engine process: by memory that both have, wherever there is some.

All of them lie end to end in one buffer, in the engine's dtype, a tied tensor once under all its names. The engine is
told where each begins and looks at it there:

- ``CUDA IPC``: the buffer is on the GPU that both use, and the engine opens it by its handle. It is made for one sync
  and given back after; a copy on the host stays, for an engine that is started again;
- ``shared memory``: the buffer is an anonymous file (memfd) that the engine's process inherits, never on a disk;
- ``socket``: where the system has neither, the bytes go through the socket.

Nothing is pickled: a handle is a few numbers and bytes, in JSON. The engine may read until it has answered the sync,
and keeps nothing of it.
"""

from __future__ import annotations

import gc
import mmap
import os
import weakref
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

CUDA_IPC, SHARED, SOCKET = "CUDA IPC", "shared memory", "socket"
_ALIGNED = 256  # bytes: where a tensor begins


class Outbox:
    """The trainer's end: what the engine must hold, by name, on the host (``values``).

    ``shapes`` are those of the model's parameters; ``aliases`` are further names -> the parameter they name.
    """

    def __init__(self, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str]) -> None:
        self._dtype, end = dtype, 0
        places: dict[str, tuple[tuple[int, ...], int]] = {}
        for name, shape in shapes.items():
            places[name] = (tuple(shape), end)
            end += -(-prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED
        self.bytes = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
        self._places = places | {alias: places[first] for alias, first in aliases.items()}
        self._names = set(shapes)
        self.descriptor, self._host = _memory(self, end)
        self.values = _views(self._host, self._listed(), dtype)
        self._device: Tensor | None = None  # the same on the GPU, from ``fill`` until ``settle``
        self.ipc = True  # whether an engine on the same GPU is given a handle

    def _listed(self) -> list[Any]:
        return [[name, list(shape), offset] for name, (shape, offset) in self._places.items()]

    @torch.no_grad()
    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Round the parameters to the engine's dtype, where they are, and put them in place, one after the other.

        Raises ValueError unless exactly the model's parameters come.
        """
        self._device, views = None, self.values
        names: set[str] = set()
        for name, value in weights:
            if not names and value.device.type == "cuda":
                # What the updates left in the allocator's cache, the engine that wakes may need.
                torch.cuda.empty_cache()
                self._device = torch.empty(len(self._host), dtype=torch.uint8, device=value.device)
                views = _views(self._device, self._listed(), self._dtype)
            names.add(name)
            if name in self._names:
                views[name].copy_(value)
        if names != self._names:
            raise ValueError(f"weights: {sorted(names ^ self._names)[:4]} stand on one side only")
        if self._device is not None:
            _pin(self, self._host)
            self._host.copy_(self._device, non_blocking=True)

    def way(self, engine_gpu: str | None) -> str:
        """How the current weights go to an engine on that GPU (its UUID; None: on none, or on several)."""
        if self.ipc and self._device is not None and engine_gpu == gpu(self._device.device):
            return CUDA_IPC
        return SOCKET if self.descriptor is None else SHARED

    def message(self, way: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the engine is sent: where the weights are, and with ``socket`` the weights."""
        if way != CUDA_IPC and self._device is not None:
            torch.cuda.current_stream(self._device.device).synchronize()  # the host has them then
        header: dict[str, Any] = {
            "way": way,
            "dtype": str(self._dtype).removeprefix("torch."),
            "places": self._listed(),
        }
        if way == CUDA_IPC:
            assert self._device is not None
            header["handle"] = _handle(self._device)
        return {"weights": header}, self.values if way == SOCKET else {}

    def settle(self) -> None:
        """Once the engine has answered, or is gone: give back the GPU's buffer. ``values`` are complete then."""
        if self._device is not None:
            torch.cuda.current_stream(self._device.device).synchronize()
            self._device = None
            torch.cuda.ipc_collect()
            torch.cuda.empty_cache()


class Inbox:
    """The engine's end. ``descriptor`` is that of the memory it inherited, None where there is none."""

    def __init__(self, descriptor: int | None) -> None:
        self._shared = None if descriptor is None else _mapped(descriptor)

    def open(self, message: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a sync by name; they are the trainer's memory, to be read before it is answered."""
        if message["way"] == SOCKET:
            return {name: tensors[name] for name, *_ in message["places"]}
        if message["way"] == SHARED:
            assert self._shared is not None, "no memory was inherited"
            flat = self._shared
        else:
            flat = _opened(message["handle"])
        return _views(flat, message["places"], getattr(torch, message["dtype"]))

    @staticmethod
    def close(message: dict[str, Any]) -> None:
        """Let go of what was opened: the trainer's GPU memory is free again once nothing here refers to it."""
        if message["way"] == CUDA_IPC:
            torch.cuda.synchronize()
            gc.collect()
            torch.cuda.ipc_collect()


def gpu(device: torch.device) -> str:
    """What names a GPU in every process, whatever numbers it goes by there."""
    return str(torch.cuda.get_device_properties(device).uuid)


def _views(flat: Tensor, places: list[Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Parts of a buffer of bytes: [name, shape, first byte] -> tensor."""
    return {
        name: flat[offset : offset + prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for name, shape, offset in places
    }


def _memory(owner: object, size: int) -> tuple[int | None, Tensor]:
    """``size`` bytes that a child process can inherit by a descriptor, closed with ``owner``; where the system has no
    such memory, bytes of this process and None."""
    if not hasattr(os, "memfd_create"):
        return None, torch.empty(size, dtype=torch.uint8)
    descriptor = os.memfd_create("alp-weights")
    weakref.finalize(owner, os.close, descriptor)
    os.ftruncate(descriptor, max(size, 1))
    return descriptor, _mapped(descriptor)[:size]


def _mapped(descriptor: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, 0), dtype=torch.uint8)


def _pin(owner: object, host: Tensor) -> None:
    """Have the GPU copy into these bytes directly, several times as fast; where it will not, the slow way is right
    too."""
    if not host.is_pinned():
        runtime: Any = torch.cuda.cudart()
        if int(runtime.cudaHostRegister(host.data_ptr(), host.nbytes, 0)) == 0:
            weakref.finalize(owner, runtime.cudaHostUnregister, host.data_ptr()).atexit = False


def _handle(flat: Tensor) -> dict[str, Any]:
    """What another process needs to open a buffer of this process's GPU memory, as JSON."""
    from torch.multiprocessing.reductions import reduce_tensor

    parts = reduce_tensor(flat)[1]
    storage, size, offset, counter, counter_offset, event, waits = (parts[at] for at in (7, 8, 9, 11, 12, 13, 14))
    return {
        "gpu": gpu(flat.device),
        "bytes": flat.nbytes,
        "storage": [storage.hex(), size, offset],
        "counter": [counter.hex(), counter_offset],
        "event": [event.hex(), waits],
    }


def _opened(handle: dict[str, Any]) -> Tensor:
    """The buffer of a handle, in this process. Raises RuntimeError where it is not this process's first GPU's."""
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    if handle["gpu"] != gpu(torch.device("cuda", 0)):
        raise RuntimeError(f"the weights are on the GPU {handle['gpu']}, this engine is on another")
    (storage, size, offset), (counter, counter_offset), (event, waits) = (
        handle[name] for name in ("storage", "counter", "event")
    )
    flat: Tensor = rebuild_cuda_tensor(
        Tensor,
        (handle["bytes"],),
        (1,),
        0,
        torch.storage.TypedStorage,
        torch.uint8,
        0,
        bytes.fromhex(storage),
        size,
        offset,
        False,
        bytes.fromhex(counter),
        counter_offset,
        bytes.fromhex(event),
        waits,
    )
    return flat
