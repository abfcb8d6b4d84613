"""OpenRLHF: it writes no batch by itself; an `Experience` that was saved with `torch.save` (docs/diagnose.md)."""

from __future__ import annotations

from collections.abc import Iterator

from alp.diagnosis.readers.contract import Native, Record, Sequence, batch, floats, has

FIELDS = {
    "old_log_probs": "action_log_probs",
    "rollout_log_probs": "rollout_log_probs",
    "advantages": "advantages",
}


def _experience(record: Record) -> Iterator[Sequence]:
    """`action_log_probs` of an experience are made before the update: π_old."""
    mask = floats(record["action_mask"], "action_mask")
    step = {"step": record["step"]} if has(record, "step") else {}
    if mask.ndim == 2:
        for sequence in batch(record, FIELDS, mask):
            yield sequence | step
    else:
        yield {"response_mask": mask, **{f: record[name] for f, name in FIELDS.items() if has(record, name)}, **step}


READERS = (
    Native(
        "OpenRLHF",
        "experience",
        lambda record: has(record, "action_log_probs", "action_mask"),
        _experience,
        FIELDS | {"response_mask": "action_mask"},
    ),
)
