"""TRL (GRPOTrainer, RLOOTrainer): completions as Parquet, and the generation batch with its log-probs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from alp.diagnosis.readers.contract import Native, Record, Sequence, batch, floats, has

FIELDS = {
    "old_log_probs": "old_per_token_logps",
    "rollout_log_probs": "sampling_per_token_logps",
    "log_probs": "per_token_logps",
    "advantages": "advantages",
}


def _is_batch(record: Record) -> bool:
    return has(record, "completion_mask") and any(has(record, name) for name in (*FIELDS.values(),)[:3])


def _batch(record: Record) -> Iterator[Sequence]:
    """Padded tensors, or the lists of one sequence; tokens of tools are out of the loss, and out of ours."""
    mask = floats(record["completion_mask"], "completion_mask")
    if has(record, "tool_mask"):
        mask = mask * floats(record["tool_mask"], "tool_mask")
    step = {"step": record["step"]} if has(record, "step") and np.ndim(record["step"]) == 0 else {}
    names = FIELDS if has(record, "advantages") else FIELDS | {"advantages": "advantage"}
    if mask.ndim == 2:
        for sequence in batch(record, names, mask):
            yield sequence | step
    else:
        values = {field: record[name] for field, name in names.items() if has(record, name)}
        yield {"response_mask": mask, **values, **step}


READERS = (
    Native("TRL", "generation batch", _is_batch, _batch, FIELDS | {"response_mask": "completion_mask"}),
    Native(
        "TRL",
        "completions",
        lambda record: {"step", "prompt", "completion", "advantage"} <= set(record),
        advice="add the callback of examples/trl_diagnosis.py to the trainer: it writes them",
    ),
)
