"""What each preset would push on, against gradients worked out by hand and by finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from alp import presets
from alp.diagnosis import checking, measures
from alp.diagnosis.counterfactual import Gradient
from alp.diagnosis.dumps import FIELDS, Dump, Raw
from alp.policy import LossInputs


def dump_of(**arrays: list[list[float]]) -> Dump:
    """A dump of the padded arrays, every token valid."""
    shape = np.array(arrays["rollout_log_probs"]).shape
    filled = {name: np.array(values, dtype=float) for name, values in arrays.items()}
    filled["response_mask"] = np.ones(shape)
    lengths = {name: np.full(shape[0], shape[1]) for name in filled}
    names = {name: name for name in FIELDS}
    flat = {name: values.ravel() for name, values in filled.items()}
    return checking.check(Raw(flat, lengths, None, str, names))


def figures_of(dump: Dump, name: str) -> dict[str, float | None]:
    method = next(method for method in presets.known() if method.name == name)
    (effect,) = measures.effects(dump, [method])
    assert not effect.missing
    return effect.gradient.figures()


RANDOM = np.random.default_rng(0)
OLD = (-RANDOM.gamma(1.0, 1.0, size=(6, 5))).tolist()
ADVANTAGES = np.repeat([[1.0], [-1.0], [0.5], [2.0], [-0.25], [0.0]], 5, axis=1).tolist()


@pytest.mark.parametrize("name", ["grpo", "token_tis", "token_bypass", "seq_bypass", "gspo"])
def test_where_policies_agree_a_preset_is_the_policy_gradient(name: str) -> None:
    dump = dump_of(old_log_probs=OLD, rollout_log_probs=OLD, advantages=ADVANTAGES)
    found = figures_of(dump, name)
    assert found["cosine"] == pytest.approx(1.0)
    assert found["equal_lr"] == pytest.approx(1.0)
    assert found["size"] == pytest.approx(1.0)
    assert found["silent"] == 0
    weights = np.abs(ADVANTAGES)
    assert found["effective"] == pytest.approx(weights.sum() ** 2 / (30 * (weights**2).sum()))
    assert found["top_sequence"] == pytest.approx(10 / weights.sum())


def test_two_tokens_by_hand() -> None:
    """Truncated weights of 2 (of e^1) and 0.5: the loss of token_tis at its first update is −w A."""
    old, rollout = [[-1.0, -2.0]], [[-2.0, -2.0 + math.log(2)]]
    found = figures_of(dump_of(old_log_probs=old, rollout_log_probs=rollout, advantages=[[1.0, 1.0]]), "token_tis")
    assert found["size"] == pytest.approx(1.25)
    assert found["cosine"] == pytest.approx(2.5 / math.sqrt(2 * 4.25))
    assert found["equal_lr"] == pytest.approx(math.sqrt(2) / math.sqrt(4.25))
    assert found["effective"] == pytest.approx(2.5**2 / (2 * 4.25))


def test_clipped_tokens_are_silent_and_one_sequence_may_be_all() -> None:
    """grpo's range is [0.8, 1.28]: the first token's ratio is 2 with A > 0, the second's 1."""
    old, current = [[-2.0, -1.0]], [[-2.0 + math.log(2), -1.0]]
    dump = dump_of(old_log_probs=old, rollout_log_probs=old, log_probs=current, advantages=[[1.0, 1.0]])
    assert figures_of(dump, "grpo")["silent"] == 0.5
    far = [[-1.0] * 5, [-1.0] * 5, [-1.0] * 5]
    one = [[-1.5] * 5, [-1.0] * 5, [-1.0] * 5]
    dump = dump_of(old_log_probs=far, rollout_log_probs=one, advantages=[[1.0] * 5] * 3)
    found = figures_of(dump, "seq_tis")
    assert found["top_sequence"] == pytest.approx(5 / 7)  # e^2.5 is truncated at 5
    assert found["effective"] == pytest.approx(7**2 / (3 * 27))


@pytest.mark.parametrize("cells", [7, 10**6])
def test_derivatives_are_those_of_the_loss(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    """By finite differences of the whole batch's loss, whatever the blocks."""
    monkeypatch.setattr(measures, "CELLS", cells)
    rollout = (np.array(OLD) + 0.3 * np.sin(np.arange(30)).reshape(6, 5)).clip(max=-0.01).tolist()
    current = (np.array(OLD) + 0.2 * np.cos(np.arange(30)).reshape(6, 5)).clip(max=-0.01).tolist()
    dump = dump_of(old_log_probs=OLD, rollout_log_probs=rollout, log_probs=current, advantages=ADVANTAGES)
    method = next(method for method in presets.known() if method.name == "token_tis")
    method = replace(method, aggregation="seq-mean-token-mean")
    (effect,) = measures.effects(dump, [method])

    def loss(at: torch.Tensor) -> float:
        inputs = LossInputs(
            log_probs=at,
            old_log_probs=torch.tensor(OLD, dtype=torch.float64),
            rollout_log_probs=torch.tensor(rollout, dtype=torch.float64),
            response_mask=torch.ones(6, 5, dtype=torch.bool),
            advantages=torch.tensor(ADVANTAGES, dtype=torch.float64),
        )
        return float(method.loss(inputs).loss)

    start, slopes = torch.tensor(current, dtype=torch.float64), torch.zeros(6, 5, dtype=torch.float64)
    for row in range(6):
        for token in range(5):
            step = torch.zeros(6, 5, dtype=torch.float64)
            step[row, token] = 1e-6
            slopes[row, token] = -(loss(start + step) - loss(start - step)) / 2e-6
    expected = Gradient()
    expected.add(6 * slopes, torch.tensor(ADVANTAGES), torch.ones(6, 5, dtype=torch.bool), 6)
    found, wanted = effect.gradient.figures(), expected.figures()
    for name in ("size", "cosine", "equal_lr", "effective", "top_sequence"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5), name


def test_nothing_left_is_nothing() -> None:
    """Every advantage 0, and every token masked away."""
    dump = dump_of(old_log_probs=OLD, rollout_log_probs=OLD, advantages=[[0.0] * 5] * 6)
    assert figures_of(dump, "grpo")["cosine"] is None
    far = [[-9.0] * 5] * 6
    dump = dump_of(old_log_probs=[[-1.0] * 5] * 6, rollout_log_probs=far, advantages=ADVANTAGES)
    found = figures_of(dump, "seq_mis")
    assert found["size"] == 0
    assert found["silent"] == 1
