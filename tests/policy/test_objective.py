"""`group_advantages`, `policy_loss` and `kl_penalty`: values, gradients, clips, masks and normalisers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from alp.policy import group_advantages, kl_penalty, log_ratio, policy_loss

from . import reference
from .cases import JUNK, MARGIN, PROPERTY, Case, assert_close, cases, double, orders

every_aggregation = pytest.mark.parametrize("aggregation", reference.AGGREGATIONS)
every_level = pytest.mark.parametrize("level", reference.LEVELS)

CLIPS = [(0.2, 0.28, 10.0), (0.5, 3.0, 3.0), (0.5, 3.0, 10.0), (3e-4, 4e-4, 100.0), (0.2, 0.28, None)]
clips = st.sampled_from(CLIPS)


@st.composite
def token_values(draw: st.DrawFn, case: Case, low: float, high: float) -> list[list[float]]:
    """One value per token in [low, high], junk where the mask is 0."""
    junk = st.sampled_from(JUNK)
    return [[draw(st.floats(low, high)) if keep else draw(junk) for keep in row] for row in case.mask]


def options(clip: tuple[float, float, float | None]) -> dict[str, Any]:
    """Clip range and dual clip as keyword arguments."""
    return {"clip_low": clip[0], "clip_high": clip[1], "dual_clip": clip[2]}


def through_ratio(case: Case, level: str) -> tuple[Tensor, Tensor]:
    """Log-ratios of a case and the numerator leaf they hang on."""
    numerator, denominator, mask = case.tensors(grad=True)
    turns = torch.tensor(case.turn_ids) if level.startswith("turn") else None
    return log_ratio(numerator, denominator, mask, level=level, turn_ids=turns), numerator


@every_aggregation
@every_level
@PROPERTY
@given(case=cases(), clip=clips, data=st.data())
def test_value_gradient_and_metrics(
    aggregation: str, level: str, case: Case, clip: tuple[float, float, float | None], data: st.DataObject
) -> None:
    """Any slip from log-probs to loss: clip side, dual clip, weights, normaliser, gradient path, masked junk."""
    ratios = reference.log_ratio(case.numerator, case.denominator, case.mask, level, case.turn_ids)
    weights = data.draw(st.none() | token_values(case, 0.0, 4.0))
    per_token = data.draw(st.booleans())
    advantages = data.draw(token_values(case, -2.0, 2.0)) if per_token else case.advantages
    normaliser = data.draw(st.none() | st.integers(1, 50))
    expected = reference.policy_loss(
        ratios.values, advantages, case.mask, *clip, weights=weights, normaliser=normaliser, aggregation=aggregation
    )
    assume(min(ratios.margin, expected.margin) > MARGIN)
    log_r, numerator = through_ratio(case, level)
    loss, metrics = policy_loss(
        log_r,
        double(advantages),
        case.mask_tensor(),
        **options(clip),
        weights=None if weights is None else double(weights),
        normaliser=normaliser,
        aggregation=aggregation,
    )
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert_close(loss, expected.value, "loss", scale=max(expected.scale, 1e-6))
    (gradient,) = torch.autograd.grad(loss, numerator)
    wanted = double(expected.gradient) * double(ratios.slopes)
    assert_close(gradient, wanted.tolist(), "gradient", scale=1e-6)
    assert (gradient[wanted == 0] == 0).all(), "exactly zero where masked, clipped, dual-clipped, clamped or A = 0"
    for name, value in expected.metrics.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name


@every_aggregation
@PROPERTY
@given(case=cases(spread="close", some_valid=True), clip=clips, data=st.data())
def test_micro_batches_add_up(
    aggregation: str, case: Case, clip: tuple[float, float, float | None], data: st.DataObject
) -> None:
    """Micro-batches that are averaged each by their own count: the sum must be the mini-batch's loss and gradient."""
    log_r, numerator = through_ratio(case, "token")
    mask, advantages = case.mask_tensor(), double(case.advantages)
    whole, _ = policy_loss(log_r, advantages, mask, **options(clip), aggregation=aggregation)
    (gradient,) = torch.autograd.grad(whole, numerator, retain_graph=True)
    rows = sum(any(row) for row in case.mask)
    count = case.tokens if aggregation == "token-mean" else rows
    cut = data.draw(st.integers(0, len(case.mask)))
    parts = [slice(0, cut), slice(cut, None)]
    total = torch.zeros((), dtype=torch.float64)
    for part in (p for p in parts if log_r[p].shape[0]):
        loss, _ = policy_loss(
            log_r[part], advantages[part], mask[part], **options(clip), normaliser=count, aggregation=aggregation
        )
        total = total + loss
    (summed,) = torch.autograd.grad(total, numerator)
    assert_close(total, whole.item(), "sum of the losses", scale=1.0, tol=1e-12)
    assert_close(summed, gradient.tolist(), "sum of the gradients", scale=1e-3, tol=1e-12)


