"""One optimizer step: the controls are exact, micro-batches change nothing, bad steps are skipped and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from alp import models
from alp.configuration import compose
from alp.policy import LayerwisePerturbation
from alp.rollout.episodes import Trajectory
from alp.training.batch import Batch, collate
from alp.training.forward import frozen_log_probs
from alp.training.update import Updater, UpdateResult

CPU = torch.device("cpu")


def _batch(model: Any, sequences: int = 8) -> Batch:
    """Random rows of different lengths with a real π_old, a shifted μ, and advantages of both signs."""
    random = torch.Generator().manual_seed(0)
    trajectories = []
    for row in range(sequences):
        length = 3 + row % 5
        ids = torch.randint(2, 16, (4 + length,), generator=random).tolist()
        trajectories.append(
            Trajectory(
                ids[:4],
                ids[4:],
                [-1.0] * length,
                [1] * length,
                [0] * length,
                finished=True,
                reward=float(row % 2),
                group=row // 4,
            )
        )
    batch = collate(trajectories, pad_token_id=0, first_sequence=40, device=CPU)
    old, _ = frozen_log_probs(model, batch, 1.0, None)
    shift = 0.3 * torch.randn(old.shape, generator=random)
    advantages = torch.randn(sequences, generator=random)
    return batch.with_(
        old_log_probs=old, rollout_log_probs=torch.where(batch.response_mask, old + shift, 0.0), advantages=advantages
    )


def _step(
    base_model: Path, *words: str, batch: Batch | None = None, index: int = 3, updates: int = 1
) -> tuple[dict[str, torch.Tensor], torch.Tensor, UpdateResult]:
    """Weights after some updates, the last one's raw log-ratios, and what it did."""
    job = compose.load("train", ["trainer.lr=1e-3", *words])
    model = models.load_model(base_model, CPU)
    settings = job.method.perturbation
    noise = None
    if settings is not None:
        noise = LayerwisePerturbation(
            model,
            layers=settings.layers,
            scale=settings.scale,
            std=settings.std,
            learnable=settings.learnable,
            dtype=settings.dtype,
            seed=9,
        )
    updater = Updater(model, job.method, job.trainer, perturbation=noise, temperature=1.0, reference=job.trainer.kl > 0)
    for number in range(index, index + updates):
        raw, result = updater.update(batch if batch is not None else _batch(model), number)
    return {name: value.detach().clone() for name, value in model.named_parameters()}, raw, result


def _updater(base_model: Path, *words: str) -> Updater:
    job = compose.load("train", list(words))
    model = models.load_model(base_model, CPU)
    noise = LayerwisePerturbation(model, std=0.02, seed=9) if job.method.perturbation is not None else None
    return Updater(model, job.method, job.trainer, perturbation=noise, temperature=1.0, reference=job.trainer.kl > 0)


def _moments(
    base_model: Path, *words: str, batch: Batch | None = None
) -> tuple[dict[Any, Any], torch.Tensor, UpdateResult]:
    """AdamW's state after one update of weights and noise, where the gradients show; raw log-ratios; the result."""
    updater = _updater(base_model, *words)
    raw, result = updater.update(batch if batch is not None else _batch(updater.model), 3)
    return dict(updater.optimizer.state), raw, result


def _gradient(base_model: Path, *words: str, batch: Batch | None = None) -> torch.Tensor:
    """The update's clipped gradient of the weights, flat."""
    moments, _, _ = _moments(base_model, *words, batch=batch)
    return torch.cat([state["exp_avg"].flatten() for state in moments.values()]) * 10


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("alp", "bypass"),
    [
        (["method=seq_alp", "variant=sigma0"], ["method=seq_bypass"]),
        (["method=token_alp", "variant=sigma0"], ["method=token_bypass", "variant=clip_wide"]),
        (["method=seq_alp", "variant=relative", "method.perturbation.std=0"], ["method=seq_bypass"]),
        (["method=seq_alp", "variant=authors", "method.perturbation.std=0"], ["method=seq_bypass"]),
    ],
)
def test_sigma0_is_bypass_bit_for_bit(base_model: Path, alp: list[str], bypass: list[str]) -> None:
    left, right = _step(base_model, *alp, updates=3), _step(base_model, *bypass, updates=3)
    assert _same(left[0], right[0])
    assert torch.equal(left[1], right[1])
    assert left[2].metrics == right[2].metrics


