"""Blocks of ``perturbation.active(...)``: what keys their noise, and which of them a forward ran in."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .streams import RowNames, check_fields


@dataclass
class Block:
    """One ``active(...)`` block: what keys the noise, and what the last forward realised."""

    update: int
    sequence_ids: Tensor
    attention_mask: Tensor | None
    positions: Tensor | None
    shape: torch.Size | None = None  # (batch, tokens), once the first forward has shown it
    rows: Tensor = field(
        default_factory=lambda: torch.empty(0)
    )  # (2, rows) int64: sequence id and position of every token
    valid: Tensor = field(default_factory=lambda: torch.empty(0))  # (rows,) bool
    noise_square: dict[int, Tensor] = field(default_factory=dict)
    hidden_square: dict[int, Tensor] = field(default_factory=dict)
    mean_std: dict[int, Tensor] = field(default_factory=dict)
    backward: bool = False  # whether a backward of the noise ran inside
    thread: int = field(default_factory=threading.get_ident)

    def same_draw(self, other: Block) -> bool:
        """Whether both blocks give the same noise: a block may be left and entered again for the backward."""
        return self is other or (
            self.shape == other.shape and self.update == other.update and torch.equal(self.rows, other.rows)
        )

    def prepare(self, shape: torch.Size, device: torch.device) -> None:
        """Name the tokens of a forward of ``shape``. Raises ValueError for arguments that do not fit it."""
        ids, positions = self.sequence_ids, self.positions
        if ids.is_floating_point() or ids.shape not in (shape, shape[:1]):
            raise ValueError(
                f"sequence_ids: integers {tuple(shape[:1])} or {tuple(shape)} expected, got {ids.dtype}"
                f" {tuple(ids.shape)}"
            )
        if ids.dim() == 2 and positions is None:
            raise ValueError("positions: packed rows (2-D sequence_ids) need the position of every token")
        for name, value in (("attention_mask", self.attention_mask), ("positions", positions)):
            if value is not None and value.shape != shape:
                raise ValueError(f"{name}: shape {tuple(shape)} expected, got {tuple(value.shape)}")
        valid = torch.ones(shape, dtype=torch.bool) if self.attention_mask is None else self.attention_mask.bool()
        if positions is None:
            positions = valid.long().cumsum(-1) - 1
        rows = ids.unsqueeze(-1).expand(shape) if ids.dim() == 1 else ids
        positions = positions.clamp(min=0)  # padding before the first token borrows its key
        self.rows = torch.stack([rows.reshape(-1).long().to(device), positions.reshape(-1).long().to(device)])
        check_fields(self.update, *self.rows)
        self.valid, self.shape = valid.reshape(-1).to(device), shape

    def names(self, seed: int, layer: int, device: torch.device) -> RowNames:
        """What names one layer's noise; the keys are made of it anew each time: kept for all layers, they would be the
        largest thing here."""
        return RowNames(seed, self.update, layer, self.rows.to(device))


class Origins:
    """Which block, if any, each forward of a layer ran in, found again by the memory of the layer's input.

    Gradient checkpointing runs layers a second time during the backward. It keeps the input of the first run alive
    until then (detached or not, the memory is the same), so the memory tells the forward that is being repeated; where
    two forwards of different noise had the same input (embeddings of the caller's, say), it cannot, and the repetition
    is refused.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, tuple[StorageWeakRef, Block | None, bool]] = {}
        self._limit = 64

    def record(self, hidden: Tensor, context: Block | None) -> None:
        """Remember the block of a forward; entries of freed inputs are dropped now and then."""
        if not (torch.is_grad_enabled() or hidden.requires_grad):
            return  # nothing that a backward could repeat
        storage = StorageWeakRef(hidden.untyped_storage())
        if len(self._seen) >= self._limit:
            self._seen = {key: entry for key, entry in self._seen.items() if not entry[0].expired()}
            self._limit = 2 * len(self._seen) + 64
        key = self._memory(hidden)
        before = self._seen.get(key)
        clear = True
        if before is not None and not before[0].expired():
            same = before[1] is context if before[1] is None or context is None else context.same_draw(before[1])
            clear = before[2] and same
        self._seen[key] = (storage, context, clear)

    def find(self, hidden: Tensor) -> Block | None:
        """The block of the forward that is being repeated. Raises RuntimeError when that cannot be told."""
        entry = self._seen.get(self._memory(hidden))
        if entry is None:
            raise RuntimeError(
                "perturbation: backward runs a layer on an input that no forward gave it: checkpoint each decoder layer"
                " by itself (not several as one, nor with copies of its input), and run no new forward inside a"
                " backward"
            )
        if not entry[2]:
            raise RuntimeError(
                "perturbation: backward repeats a layer whose input went through it with other noise too: clone the"
                " input"
            )
        return entry[1]

    @staticmethod
    def _memory(hidden: Tensor) -> tuple[Any, ...]:
        return hidden.untyped_storage()._cdata, hidden.storage_offset(), hidden.shape, hidden.stride()
