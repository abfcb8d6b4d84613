"""`rollout_correction`: weights, masks, veto and metrics of the two-ratio baselines."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from alp.policy import policy_loss, rollout_correction

from . import reference
from .cases import MARGIN, PROPERTY, Case, assert_close, cases, double, orders

every_level = pytest.mark.parametrize("level", reference.CORRECTION_LEVELS)
every_kind = pytest.mark.parametrize("kind", reference.KINDS)

uppers = st.one_of(st.floats(0.5, 8.0), st.just(1.0), st.just(1e3))
lowers = st.one_of(st.none(), st.just(0.0), st.floats(0.01, 0.45))
vetoes = st.one_of(st.none(), st.none(), st.floats(1e-6, 0.9))


def corrected(
    case: Case,
    kind: str,
    level: str,
    upper: float | None = None,
    lower: float | None = None,
    veto: float | None = None,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The correction under test of a case: numerator = old, denominator = rollout; the mask as bools."""
    old, rollout, mask = case.tensors(grad=True)
    weights, kept, metrics = rollout_correction(
        old, rollout, mask, kind=kind, level=level, upper=upper, lower=lower, veto=veto
    )
    assert weights.is_floating_point()
    assert weights.shape == kept.shape == mask.shape
    assert not weights.requires_grad, "the correction is detached"
    return weights, kept.bool(), metrics


@every_level
@every_kind
@PROPERTY
@given(case=cases(), upper=uppers, lower=lowers, veto=vetoes)
def test_weights_mask_and_metrics(
    level: str, kind: str, case: Case, upper: float, lower: float | None, veto: float | None
) -> None:
    """A bound on the reciprocal, a wrong level, a lost clamp, a veto on the aggregate, a masked value that leaks in."""
    bounds: dict[str, float | None] = {
        "upper": None if kind == "none" else upper,
        "lower": lower if kind.startswith("mask") else None,
    }
    expected = reference.rollout_correction(
        case.numerator, case.denominator, case.mask, kind, level, **bounds, veto=veto
    )
    assume(expected.margin > MARGIN)
    weights, kept, metrics = corrected(case, kind, level, **bounds, veto=veto)
    assert kept.tolist() == expected.mask
    wanted = double(expected.weights)
    assert_close(weights[kept], wanted[kept].tolist(), "weights", scale=0.0)
    assert all(type(value) is float for value in metrics.values())
    for name, value in expected.metrics.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6), name


@every_level
@PROPERTY
@given(case=cases(some_valid=True), upper=uppers, lower=lowers)
def test_the_two_masks_differ_by_the_normaliser_only(level: str, case: Case, upper: float, lower: float | None) -> None:
    """`mask` divides by the kept tokens, `mask_keep_denominator` by all: same sum of terms, same gradient direction."""
    log_r = double([[0.3 * math.sin(b + 2 * t) for t in range(len(row))] for b, row in enumerate(case.mask)])
    sums = []
    for kind in ("mask", "mask_keep_denominator"):
        weights, kept, _ = corrected(case, kind, level, upper, lower)
        leaf = log_r.clone().requires_grad_()
        loss, _ = policy_loss(
            leaf, double(case.advantages), kept, clip_low=0.1, clip_high=0.1, dual_clip=10.0, weights=weights
        )
        (gradient,) = torch.autograd.grad(loss, leaf)
        count = int(kept.sum())
        sums.append((loss.detach() * count, gradient * count))
        if kind == "mask_keep_denominator":
            assert count == case.tokens, "rejected tokens stay in the normaliser"
    scale = max(1.0, float(sums[1][1].abs().sum()) * 10)
    assert_close(sums[0][0], sums[1][0].item(), "sum of the terms", scale=scale)
    assert_close(sums[0][1], sums[1][1].tolist(), "gradient", scale=1e-2)


@every_level
@every_kind
@PROPERTY
@given(case=cases(spread="close"), data=st.data())
def test_rows_are_independent(level: str, kind: str, case: Case, data: st.DataObject) -> None:
    """A correction that depends on the other sequences of the batch."""
    order = data.draw(orders(case))
    upper = None if kind == "none" else 1.3
    weights, kept, metrics = corrected(case, kind, level, upper, veto=0.2)
    weights_2, kept_2, metrics_2 = corrected(case.rows(order), kind, level, upper, veto=0.2)
    assert torch.equal(kept_2, kept[order])
    assert torch.equal(weights_2[kept_2], weights[order][kept[order]])
    assert metrics_2 == pytest.approx(metrics)


