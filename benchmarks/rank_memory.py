"""Memory of each rank of a job on several devices, accounted without a value: no weights, no second process, no GPU.

    python -m benchmarks.rank_memory                     Qwen2.5's shapes of 1.5 B, 7 B and 32 B on eight devices
    python -m benchmarks.rank_memory --sizes 7B          the table of docs/distributed.md

A model of the shape is made of fake tensors, which have a shape and a dtype and no memory, and cut for a process group
that sends nothing, by the job's own rule (``World.shard``). Then its own forward and backward run on it, and every
tensor counts from its making to its end: what FSDP puts together, activations, logits, gradients that are not yet
summed. Real tensors in real processes are counted by the same functions (tests/training/test_rank_memory.py).

It is what tensors take. An allocator rounds up and leaves gaps, kernels have workspaces, and an engine beside the job
has its weights and its cache.
"""

from __future__ import annotations

import argparse
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the memory profiler is talkative

import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alp import models, shards
from alp.policy.layers import decoder_layers
from alp.training.batch import Batch
from alp.training.distributed import World
from alp.training.forward import token_log_probs
from alp.training.head import Head
from benchmarks.shapes import Shape, random_qwen2

GIB = 2**30
Peak = Callable[[Callable[[], object]], int]


@dataclass(frozen=True)
class Size(Shape):
    """A Qwen2, and what one device takes at a time: ``rows`` sequences of ``tokens``; ``chunk`` as
    ``trainer.logits_chunk``, ``rounded`` as ``trainer.precision=bfloat16``."""

    tied: bool
    rows: int
    tokens: int
    chunk: int | None = 4096
    checkpointing: bool = True
    rounded: bool = True


SIZES = {  # 16,000 tokens a micro-batch, as in the grid multi_turn
    "1.5B": Size(28, 1536, 8960, 12, 2, 151_936, True, 4, 4000),  # Qwen2.5-1.5B
    "7B": Size(28, 3584, 18_944, 28, 4, 152_064, False, 4, 4000),  # Qwen2.5-7B
    "32B": Size(64, 5120, 27_648, 40, 8, 152_064, False, 4, 4000),  # Qwen2.5-32B
}


@dataclass(frozen=True)
class Taken:
    """Bytes on one rank. ``whole`` is the model in float32, ``together`` what its units have together at most of its
    weights: the root, which stays, and the largest layer."""

    whole: int
    weights: int
    gradients: int
    moments: int
    together: int
    work: int  # at most beside the first three, in the forward and backward of a micro-batch

    @property
    def most(self) -> int:
        return self.weights + self.gradients + self.moments + self.work


def taken(size: Size, world: World, peak: Peak) -> Taken:
    """Of a model in shards that has done one update; ``peak`` says what a second forward and backward had at most."""
    model = random_qwen2(size, tie_word_embeddings=size.tied).eval()
    if size.checkpointing:
        models.checkpoint_layers(model)
    whole, together = sum(value.nbytes for value in model.parameters()), _together(model, rounded=size.rounded)
    world.shard(model, rounded=size.rounded)
    head = Head(model, model.model, size.chunk) if size.chunk else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    batch = _batch(size)

    def work() -> None:
        log_probs, _ = token_log_probs(model, batch, 1.0, head=head)
        log_probs.sum().backward()

    work()
    optimizer.step()
    most = peak(work)
    parameters = list(model.parameters())
    states = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return Taken(whole, memory(parameters), memory(gradients), memory(states), together, most)


def memory(tensors: Iterable[Tensor]) -> int:
    """Bytes on this device below them, each piece of memory once, padding included."""
    below = {part.untyped_storage()._cdata: part.untyped_storage() for part in map(shards.local, tensors)}
    return sum(storage.nbytes() for storage in below.values())


def _together(model: Any, *, rounded: bool) -> int:
    layers = [sum(value.numel() for value in layer.parameters()) for layer in decoder_layers(model)]
    rest = sum(value.numel() for value in model.parameters()) - sum(layers)
    return (rest + max(layers)) * (2 if rounded else 4)


def _batch(size: Size) -> Batch:
    """All tokens but the first of each row are responses; one row is shorter, so that there is a mask."""
    ids = torch.ones(size.rows, size.tokens, dtype=torch.long)
    mask = ids.clone()
    mask[0, -1] = 0
    response = torch.ones_like(ids, dtype=torch.bool)
    response[:, 0] = False
    zeros, row = torch.zeros(size.rows, size.tokens), torch.zeros(size.rows)
    named = dict.fromkeys(("rollout_log_probs", "old_log_probs", "entropy", "ref_log_probs", "weights"), zeros)
    named |= dict.fromkeys(("rewards", "groups", "sequence_ids", "lengths", "advantages"), row)
    named |= {"input_ids": ids, "attention_mask": mask, "turn_ids": ids}
    return Batch(**named, response_mask=response, loss_mask=response)


# ---- without a value -------------------------------------------------------------------------------------------------


class Living(TorchDispatchMode):
    """Bytes of all tensors that were made inside and are there still."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self._sizes: dict[int, int] = {}
        self._kept: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:  # how many there are only values say: all, at most
            made = torch.empty(args[0].numel(), args[0].dim(), dtype=torch.long, device=args[0].device)
        else:
            made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return made

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._kept[key] = weakref.ref(storage, lambda _: self._gone(key))
            self._sizes[key] = 0
            self._set(key, storage.nbytes())

    def _set(self, key: int, size: int) -> None:
        self.now += size - self._sizes[key]
        self._sizes[key] = size
        self.highest = max(self.highest, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        del self._kept[key]

    @contextmanager
    def resized(self) -> Iterator[None]:
        """FSDP gives memory up, and takes it again, by the size of a storage."""
        resize = torch.UntypedStorage.resize_

        def counted(storage: Any, size: int) -> Any:
            made = resize(storage, size)
            if storage._cdata in self._sizes:
                self._set(storage._cdata, storage.nbytes())
            return made

        with mock.patch.object(torch.UntypedStorage, "resize_", counted):
            yield

    def peak(self, work: Callable[[], object]) -> int:
        """As ``benchmarks.memory.peak_bytes``."""
        before = self.highest = self.now
        work()
        return self.highest - before


def accounted(size: Size, devices: int) -> Taken:
    """On the first rank, whose shards are as large as any."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=devices)
    try:
        world = World(0, devices, None, init_device_mesh("cpu", (devices,)))
        living = Living()
        with FakeTensorMode(allow_non_fake_inputs=True), living, living.resized():
            return taken(size, world, living.peak)
    finally:
        distributed.destroy_process_group()


def rows(names: list[str]) -> Iterator[tuple[str, str, Size]]:
    """Each size with everything that saves memory, and without one of them."""
    for name in names:
        size = SIZES[name]
        yield name, f"`gradient_checkpointing`, `logits_chunk={size.chunk}`", size
        yield name, "no `logits_chunk`", replace(size, chunk=None)
        yield name, "no `gradient_checkpointing`", replace(size, checkpointing=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--devices", type=int, default=8)
    options = parser.parse_args()
    columns = ["model in float32", "weights", "gradients", "moments", "work of a micro-batch"]
    columns += ["of which weights together", "most"]
    print("| model | | " + " | ".join(columns) + " |")
    print("| --- | --- |" + " ---: |" * len(columns))
    for name, what, size in rows(options.sizes):
        found = accounted(size, options.devices)
        cells = [found.whole, found.weights, found.gradients, found.moments, found.work, found.together, found.most]
        print(f"| {name} | {what} | " + " | ".join(f"{cell / GIB:.1f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