@every_aggregation
@PROPERTY
@given(case=cases(spread="close"), clip=clips, data=st.data())
def test_order_of_sequences_is_immaterial(
    aggregation: str, case: Case, clip: tuple[float, float, float | None], data: st.DataObject
) -> None:
    """Advantages or weights matched to the wrong rows."""
    order = data.draw(orders(case))
    shuffled = case.rows(order)
    results = []
    for c in (case, shuffled):
        log_r, numerator = through_ratio(c, "sequence")
        loss, metrics = policy_loss(
            log_r, double(c.advantages), c.mask_tensor(), **options(clip), aggregation=aggregation
        )
        results.append((loss.detach(), torch.autograd.grad(loss, numerator)[0], metrics))
    assert_close(results[1][0], results[0][0].item(), "loss", tol=1e-12)
    assert_close(results[1][1], results[0][1][order].tolist(), "gradient", tol=1e-12)
    assert results[1][2] == pytest.approx(results[0][2])


@PROPERTY
@given(case=cases(some_valid=True), c=st.floats(1.5, 20.0))
def test_dual_clip_acts_on_negative_advantages_only(case: Case, c: float) -> None:
    """A dual clip that also bounds positive advantages, or that is switched off."""
    log_r = double(reference.log_ratio(case.numerator, case.denominator, case.mask, "token").values)
    advantages, mask = double(case.advantages), case.mask_tensor()
    for b in range(len(case.mask)):
        one = (log_r[b : b + 1], advantages[b : b + 1], mask[b : b + 1])
        with_clip, metrics = policy_loss(*one, clip_low=0.2, clip_high=0.28, dual_clip=c)
        without, _ = policy_loss(*one, clip_low=0.2, clip_high=0.28, dual_clip=None)
        beyond = [math.exp(log_r[b, t]) > c for t in reference.valid_positions(case.mask[b])]
        if case.advantages[b] < 0 and any(beyond):
            assert with_clip < without
            assert metrics["ratio/dual_clipped"] > 0
            assert with_clip <= -c * case.advantages[b] * (1 + 1e-12)
        else:
            assert torch.equal(with_clip, without)
            assert metrics["ratio/dual_clipped"] == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "flag"),
    [
        (1.1, 2.0, -2.2, -2.2, None),
        (1.5, 2.0, -2.56, 0.0, "ratio/clipped_high"),
        (0.5, 2.0, -1.0, -1.0, None),
        (1.1, -2.0, 2.2, 2.2, None),
        (1.5, -2.0, 3.0, 3.0, None),
        (0.5, -2.0, 1.6, 0.0, "ratio/clipped_low"),
        (2.5, -2.0, 5.0, 5.0, None),
        (3.5, -2.0, 6.0, 0.0, "ratio/dual_clipped"),
        (3.5, 0.0, 0.0, 0.0, None),
        (0.1, 0.0, 0.0, 0.0, None),
    ],
)
def test_worked_table_of_clips(ratio: float, advantage: float, loss: float, slope: float, flag: str | None) -> None:
    """One token, clip 0.2 / 0.28, dual clip 3: loss, slope and the one metric that may fire."""
    leaf = double([[math.log(ratio)]]).requires_grad_()
    value, metrics = policy_loss(
        leaf, double([advantage]), torch.ones(1, 1), clip_low=0.2, clip_high=0.28, dual_clip=3.0
    )
    (gradient,) = torch.autograd.grad(value, leaf)
    assert_close(value, loss, "loss")
    assert_close(gradient, [[slope]], "slope")
    fired = {k for k in ("ratio/clipped_low", "ratio/clipped_high", "ratio/dual_clipped") if metrics[k]}
    assert fired == ({flag} if flag else set())


