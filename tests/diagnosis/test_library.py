"""`from alp.diagnosis import diagnose`: tensors, arrays and lists give what the file gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from alp.diagnosis import diagnose
from alp.policy import mismatch_diagnostics

from . import native


def _batch() -> dict[str, torch.Tensor]:
    some = native.sequences(1)
    names = ("old_log_probs", "rollout_log_probs", "response_mask")
    return {name: native.padded(some, name) for name in names}


def test_figures_are_those_of_the_policy_room() -> None:
    batch = _batch()
    found = diagnose(**batch, advantages=torch.ones(len(batch["response_mask"])), step=3)
    policies = (batch["old_log_probs"].double(), batch["rollout_log_probs"].double())
    expected = mismatch_diagnostics(*policies, batch["response_mask"].bool())
    assert {name: found.figures[name] for name in expected} == pytest.approx(expected)
    assert found.sentences[0].startswith("read as a batch: 6 sequences")


def test_tensors_arrays_and_ragged_lists_are_the_same() -> None:
    batch, some = _batch(), native.sequences(1)
    padding = batch["response_mask"] == 0
    batch["rollout_log_probs"] = batch["rollout_log_probs"].masked_fill(padding, math.nan)  # never read
    lists = {name: [one[name].tolist() for one in some] for name in batch}
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    assert diagnose(**batch) == diagnose(**arrays) == diagnose(**lists)


def test_bfloat16_and_one_policy() -> None:
    batch = _batch()
    found = diagnose(
        response_mask=batch["response_mask"].bool(), rollout_log_probs=batch["rollout_log_probs"].bfloat16()
    )
    assert not found.figures
    assert any("engine alone" in sentence for sentence in found.sentences)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"old_log_probs": np.zeros((5, 2))}, "old_log_probs 5"),
        ({"rollout_log_probs": np.zeros(6)}, "rollout_log_probs: shape"),
        ({"response_mask": np.full((6, 9), 0.5)}, "response_mask, token 0 (from 0): 0.5 is neither 0 nor 1"),
        ({"old_log_probs": None, "rollout_log_probs": None}, "none of old_log_probs, rollout_log_probs"),
        ({"old_log_probs": [["a"]] * 6}, "old_log_probs: a list of numbers expected"),
    ],
)
def test_faults_name_the_argument(changed: dict[str, Any], message: str) -> None:
    batch: dict[str, Any] = _batch() | changed
    with pytest.raises(ValueError, match=r".") as caught:
        diagnose(**batch)
    assert message in str(caught.value)
