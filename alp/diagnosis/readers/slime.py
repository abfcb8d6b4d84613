"""slime and miles: rollout dumps and train dumps (.pt), and the columns that miles keeps for its dashboard (Parquet).

The two share their formats; miles' train dump is one file per rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alp.diagnosis.readers.contract import Native, Record, Sequence, floats, has
from alp.errors import UserError

FIELDS = {"old_log_probs": "log_probs", "rollout_log_probs": "rollout_log_probs", "advantages": "advantages"}


def _samples(record: Record) -> list[Mapping[str, Any]]:
    """One mapping per sample, from either layout."""
    if isinstance(record.get("samples"), list):
        return [sample for sample in record["samples"] if isinstance(sample, Mapping)]
    data = record.get("rollout_data")
    if not isinstance(data, Mapping):
        return []
    names = [name for name in (*FIELDS.values(), "loss_masks", "response_lengths") if isinstance(data.get(name), list)]
    return [
        dict(zip(names, values, strict=True)) for values in zip(*(data[name] for name in names), strict=True) if names
    ]


def _mask(sample: Mapping[str, Any]) -> Any:
    for name in ("loss_mask", "loss_masks"):
        if has(sample, name):
            return sample[name]
    length = sample.get("response_length", sample.get("response_lengths"))
    if length is None:
        raise UserError("a sample has neither loss_mask nor response_length")
    return [1] * int(length)


def _is_train(record: Record) -> bool:
    return "rollout_id" in record and any(has(sample, "log_probs") for sample in _samples(record)[:1])


def _is_rollout(record: Record) -> bool:
    return "rollout_id" in record and any(has(sample, "rollout_log_probs") for sample in _samples(record)[:1])


def _dump(record: Record) -> Iterator[Sequence]:
    sliced = int(record.get("cp_size") or 1)
    for sample in _samples(record):
        if sample.get("remove_sample"):
            continue
        values = {field: sample[name] for field, name in FIELDS.items() if has(sample, name)}
        mask = floats(_mask(sample), "loss_mask")
        if sliced > 1 and any(len(value) != len(mask) for value in values.values()):
            raise UserError(f"each rank holds 1/{sliced} of the tokens (context parallel): dump with one such rank")
        ids = {"ids": sample["tokens"]} if has(sample, "tokens") else {}
        yield {"response_mask": mask, **values, **ids, "step": record["rollout_id"]}


def _columns(record: Record) -> Iterator[Sequence]:
    mask = record["loss_mask"] if has(record, "loss_mask") else [1] * len(record["rollout_log_probs"])
    yield {"response_mask": mask, "rollout_log_probs": record["rollout_log_probs"]}


READERS = (
    Native("slime/miles", "train dump", _is_train, _dump, FIELDS | {"response_mask": "loss_mask"}),
    Native("slime/miles", "rollout dump", _is_rollout, _dump, FIELDS | {"response_mask": "loss_mask"}),
    Native(
        "miles",
        "dashboard columns",
        lambda record: has(record, "rollout_log_probs", "response_length") and "loss_mask" in record,
        _columns,
    ),
    Native(
        "slime/miles",
        "rollout dump without log-probs",
        lambda record: "rollout_id" in record and len(_samples(record)) > 0,
        advice="--save-debug-train-data writes those of the training code; the rollout must return its own",
    ),
)
