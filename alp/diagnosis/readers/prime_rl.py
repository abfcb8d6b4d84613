"""prime-rl: the trainer's token export, a JSON object per sequence with aligned lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alp.diagnosis.readers.contract import Native, Record, Sequence, floats, has

FIELDS = {
    "rollout_log_probs": "inference_logprobs",
    "log_probs": "trainer_logprobs",
    "advantages": "advantages",
    "step": "step",
}


def _tokens(record: Record) -> Iterator[Sequence]:
    """`trainer_logprobs` are of the update itself: π_θ. Tokens of the other losses (`ce_weights`) were sampled by
    nobody: they are out where their weights say so."""
    mask = floats(record["loss_mask"], "loss_mask")
    streams = [floats(record[name], name) for name in ("rl_weights", "ref_kl_weights") if _given(record.get(name))]
    if streams and len(streams[0]) == len(mask):
        mask = mask * (sum(abs(stream) for stream in streams) > 0)
    yield {
        "response_mask": mask,
        **{field: record[name] for field, name in FIELDS.items() if has(record, name)},
    }


def _given(stream: Any) -> bool:
    """A stream of nulls means that every token of the mask has weight 1."""
    return bool(stream) and stream[0] is not None


READERS = (
    Native(
        "prime-rl",
        "token export",
        lambda record: has(record, "inference_logprobs", "trainer_logprobs", "loss_mask"),
        _tokens,
        FIELDS | {"response_mask": "loss_mask"},
    ),
)
