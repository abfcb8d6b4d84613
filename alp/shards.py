"""Tensors that lie in shards on several devices (torch's DTensor): asked about and put together without knowing where.

Everything here is collective where a tensor is sharded: every rank of a job calls it, in the same order. Of plain
tensors it is the tensor itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(model: Any) -> bool:
    """Whether ``fully_shard`` was applied to a model."""
    return hasattr(model, "set_requires_gradient_sync")


def computes_in(model: Any) -> torch.dtype | None:
    """The dtype that a sharded model's parameters are rounded to where they are put together; None: none."""
    dtype: torch.dtype | None = model._get_fsdp_state()._mp_policy.param_dtype if is_sharded(model) else None
    return dtype


def tensors_of(parts: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters, buffers and plain attributes of modules, each once; those of the meta device are given memory first,
    without values. What was one tensor stays one."""
    found: dict[int, tuple[Tensor, Tensor]] = {}  # by what was there, which has to stay until all have been seen
    for part in parts:
        kinds: list[dict[str, Any]] = [part._parameters, part._buffers, vars(part)]
        for held in kinds:
            for name, value in sorted(held.items()):  # what was read from files is held in another order
                if isinstance(value, Tensor):
                    if id(value) not in found:
                        found[id(value)] = value, _in_memory(value) if value.is_meta else value
                    held[name] = found[id(value)][1]
    return [now for _, now in found.values()]


def _in_memory(value: Tensor) -> Tensor:
    empty = torch.empty_like(value, device="cpu")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def units(model: Any) -> int:
    """Parts of a model that are put together, and given up again, by themselves."""
    return sum(is_sharded(module) for module in model.modules())


def full(value: Tensor) -> Tensor:
    """All of a tensor on this device, without gradient where it is put together."""
    gather = getattr(value, "full_tensor", None)
    if gather is None:
        return value
    with torch.no_grad():
        whole: Tensor = gather()
    return whole


def local(value: Tensor) -> Tensor:
    """The part of a tensor that lies on this device; it shares its memory."""
    part: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part


@torch.no_grad()
def like(whole: Tensor, target: Tensor) -> Tensor:
    """A copy of ``whole``, which every rank has, in shards as ``target`` lies."""
    if not hasattr(target, "device_mesh"):
        return whole.clone()
    from torch.distributed.tensor import distribute_tensor

    given: Any = target
    cut = whole.to(target.device)
    return distribute_tensor(cut, given.device_mesh, given.placements, src_data_rank=None)  # nothing is sent


@torch.no_grad()
def put(whole: Tensor, target: Tensor) -> None:
    """Copy ``whole`` into ``target``, to each rank its part."""
    local(target).copy_(local(like(whole, target)))


def on_host(named: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Each put together, one at a time, and kept in main memory by those that ``keep``. A tensor under two names is one
    there too."""
    seen: dict[int, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name, value in named:
        if id(value) not in seen:
            whole = full(value).detach()
            seen[id(value)] = whole.cpu() if keep else whole.new_empty(0)
        values[name] = seen[id(value)]
    return values if keep else {}