@pytest.mark.parametrize("pieces", ["trainer.micro_batch=3", "trainer.micro_tokens=24"])
@pytest.mark.parametrize("method", compose.choices("method"))
def test_micro_batches_change_nothing_but_rounding(base_model: Path, method: str, pieces: str) -> None:
    (whole, whole_raw, first), (parts, parts_raw, second) = (
        _moments(base_model, f"method={method}", *words) for words in ([], [pieces])
    )
    # AdamW's first step is ± lr wherever a gradient is near 0, so compare its first moments: a tenth of the clipped
    # gradient.
    left, right = (torch.cat([state["exp_avg"].flatten() for state in moments.values()]) for moments in (whole, parts))
    assert float((left - right).norm() / left.norm()) < 1e-4
    assert first.metrics.keys() == second.metrics.keys()
    for name, value in first.metrics.items():
        assert second.metrics[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
    torch.testing.assert_close(whole_raw, parts_raw, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["m2po", "bapo", "apmpo", "dppo_kl", "opsm"])
def test_micro_batches_of_a_stale_batch_are_surveyed_as_one(base_model: Path, method: str) -> None:
    """A bound or a mask that a micro-batch finds for itself: here the policy has moved, so that they act."""
    model = models.load_model(base_model, CPU)
    batch = _batch(model)
    shift = 0.5 * torch.randn(batch.old_log_probs.shape, generator=torch.Generator().manual_seed(1))
    batch = batch.with_(old_log_probs=torch.where(batch.response_mask, batch.old_log_probs + shift, 0.0))
    whole, parts = (
        _gradient(base_model, f"method={method}", "trainer.max_grad_norm=1e9", *words, batch=batch)
        for words in ([], ["trainer.micro_batch=3"])
    )
    assert float((whole - parts).norm() / whole.norm()) < 1e-4
    plain = _gradient(base_model, "method=grpo_unclipped", "trainer.max_grad_norm=1e9", batch=batch)
    assert float((whole - plain).norm() / plain.norm()) > 1e-3


@pytest.mark.parametrize("method", compose.choices("method"))
def test_every_method_moves_the_weights(base_model: Path, method: str) -> None:
    before = {name: value.detach() for name, value in models.load_model(base_model, CPU).named_parameters()}
    after, _, result = _step(base_model, f"method={method}")
    assert not result.skipped
    assert not _same(before, after)


def test_noise_learns_in_its_own_group_and_stays_in_bounds(base_model: Path) -> None:
    job = compose.load("train", ["method=token_alp", "method.perturbation.lr=5.0"])
    model = models.load_model(base_model, CPU)
    noise = LayerwisePerturbation(model, std=0.02, seed=1)
    updater = Updater(model, job.method, job.trainer, perturbation=noise, temperature=1.0, reference=False)
    decay = [group["weight_decay"] for group in updater.optimizer.param_groups]
    assert decay == [job.trainer.weight_decay, 0.0]
    _, result = updater.update(_batch(model), 0)
    assert bool((noise.std != 0.02).all())
    assert bool(((noise.std >= 1e-8 * 0.999) & (noise.std <= 1.001)).all()), "lr 5 in log σ must run into a bound"
    assert all(abs(rms / 0.02 - 1) < 0.1 for rms in result.noise["realised_rms"])


def test_kl_pulls_towards_the_reference(base_model: Path) -> None:
    model = models.load_model(base_model, CPU)
    batch = _batch(model)
    reference = batch.with_(ref_log_probs=batch.old_log_probs - 0.5 * batch.response_mask)
    _, _, result = _step(base_model, "trainer.kl=0.1", batch=reference)
    x = 0.5
    assert result.metrics["policy/kl"] == pytest.approx(2.718281828 ** (-x) + x - 1, rel=1e-4)


def test_weights_mask_and_penalty_reach_the_gradient(base_model: Path) -> None:
    """Each against the gradient of the same loss written out: Σ w m ℓ / Σ m + β Σ m k3 / Σ m with unclipped token
    ratios."""
    model = models.load_model(base_model, CPU)
    batch = _batch(model)
    keep = batch.response_mask & (torch.arange(batch.input_ids.shape[1]) % 2 == 0)
    weights = torch.linspace(0.5, 1.5, keep.numel()).reshape(keep.shape)
    full = batch.with_(
        loss_mask=keep, weights=weights, ref_log_probs=batch.old_log_probs - 0.3, rollout_log_probs=batch.old_log_probs
    )
    gradient = _gradient(base_model, "method=grpo", "trainer.kl=0.5", "trainer.max_grad_norm=1e9", batch=full)

    from alp.training.forward import token_log_probs

    log_probs, _ = token_log_probs(model, batch, 1.0)
    ratio = (log_probs - batch.old_log_probs).exp()
    x = log_probs - full.ref_log_probs
    policy = -(weights * ratio * batch.advantages.unsqueeze(-1))[keep].sum() / keep.sum()
    penalty = (torch.exp(-x) + x - 1)[keep].sum() / keep.sum()
    (policy + 0.5 * penalty).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert float((gradient - expected).norm() / expected.norm()) < 1e-4


def test_nan_under_noise_is_skipped_like_any_other(base_model: Path) -> None:
    updater = _updater(base_model, "method=token_alp")
    with torch.no_grad():
        updater.model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    batch = _batch(models.load_model(base_model, CPU))
    _, result = updater.update(batch, 0)
    assert result.skipped
    assert updater.skipped_in_a_row == 1


def _poisoned(batch: Batch, value: float) -> Batch:
    advantages = batch.advantages.clone()
    advantages[0] = value
    return batch.with_(advantages=advantages)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_gradients_are_skipped_and_fail_after_ten_in_a_row(base_model: Path, value: float) -> None:
    job = compose.load("train", [])
    model = models.load_model(base_model, CPU)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    updater = Updater(model, job.method, job.trainer, perturbation=None, temperature=1.0, reference=False)
    batch = _batch(model)
    for index in range(9):
        _, result = updater.update(_poisoned(batch, value), index)
        assert result.skipped
        assert all(abs(figure) < float("inf") for figure in result.metrics.values())
    assert _same(before, dict(model.named_parameters()))
    with pytest.raises(RuntimeError, match="10 updates skipped in a row: the gradient norm is"):
        updater.update(_poisoned(batch, value), 9)


def test_a_good_step_resets_the_count(base_model: Path) -> None:
    job = compose.load("train", [])
    model = models.load_model(base_model, CPU)
    updater = Updater(model, job.method, job.trainer, perturbation=None, temperature=1.0, reference=False)
    batch = _batch(model)
    updater.update(_poisoned(batch, float("nan")), 0)
    assert updater.skipped_in_a_row == 1
    assert not updater.update(batch, 1)[1].skipped
    assert updater.skipped_in_a_row == 0


def test_an_empty_loss_is_skipped_with_loss_zero(base_model: Path) -> None:
    model = models.load_model(base_model, CPU)
    batch = _batch(model)
    empty = batch.with_(loss_mask=torch.zeros_like(batch.loss_mask))
    weights, _, result = _step(base_model, batch=empty, updates=12)
    assert result.skipped, "and twelve in a row do not fail the run: nothing diverged"
    assert result.metrics["policy/loss"] == 0.0
    assert _same(weights, dict(model.named_parameters()))


def test_rows_crop_and_keep_alignment(base_model: Path, train_config: Callable[..., Any]) -> None:
    batch = _batch(models.load_model(base_model, CPU))
    short = batch.rows(torch.tensor([0, 5]))
    assert short.input_ids.shape == (2, int(batch.lengths[[0, 5]].max()))
    for item in fields(Batch):
        value, part = getattr(batch, item.name), getattr(short, item.name)
        assert torch.equal(value[[0, 5]][:, : part.shape[1]] if value.dim() == 2 else value[[0, 5]], part)
