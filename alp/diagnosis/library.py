"""The diagnosis as a library call, for a callback in somebody's trainer: arrays in, figures and sentences out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from alp.diagnosis import checking, dumps, measures
from alp.diagnosis.causes import causes
from alp.diagnosis.dumps import LOG_PROBS, Raw
from alp.diagnosis.findings import findings, notes
from alp.diagnosis.readers.contract import floats
from alp.errors import UserError


@dataclass(frozen=True)
class Diagnosis:
    """What ``alp diagnose`` says of a batch: ``figures`` under the names of diagnostics.json, ``sentences`` for
    people."""

    figures: dict[str, float]
    sentences: list[str]


def diagnose(
    *,
    response_mask: Any,
    rollout_log_probs: Any = None,
    old_log_probs: Any = None,
    log_probs: Any = None,
    perturbed_log_probs: Any = None,
    advantages: Any = None,
    step: int | None = None,
) -> Diagnosis:
    """Ratios and mismatch of one batch.

    Every argument is (sequences, tokens): a tensor of any dtype and device, an array, or a list of lists that may
    differ in length; ``advantages`` may be (sequences,). 1 in ``response_mask`` counts; what stands under 0 is never
    read. One policy's log-probs are needed, two are compared.

    Raises ValueError naming the argument.
    """
    policies = (old_log_probs, rollout_log_probs, log_probs, perturbed_log_probs)
    given = {name: value for name, value in zip(LOG_PROBS, policies, strict=True) if value is not None}
    if not given:
        raise ValueError(f"none of {', '.join(LOG_PROBS)} is given")
    if advantages is not None:
        given["advantages"] = advantages
    try:
        dump = checking.check(_raw(given | {"response_mask": response_mask}, step))
    except UserError as error:
        raise ValueError(str(error)) from None
    wanted = {field: field for field in dumps.FIELDS}
    figures = measures.diagnostics(dump)
    return Diagnosis(figures, findings(dump, figures, causes(dump)) + notes(dump, wanted, figures))


def _raw(given: dict[str, Any], step: int | None) -> Raw:
    tokens, lengths = {}, {}
    for name, value in given.items():
        rows = [floats(row, name) for row in value]
        if any(row.ndim != 1 for row in rows) and not (name == "advantages" and all(row.ndim == 0 for row in rows)):
            raise UserError(f"{name}: shape (sequences, tokens) expected")
        lengths[name] = np.array([row.size for row in rows], dtype=np.int64)
        tokens[name] = np.concatenate([row.reshape(-1) for row in rows]) if rows else np.zeros(0)
    steps = None if step is None else np.full(len(lengths["response_mask"]), float(step))
    names = {field: field for field in dumps.FIELDS}
    return Raw(tokens, lengths, steps, lambda row: f"sequence {row} (from 0)", names, source="a batch")