@every_level
@every_kind
@pytest.mark.parametrize("bounds", [(0.5, 1.0), (1.0, 2.0)])
def test_closed_bounds_and_strict_veto(level: str, kind: str, bounds: tuple[float, float]) -> None:
    """On-policy (ratio exactly 1) with a bound at 1: 1 lies inside [0.5, 1] and [1, 2], and 1 < 1 is no veto."""
    log_probs = double([[-0.3, -1.7, -math.pi], [-0.1, -0.2, -0.3]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    lower = bounds[0] if kind.startswith("mask") else None
    upper = None if kind == "none" else bounds[1]
    weights, kept, metrics = rollout_correction(
        log_probs, log_probs, mask, kind=kind, level=level, upper=upper, lower=lower, veto=1.0
    )
    assert torch.equal(kept.bool(), mask)
    assert torch.equal(weights[mask], torch.ones(5, dtype=torch.float64))
    assert metrics["correction/masked_tokens"] == metrics["correction/masked_sequences"] == 0.0


@pytest.mark.parametrize("kind", ["mask", "mask_keep_denominator"])
def test_fractions_are_exact(kind: str) -> None:
    """Counts divided in float32 (1/3 becomes 0.33333334), or rejected tokens that one kind does not report."""
    old = double([[-1.0, -1.0, -5.0], [-5.0, -1.0, -1.0], [-1.0, -1.0, -1.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    metrics = rollout_correction(old, torch.full_like(old, -1.0), mask, kind=kind, level="token", lower=0.5, upper=2.0)[
        2
    ]
    assert metrics["correction/masked_tokens"] == pytest.approx(1 / 3, rel=1e-10)
    assert metrics["correction/masked_sequences"] == pytest.approx(1 / 3, rel=1e-10)


@every_kind
def test_veto_looks_at_single_tokens(kind: str) -> None:
    """A veto on the sequence ratio: one token at 1/100 beside one at 100 has a product of 1 and must still go."""
    old = double([[-5.0, -1.0], [-1.0, -1.0], [-9.0, -1.0]])
    shift = math.log(100.0)
    rollout = double([[-5.0 + shift, -1.0 - shift], [-1.0, -1.0], [-1.0, -1.0]])
    mask = torch.tensor([[True, True], [True, True], [False, True]])
    upper = None if kind == "none" else 5.0
    _, kept, metrics = rollout_correction(old, rollout, mask, kind=kind, level="sequence", upper=upper, veto=0.1)
    assert kept.tolist() == [[False, False], [True, True], [False, True]]
    assert metrics["correction/masked_tokens"] == pytest.approx(2 / 5)
    assert metrics["correction/masked_sequences"] == pytest.approx(1 / 3)


def test_bounds_are_on_old_over_rollout() -> None:
    """Bounds on the reciprocal: ratios 4 and 1/4 against [0, 2] and [0.5, 8]."""
    old, rollout = double([[math.log(0.4), math.log(0.1)]]), double([[math.log(0.1), math.log(0.4)]])
    mask = torch.ones(1, 2)
    weights, kept, _ = rollout_correction(old, rollout, mask, kind="mask", level="token", upper=2.0)
    assert kept.bool().tolist() == [[False, True]]
    assert weights[0, 1].item() == pytest.approx(0.25)
    weights, kept, _ = rollout_correction(old, rollout, mask, kind="mask", level="token", upper=8.0, lower=0.5)
    assert kept.bool().tolist() == [[True, False]]
    assert weights[0, 0].item() == pytest.approx(4.0)
    weights, kept, _ = rollout_correction(old, rollout, mask, kind="truncate", level="token", upper=2.0)
    assert kept.bool().all()
    assert weights.tolist() == [[2.0, pytest.approx(0.25)]]


@every_level
@every_kind
def test_nothing_valid(level: str, kind: str) -> None:
    """A mean over nothing."""
    junk = torch.full((2, 3), math.nan, dtype=torch.float64)
    upper = None if kind == "none" else 2.0
    _, kept, metrics = rollout_correction(junk, junk, torch.zeros(2, 3), kind=kind, level=level, upper=upper, veto=0.5)
    assert not kept.bool().any()
    assert metrics["correction/masked_tokens"] == metrics["correction/masked_sequences"] == 0.0


GOOD = {"old_log_probs": torch.zeros(2, 3), "rollout_log_probs": torch.zeros(2, 3), "mask": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("old_log_probs", torch.zeros(3)),
        ("old_log_probs", torch.zeros(2, 3, dtype=torch.long)),
        ("rollout_log_probs", torch.zeros(2, 4)),
        ("rollout_log_probs", torch.zeros(1, 3)),
        ("rollout_log_probs", torch.zeros(2, 3, dtype=torch.long)),
        ("rollout_log_probs", torch.tensor([[0.0, math.nan, 0.0], [0.0, 0.0, 0.0]])),
        ("mask", torch.ones(3)),
        ("mask", torch.ones(2, 2)),
    ],
)
@every_kind
def test_bad_tensors_are_refused(kind: str, name: str, value: Tensor) -> None:
    """Broadcasting, casting or carrying on with NaN instead of naming the argument."""
    arguments = GOOD | {name: value}
    upper = None if kind == "none" else 2.0
    with pytest.raises(ValueError, match=name):
        rollout_correction(*arguments.values(), kind=kind, level="token", upper=upper)


def test_bad_options_are_refused() -> None:
    """A misspelt option or a missing bound would switch the correction off in silence."""
    for kind in ("tis", "masked", "", "Mask"):
        with pytest.raises(ValueError, match="kind"):
            rollout_correction(*GOOD.values(), kind=kind, level="token", upper=2.0)
    for kind in ("truncate", "mask", "mask_keep_denominator"):
        for level in ("prefix", "turn", "product", ""):
            with pytest.raises(ValueError, match="level"):
                rollout_correction(*GOOD.values(), kind=kind, level=level, upper=2.0)
        with pytest.raises(ValueError, match="upper"):
            rollout_correction(*GOOD.values(), kind=kind, level="token")
