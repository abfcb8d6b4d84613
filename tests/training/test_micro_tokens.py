"""Micro-batches by a budget of tokens: the same update as the whole mini-batch at once, little padding, the same pieces
in scoring and update, the same bytes after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alp.configuration import compose
from alp.errors import Interrupted
from alp.policy import LayerwisePerturbation
from alp.policy.layers import decoder_layers
from alp.rollout.episodes import Trajectory
from alp.training.batch import Batch, by_length, collate
from alp.training.forward import frozen_log_probs
from alp.training.loop import train
from alp.training.update import Updater, UpdateResult

from ..policy.models import EXACT, VOCABULARY, relative_gap

Make = Callable[..., Any]
BUDGET = 45  # tokens: pieces of one to five of the sequences below


def _batch(model: Any) -> Batch:
    """Twelve rows of 7 to 27 tokens in float64, with turns, tokens of the environment between them, and a real
    π_old."""
    dice = torch.Generator().manual_seed(0)
    trajectories = []
    for row in range(12):
        length = 4 + (7 * row) % 23
        ids = torch.randint(1, VOCABULARY, (3 + length,), generator=dice).tolist()
        turns = [place // 6 for place in range(length)]
        mask = [int(place % 6 < 4) for place in range(length)]  # the last two of a turn come from outside
        trajectories.append(
            Trajectory(ids[:3], ids[3:], [-1.0] * length, mask, turns, finished=True, reward=float(row % 2), group=0)
        )
    batch = collate(trajectories, pad_token_id=0, first_sequence=40, device=torch.device("cpu"))
    double = batch.with_(
        rollout_log_probs=batch.rollout_log_probs.double(),
        advantages=torch.randn(len(batch), generator=dice, dtype=torch.float64),
    )
    old, _ = frozen_log_probs(model, double, 1.0, None)
    shift, other = (0.3 * torch.randn(old.shape, generator=dice, dtype=torch.float64) for _ in range(2))
    return double.with_(
        old_log_probs=old,
        rollout_log_probs=torch.where(batch.response_mask, old + shift, 0.0),
        ref_log_probs=old + other,
    )


def _updater(kind: str, *words: str) -> Updater:
    job = compose.load("train", ["trainer.kl=0.1", "trainer.max_grad_norm=1e9", *words])
    model, settings = EXACT[kind](), job.method.perturbation
    noise = None if settings is None else LayerwisePerturbation(model, std=0.05, layers=settings.layers, seed=9)
    return Updater(model, job.method, job.trainer, perturbation=noise, temperature=1.0, reference=True)


def _updated(updater: Updater) -> tuple[Tensor, Tensor, Tensor, UpdateResult]:
    """Gradient of the weights and of the noise, raw log-ratios, what was done."""
    batch = _batch(updater.model)
    corrected = updater.method.correct(batch.old_log_probs, batch.rollout_log_probs, batch.response_mask)
    raw, result = updater.update(batch.with_(weights=corrected.weights, loss_mask=corrected.mask), 3)
    noise = updater.perturbation.std_grad if updater.perturbation is not None else torch.zeros(0)
    return torch.cat([p.grad.flatten() for p in updater.model.parameters()]), noise, raw, result


CASES = [
    *(("gpt2", [f"method={name}"]) for name in compose.choices("method")),
    ("gpt_neox", ["method=token_alp"]),
    ("gpt_neox", ["method=token_tis", "method.level=turn"]),
    ("gpt2", ["method=grpo", "method.level=prefix"]),
    ("gpt2", ["method=token_alp", "method.perturbation.layers=logits"]),
    ("gpt2", ["method=seq_mis", "method.aggregation=seq-mean-token-mean"]),
]


@pytest.mark.parametrize(("kind", "words"), CASES, ids=[" ".join((kind, *words)) for kind, words in CASES])
def test_the_update_is_that_of_the_whole(kind: str, words: list[str]) -> None:
    gradient, noise, raw, result = _updated(_updater(kind, *words))
    updater = _updater(kind, *words, f"trainer.micro_tokens={BUDGET}")
    gradient_of_pieces, noise_of_pieces, raw_of_pieces, of_pieces = _updated(updater)
    assert len(list(_batch(updater.model).micro_batches(None, BUDGET))) > 4
    assert relative_gap(gradient_of_pieces, gradient) < 1e-12
    torch.testing.assert_close(raw_of_pieces, raw, atol=1e-12, rtol=0)
    assert of_pieces.metrics.keys() == result.metrics.keys()
    for name, value in result.metrics.items():
        assert of_pieces.metrics[name] == pytest.approx(value, rel=1e-12, abs=1e-14), name
    assert of_pieces.noise.keys() == result.noise.keys()
    if updater.perturbation is not None:
        assert relative_gap(noise_of_pieces, noise) < 1e-12
        for name, values in result.noise.items():
            assert of_pieces.noise[name] == pytest.approx(values, rel=1e-12), name


def _noisy_inputs(*words: str) -> dict[bytes, Tensor]:
    """What the first layer got for each sequence of an update, by its token ids."""
    updater = _updater("gpt2", "method=token_alp", *words)
    ids: list[Tensor] = []
    seen: dict[bytes, Tensor] = {}

    def before(_model: Any, _args: Any, kwargs: Any) -> None:
        ids.append(kwargs["input_ids"])

    def inside(_layer: Any, args: tuple[Any, ...]) -> None:
        for row, states in zip(ids[-1], args[0], strict=True):
            length = int((row != 0).sum())
            seen[row[:length].numpy().tobytes()] = states[:length].detach().clone()

    updater.model.register_forward_pre_hook(before, with_kwargs=True)
    decoder_layers(updater.model)[0].register_forward_pre_hook(inside)
    _updated(updater)
    return seen


def test_a_sequence_gets_the_same_noise_in_any_company() -> None:
    whole, pieces = _noisy_inputs(), _noisy_inputs(f"trainer.micro_tokens={BUDGET}")
    assert whole.keys() == pieces.keys()
    assert len(whole) == 12
    assert all(torch.equal(whole[ids], pieces[ids]) for ids in whole)


@pytest.mark.parametrize("budget", [1, 8, 30, 10**6])
def test_groups_keep_the_budget(budget: int) -> None:
    dice = random.Random(budget)
    lengths = [dice.randint(1, 12) for _ in range(40)]
    groups = by_length(lengths, budget)
    assert sorted(row for group in groups for row in group) == list(range(40))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group) <= budget
    in_order = [row for group in reversed(groups) for row in group]
    assert in_order == sorted(range(40), key=lambda row: (lengths[row], row)), "by length; equals in their order"
    assert len(groups) == (40 if budget == 1 else len(groups))
    assert by_length(lengths, 10**6) == [in_order]


def test_a_piece_is_as_wide_as_its_longest() -> None:
    batch = _batch(EXACT["gpt2"]())
    pieces = list(batch.micro_batches(None, BUDGET))
    for index, piece in pieces:
        assert piece.input_ids.shape == (len(index), int(batch.lengths[index].max()))
        assert torch.equal(piece.sequence_ids, batch.sequence_ids[index])
    assert sorted(torch.cat([index for index, _ in pieces]).tolist()) == list(range(12))


@pytest.mark.parametrize("times", [1, 2, 4])
@pytest.mark.parametrize(("median", "spread"), [(500, 0.6), (800, 1.0), (1500, 0.5)])
def test_padding_costs_less_than_a_tenth(median: int, spread: float, times: int) -> None:
    """Mini-batches of 256 (512 prompts x 8 samples over 16 updates), log-normal lengths up to 4096 with their prompts,
    budgets of a few times the longest. In the order they are sampled in a fifth to a half would be padding."""
    for seed in range(5):
        dice = random.Random(seed)
        lengths = [
            min(round(median * dice.lognormvariate(0, spread)) + dice.randint(50, 250), 4096) for _ in range(256)
        ]
        groups = by_length(lengths, times * max(lengths))
        padded = sum(len(group) * max(lengths[row] for row in group) for group in groups)
        assert 1 - sum(lengths) / padded < 0.1
        assert len(groups) < 256 / times


@pytest.mark.parametrize("words", [[], ["trainer.logits_chunk=5"]])
def test_on_policy_ratio_is_exactly_one(train_config: Make, tmp_path: Path, words: list[str]) -> None:
    """And the policy is at no distance from the model it started as: the reference is read in the same pieces."""
    once = ["trainer.updates_per_batch=1", "trainer.steps=1", "trainer.probe_every=0", "trainer.validate_every=0"]
    train(train_config("method=grpo", "trainer.kl=0.1", "trainer.micro_tokens=40", *once, *words))
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert line["ratio/token/log_max"] == line["ratio/token/log_min"] == line["policy/kl"] == 0.0
    active = json.loads((tmp_path / "run" / "active.json").read_text(encoding="utf-8"))
    assert (active["micro_batch"], active["micro_tokens"]) == (None, 40)


def test_stopped_in_the_middle_of_a_batch_equals_undisturbed(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["method=seq_alp", "trainer.kl=0.1", "trainer.micro_tokens=40", "trainer.steps=2"]
    train(train_config(*words, folder="whole"))
    plain, calls = Updater.update, iter(range(1, 100))

    def update(updater: Updater, *arguments: Any) -> Any:
        if next(calls) == 3:  # the first of the second step's two
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(updater, *arguments)

    monkeypatch.setattr(Updater, "update", update)
    with pytest.raises(Interrupted, match="1 steps and 1 updates"):
        train(train_config(*words, folder="broken"))
    train(train_config(*words, folder="broken"))
    for name in ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "model/model.safetensors"):
        whole, broken = (hashlib.sha256((tmp_path / run / name).read_bytes()) for run in ("whole", "broken"))
        assert whole.digest() == broken.digest(), name
