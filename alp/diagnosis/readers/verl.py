"""verl: the JSONL of `trainer.rollout_data_dir`, and saved batches (`DataProto.save_to_disk`, or a dictionary of its
tensors)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from alp.diagnosis.readers.contract import Native, Record, Sequence, batch, floats, has
from alp.diagnosis.readers.objects import STORAGE

_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}

FIELDS = {
    "old_log_probs": "old_log_probs",
    "rollout_log_probs": "rollout_log_probs",
    "advantages": "advantages",
}


def _tensors(record: Record) -> Mapping[str, Any]:
    """The tensors of a batch, out of the shells of DataProto and TensorDict."""
    for shell in ("batch", "_tensordict"):
        inner = record.get(shell)
        if isinstance(inner, Mapping):
            return _tensors(inner)
    leaves, storage = record.get("leaves"), record.get(STORAGE)
    if isinstance(leaves, Mapping) and storage is not None:  # one storage for all: dtype, shape, first and last byte
        return {name: _leaf(storage, *leaf[:3]) for name, leaf in leaves.items() if leaf[0] in _DTYPES}
    return record


def _leaf(storage: torch.Tensor, dtype: str, shape: list[int], start: int) -> torch.Tensor:
    """One tensor out of the bytes of all."""
    kind = _DTYPES[dtype]
    return storage[start : start + math.prod(shape) * kind.itemsize].view(kind).reshape(shape)


def _is_batch(record: Record) -> bool:
    tensors = _tensors(record)
    return (has(tensors, "old_log_probs") or has(tensors, "rollout_log_probs")) and (
        has(tensors, "response_mask") or has(tensors, "responses", "attention_mask")
    )


def _batch(record: Record) -> Iterator[Sequence]:
    tensors = _tensors(record)
    if has(tensors, "response_mask"):
        mask = floats(tensors["response_mask"], "response_mask")
    else:  # of versions that compute it later: the last columns of the attention mask
        width = floats(tensors["responses"], "responses").shape[-1]
        mask = floats(tensors["attention_mask"], "attention_mask")[:, -width:]
    step = record.get("global_steps")
    for sequence in batch(tensors, FIELDS, mask):
        yield sequence if step is None else sequence | {"step": step}


READERS = (
    Native("verl", "saved batch", _is_batch, _batch, FIELDS | {"response_mask": "response_mask"}),
    Native(
        "verl",
        "rollout dump",
        lambda record: {"input", "output", "score"} <= set(record) and "inference_logprobs" not in record,
        advice=(
            "set actor_rollout_ref.rollout.calculate_log_probs=True and save the batch behind compute_advantage: one"
            " line, in docs/diagnose.md"
        ),
    ),
)
