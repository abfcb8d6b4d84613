"""SkyRL: the pickled `TrainingInputBatch` of `trainer.dump_data_batch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from alp.diagnosis.readers.contract import Native, Record, Sequence, batch, floats, has
from alp.errors import UserError

FIELDS = {
    "old_log_probs": "action_log_probs",
    "rollout_log_probs": "rollout_logprobs",
    "advantages": "advantages",
}


def _fields(record: Record) -> Mapping[str, Any]:
    inner = record.get("batch_dict")
    return inner if isinstance(inner, Mapping) else record


def _array(packed: Any) -> Any:
    """A tensor as its bytes, shape and dtype; other values are what they are."""
    if not (isinstance(packed, Mapping) and isinstance(packed.get("data"), bytes)):
        return packed
    if packed.get("format", "numpy") == "numpy":
        return np.frombuffer(packed["data"], dtype=np.dtype(packed["dtype"])).reshape(packed["shape"])
    from alp.diagnosis.readers.objects import unpack

    return unpack(packed["data"])


def _batch(record: Record) -> Iterator[Sequence]:
    """`loss_mask` leaves out what tools wrote. The last `pad_size` rows repeat the first: no sequences."""
    wanted = (*FIELDS.values(), "loss_mask")
    fields = {name: _array(value) for name, value in _fields(record).items() if name in wanted and value is not None}
    metadata = record.get("metadata")
    padded = int(metadata.get("pad_size", 0)) if isinstance(metadata, Mapping) else 0
    mask = floats(fields["loss_mask"], "loss_mask")
    if mask.ndim != 2 or not 0 <= padded < len(mask):
        raise UserError(f"loss_mask: shape (sequences, tokens) expected, got {mask.shape}, {padded} rows of padding")
    keep = len(mask) - padded
    for row, sequence in enumerate(batch(fields, FIELDS, mask)):
        if row < keep:
            yield sequence


READERS = (
    Native(
        "SkyRL",
        "training input",
        lambda record: (
            has(_fields(record), "loss_mask")
            and (has(_fields(record), "action_log_probs") or has(_fields(record), "rollout_logprobs"))
        ),
        _batch,
        FIELDS | {"response_mask": "loss_mask"},
    ),
)
