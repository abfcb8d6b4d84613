"""NeMo-RL: `train_data_step<N>.jsonl` in the log folder, an object per sequence, its lists in lists of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alp.diagnosis.readers.contract import Native, Record, Sequence, floats, has

FIELDS = {
    "old_log_probs": "prev_logprobs",
    "rollout_log_probs": "generation_logprobs",
    "advantages": "advantages",
}


def _one(value: Any) -> Any:
    """A sequence's own list or number, out of the batch of one that it is written as."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _sequence(record: Record) -> Iterator[Sequence]:
    """A sequence whose `sample_loss_mask` is 0 is out of the loss. Where the trainer skips its own forward
    (`force_on_policy_ratio`) `prev_logprobs` are nothing but zeros: not there."""
    mask = floats(_one(record["token_loss_mask"]), "token_loss_mask")
    if has(record, "sample_loss_mask"):
        mask = mask * float(_one(record["sample_loss_mask"]))
    previous = floats(_one(record["prev_logprobs"]), "prev_logprobs") if has(record, "prev_logprobs") else None
    yield {
        "response_mask": mask,
        "rollout_log_probs": floats(_one(record["generation_logprobs"]), "generation_logprobs"),
        **({} if previous is None or not previous.any() else {"old_log_probs": previous}),
        **({"advantages": _one(record["advantages"])} if has(record, "advantages") else {}),
        **({"ids": _one(record["token_ids"])} if has(record, "token_ids") else {}),
    }


READERS = (
    Native(
        "NeMo-RL",
        "training data",
        lambda record: has(record, "generation_logprobs", "token_loss_mask"),
        _sequence,
        FIELDS | {"response_mask": "token_loss_mask"},
    ),
)
