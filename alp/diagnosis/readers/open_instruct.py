"""open-instruct: the JSONL shards of `--save_traces`, which hold the engine's log-probs alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from alp.diagnosis.readers.contract import Native, Record, Sequence, floats, has

NAMES = {"rollout_log_probs": "logprobs", "advantages": "advantage", "step": "step"}


def _trace(record: Record) -> Iterator[Sequence]:
    """Every token of the response counts: which of them a tool wrote is not in the file."""
    values = floats(record["logprobs"], "logprobs")
    yield {
        "response_mask": np.ones(len(values)),
        "ids": [*record["prompt_tokens"], *record["response_tokens"]],
        **{field: record[name] for field, name in NAMES.items() if has(record, name)},
    }


def _is_trace(record: Record) -> bool:
    return {"response_tokens", "prompt_tokens", "finish_reason"} <= set(record)


READERS = (
    Native("open-instruct", "rollouts", lambda record: _is_trace(record) and has(record, "logprobs"), _trace, NAMES),
    Native(
        "open-instruct",
        "rollouts without log-probs",
        _is_trace,
        advice="the engine returned none; log-probs of both sides: dump them in the update, docs/diagnose.md",
    ),
)
