"""Trajectories as padded tensors, all aligned with ``input_ids``: entry [i, t] of a log-prob belongs to token [i,
t]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alp.rollout.episodes import Trajectory


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. Per-token tensors are (batch, tokens), the others (batch,).

    ``response_mask`` marks what counts in ratios; ``loss_mask`` and ``weights`` are what the rollout correction left of
    it. ``old_log_probs`` and later fields stay empty until the training model has been run.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    turn_ids: Tensor
    rollout_log_probs: Tensor
    rewards: Tensor
    groups: Tensor
    sequence_ids: Tensor
    lengths: Tensor
    advantages: Tensor
    old_log_probs: Tensor
    entropy: Tensor
    ref_log_probs: Tensor
    weights: Tensor
    loss_mask: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self, index: Tensor) -> Batch:
        """Those rows, cropped to the longest of them."""
        width = int(self.lengths[index].max()) if len(index) else 0
        picked = {item.name: getattr(self, item.name)[index] for item in fields(self)}
        return Batch(**{name: value[:, :width] if value.dim() == 2 else value for name, value in picked.items()})

    def with_(self, **values: Tensor) -> Batch:
        """A copy with some fields replaced."""
        return replace(self, **values)

    def split(self, size: int | None) -> Iterator[tuple[Tensor, Batch]]:
        """Micro-batches of at most ``size`` rows (None: one), as (row indices, rows)."""
        for index in torch.arange(len(self), device=self.input_ids.device).split(size or max(len(self), 1)):
            yield index, self.rows(index)

    def micro_batches(self, rows: int | None, tokens: int | None, multiple: int = 1) -> Iterator[tuple[Tensor, Batch]]:
        """What one forward takes at a time, as (row indices, rows): with ``tokens``, rows of like lengths, at most so
        many tokens with their padding; else at most ``rows`` of them in their order (None: all). Each is as wide as the
        next ``multiple``, perhaps wider than this batch."""
        if tokens is None:
            pieces = self.split(rows)
        else:
            groups = self.groups_of_rows(rows, tokens, multiple)
            indices = (torch.tensor(group, device=self.input_ids.device) for group in groups)
            pieces = ((index, self.rows(index)) for index in indices)
        for index, piece in pieces:
            yield index, piece if multiple == 1 else piece.widened(multiple)

    def groups_of_rows(self, rows: int | None, tokens: int | None, multiple: int = 1) -> list[list[int]]:
        """The row indices of the micro-batches."""
        if tokens is None:
            size = rows or max(len(self), 1)
            return [list(range(start, min(start + size, len(self)))) for start in range(0, len(self), size)]
        return by_length([-(-length // multiple) * multiple for length in self.lengths.tolist()], tokens)

    def widened(self, multiple: int) -> Batch:
        """The same rows with padding up to the next ``multiple`` of tokens."""
        extra = -self.input_ids.shape[1] % multiple
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        wide = {name: F.pad(value, (0, extra)) for name, value in values.items() if value.dim() == 2}
        return Batch(**(values | wide))


def by_length(lengths: list[int], budget: int) -> list[list[int]]:
    """Sequences in groups whose number times longest is at most ``budget``; one that is longer is alone. Each stands in
    one group; those of one length keep their order.

    Filled from the shortest up, so the group that is left with room is one of long sequences: it saves most there. The
    longest come first: where memory does not suffice, that shows at once.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and (len(groups[-1]) + 1) * lengths[row] <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups[::-1]


def collate(
    trajectories: list[Trajectory],
    *,
    pad_token_id: int,
    first_sequence: int,
    device: torch.device,
    for_loss: bool = True,
) -> Batch:
    """Pad trajectories to the right. ``sequence_ids`` count on from ``first_sequence``: unique in a run. ``for_loss``:
    a trajectory that is left out of the loss keeps its reward and nothing of its mask."""
    count = len(trajectories)
    lengths = torch.tensor([len(item.prompt_ids) + len(item.response_ids) for item in trajectories])
    shape = (count, int(lengths.max()))
    input_ids = torch.full(shape, pad_token_id)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    turn_ids = torch.zeros(shape, dtype=torch.long)
    rollout_log_probs = torch.zeros(shape)
    for row, item in enumerate(trajectories):
        start, end = len(item.prompt_ids), int(lengths[row])
        input_ids[row, :end] = torch.tensor(item.prompt_ids + item.response_ids)
        if not (for_loss and item.left_out):
            response_mask[row, start:end] = torch.tensor(item.response_mask, dtype=torch.bool)
        turn_ids[row, start:end] = torch.tensor(item.turn_ids)
        rollout_log_probs[row, start:end] = torch.tensor(item.rollout_log_probs)
    zeros = torch.zeros(shape)
    batch = Batch(
        input_ids=input_ids,
        attention_mask=(torch.arange(shape[1]) < lengths.unsqueeze(1)).long(),
        response_mask=response_mask,
        turn_ids=turn_ids,
        rollout_log_probs=rollout_log_probs,
        rewards=torch.tensor([item.reward for item in trajectories], dtype=torch.float64),
        groups=torch.tensor([item.group for item in trajectories]),
        sequence_ids=torch.arange(first_sequence, first_sequence + count),
        lengths=lengths,
        advantages=torch.zeros(count),
        old_log_probs=zeros,
        entropy=zeros,
        ref_log_probs=zeros,
        weights=torch.ones(shape),
        loss_mask=response_mask,
    )
    return Batch(**{item.name: getattr(batch, item.name).to(device) for item in fields(batch)})