def test_fractions_are_exact() -> None:
    """Counts divided in float32: 1/3 becomes 0.33333334."""
    log_r = double([[0.0, 2.0, 0.0]])
    _, metrics = policy_loss(log_r, double([1.0]), torch.ones(1, 3), clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    assert metrics["ratio/clipped_high"] == pytest.approx(1 / 3, rel=1e-10)


@every_aggregation
@pytest.mark.parametrize("normaliser", [None, 7])
def test_nothing_valid_gives_a_differentiable_zero(aggregation: str, normaliser: int | None) -> None:
    """0 / 0, or a constant that a backward pass refuses, when a correction rejected everything."""
    leaf = torch.full((2, 3), math.nan, dtype=torch.float64, requires_grad=True)
    loss, metrics = policy_loss(
        leaf * 1.0,
        double([1.0, -1.0]),
        torch.zeros(2, 3),
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=10.0,
        weights=torch.full((2, 3), math.inf, dtype=torch.float64),
        normaliser=normaliser,
        aggregation=aggregation,
    )
    assert loss.item() == 0.0
    loss.backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    assert all(math.isfinite(value) for value in metrics.values())


@PROPERTY
@given(
    members=st.lists(st.tuples(st.integers(-3, 3), st.integers(-8, 8), st.booleans()), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_group_advantages_match(members: list[tuple[int, int, bool]], order: Any) -> None:
    """Biased std, a wrong epsilon, groups taken to be contiguous, sorted or of equal size."""
    sequences = [(g, r / 8) for g, r, third in members for r in ([r, r + 5, r - 1] if third else [r, 1 - r])]
    order.shuffle(sequences)
    ids, rewards = [g for g, _ in sequences], [r for _, r in sequences]
    result = group_advantages(double(rewards), torch.tensor(ids))
    assert_close(result, reference.group_advantages(rewards, ids), "advantages")
    turned = group_advantages(double(rewards[::-1]), torch.tensor(ids[::-1]))
    assert_close(turned.flip(0), result.tolist(), "reversed order")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@PROPERTY
@given(reward=st.floats(-1e3, 1e3), size=st.integers(2, 9))
def test_equal_rewards_give_exactly_zero(dtype: torch.dtype, reward: float, size: int) -> None:
    """mean(0.1, 0.1, 0.1) - 0.1 is 1.4e-17, which the epsilon turns into a gradient."""
    rewards = torch.tensor([reward] * size + [0.0, 1.0], dtype=dtype)
    advantages = group_advantages(rewards, torch.tensor([4] * size + [9, 9]))
    assert torch.equal(advantages[:size], torch.zeros(size, dtype=dtype))
    assert advantages[size] < 0 < advantages[size + 1]


@pytest.mark.parametrize("estimator", reference.ESTIMATORS)
@PROPERTY
@given(case=cases(spread="close"))
def test_kl_values_and_gradient(estimator: str, case: Case) -> None:
    """A sign, a missing half, a gradient stopped, or junk at masked positions."""
    log_probs, ref, mask = case.tensors(grad=True)
    values = kl_penalty(log_probs, ref, mask, estimator=estimator)
    expected, slopes = reference.kl_penalty(case.numerator, case.denominator, case.mask, estimator)
    assert_close(values, expected, estimator)
    (gradient,) = torch.autograd.grad(values.sum(), log_probs)
    assert_close(gradient, slopes, f"gradient of {estimator}")
    assert (gradient[~torch.tensor(case.mask)] == 0).all()


def test_bad_rewards_and_groups_are_refused() -> None:
    """NaN rewards spread over their group; a group of one has no std."""
    pair = torch.tensor([0, 0])
    with pytest.raises(ValueError, match="rewards"):
        group_advantages(double([math.nan, 1.0]), pair)
    with pytest.raises(ValueError, match="rewards"):
        group_advantages(double([[0.0, 1.0]]), pair)
    for ids in (torch.tensor([0, 0, 0]), torch.tensor([[0, 0]]), torch.tensor([0, 1])):
        with pytest.raises(ValueError, match="group_ids"):
            group_advantages(double([0.0, 1.0]), ids)


LOSS = {"log_ratio": torch.zeros(2, 3), "advantages": torch.zeros(2), "mask": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_ratio", torch.zeros(3)),
        ("log_ratio", torch.zeros(2, 3, dtype=torch.long)),
        ("advantages", torch.zeros(3)),
        ("advantages", torch.zeros(2, 1)),
        ("advantages", torch.zeros(())),
        ("mask", torch.ones(2, 1)),
        ("mask", torch.ones(3)),
        ("weights", torch.ones(2)),
        ("weights", torch.ones(2, 1)),
        ("aggregation", "mean"),
        ("aggregation", ""),
    ],
)
def test_bad_loss_arguments_are_refused(name: str, value: Any) -> None:
    """Broadcasting a wrong shape or falling through an unknown aggregation."""
    with pytest.raises(ValueError, match=name):
        policy_loss(**(LOSS | {name: value}), clip_low=0.2, clip_high=0.28, dual_clip=10.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("estimator", "k4"),
        ("ref_log_probs", torch.zeros(2, 4)),
        ("log_probs", torch.zeros(2, 3, dtype=torch.long)),
        ("mask", torch.ones(2)),
    ],
)
def test_bad_kl_arguments_are_refused(name: str, value: Any) -> None:
    """Broadcasting a wrong shape or falling through an unknown estimator."""
    good = {"log_probs": torch.zeros(2, 3), "ref_log_probs": torch.zeros(2, 3), "mask": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=name):
        kl_penalty(**(good | {"estimator": "k3"} | {name: value}))
