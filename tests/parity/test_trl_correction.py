"""Importance-sampling correction of π_old/μ against TRL's `vllm_importance_sampling_*`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from alp.policy import mismatch_diagnostics, rollout_correction
from tests.policy.cases import assert_close

from .cases import FIGURE, SEEDS, TOLERANCE, chosen_case, random_case
from .our_side import ours
from .trl_side import TrlSide

every_seed = pytest.mark.parametrize("seed", SEEDS)

# TRL's mode and bounds, and the same in our words.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token_truncate": ({"clip_max": 1.3}, {"kind": "truncate", "level": "token", "upper": 1.3}),
    "sequence_truncate": ({"clip_max": 1.2}, {"kind": "truncate", "level": "sequence", "upper": 1.2}),
    "token_mask": ({"clip_max": 1.3}, {"kind": "mask_keep_denominator", "level": "token", "upper": 1.3}),
    "sequence_mask": ({"clip_max": 1.2}, {"kind": "mask_keep_denominator", "level": "sequence", "upper": 1.2}),
    "token_mask, two-sided": (
        {"clip_min": 0.7, "clip_max": 1.3},
        {"kind": "mask_keep_denominator", "level": "token", "lower": 0.7, "upper": 1.3},
    ),
    "sequence_mask, two-sided": (
        {"clip_min": 0.4, "clip_max": 2.5},
        {"kind": "mask_keep_denominator", "level": "sequence", "lower": 0.4, "upper": 2.5},
    ),
}
every_mode = pytest.mark.parametrize("mode", MODES)
MASKS = [mode for mode in MODES if "mask" in mode]
every_mask = pytest.mark.parametrize("mode", MASKS)


def settings(mode: str, **bounds: float | None) -> dict[str, Any]:
    """TRL's configuration of a correction, with the bounds of ``MODES`` unless given."""
    bounds = {"clip_min": None, "clip_max": None, **(bounds or MODES[mode][0])}
    named = {f"vllm_importance_sampling_{name}": value for name, value in bounds.items()}
    return {"correct": True, "vllm_importance_sampling_mode": mode.split(",")[0], **named}


@every_seed
@every_mode
def test_weights(trl_side: TrlSide, mode: str, seed: int) -> None:
    """Another ratio, level, bound or mask: TRL's sequence weight is the product over tokens that count, bounds are on
    π_old/μ."""
    case = random_case(seed)
    weights = trl_side.score(case, **settings(mode)).weights.expand(case.mask.shape)
    correction = MODES[mode][1]
    mine, kept, _ = rollout_correction(case.old, case.rollout, case.mask, **correction)
    assert kept.equal(case.mask)
    assert_close(mine[case.mask], weights[case.mask], "weights", tol=TOLERANCE)
    bounded = 0.0 if "mask" in mode else correction["upper"]
    assert 0 < (weights[case.mask] == bounded).sum() < case.mask.sum(), "the bound touches nothing, or everything"


@every_seed
@every_mode
@pytest.mark.parametrize("loss_type", ["bnpo", "grpo"])
def test_loss_and_gradient(trl_side: TrlSide, loss_type: str, mode: str, seed: int) -> None:
    """Weights that enter before a clip, carry a gradient, or (`mask_keep_denominator`) change the normaliser."""
    case = random_case(seed)
    scored = trl_side.score(case, **settings(mode), loss_type=loss_type, delta=1.5)
    loss, gradient = scored.loss()
    aggregation, count = ("token-mean", None) if loss_type == "bnpo" else ("seq-mean-token-mean", case.rows)
    mine = ours(
        case, scored.advantages, dual_clip=1.5, aggregation=aggregation, normaliser=count, correction=MODES[mode][1]
    )
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)


@every_seed
@pytest.mark.parametrize("mode", ["sequence_truncate", "sequence_mask"])
def test_sequence_weights_on_a_sequence_ratio(trl_side: TrlSide, mode: str, seed: int) -> None:
    """The two sequence levels mixed up: TRL puts a product weight on a geometric ratio, and so do these settings of
    ours."""
    case = random_case(seed)
    scored = trl_side.score(case, **settings(mode), loss_type="bnpo", importance_sampling_level="sequence")
    loss, gradient = scored.loss()
    mine = ours(case, scored.advantages, level="sequence_geometric", correction=MODES[mode][1])
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)
    geometric = ours(
        case,
        scored.advantages,
        level="sequence_geometric",
        correction={**MODES[mode][1], "level": "sequence_geometric"},
    )
    assert abs(geometric.loss - loss) > 1e-4, "a geometric weight would have passed as well"


@every_seed
def test_difference_token_weights_on_a_sequence_ratio(trl_side: TrlSide, seed: int) -> None:
    """TRL's geometric ratio shares a row's gradient equally; ours gives each token its own weight's share. Loss and row
    sums agree."""
    case = random_case(seed)
    scored = trl_side.score(case, **settings("token_truncate"), loss_type="bnpo", importance_sampling_level="sequence")
    loss, gradient = scored.loss()
    mine = ours(case, scored.advantages, level="sequence_geometric", correction=MODES["token_truncate"][1])
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient.sum(-1), gradient.sum(-1), "gradient of a row", tol=TOLERANCE)
    assert (mine.gradient - gradient).abs().max() > 1e-3


@every_seed
@every_mask
def test_difference_mask_leaves_the_normaliser(trl_side: TrlSide, mode: str, seed: int) -> None:
    """TRL's masks set the weight to 0 and go on dividing by all tokens; our `mask` divides by those left."""
    case = random_case(seed)
    scored = trl_side.score(case, **settings(mode), loss_type="bnpo")
    loss, gradient = scored.loss()
    mine = ours(case, scored.advantages, correction={**MODES[mode][1], "kind": "mask"})
    assert 0 < mine.tokens < case.mask.sum()
    assert_close(mine.loss * mine.tokens, loss * case.mask.sum(), "loss", tol=TOLERANCE)
    assert_close(mine.gradient * mine.tokens, gradient * case.mask.sum(), "gradient", tol=TOLERANCE)


@every_seed
def test_difference_mask_in_a_mean_of_sequences(trl_side: TrlSide, seed: int) -> None:
    """Under `grpo` a rejected sequence still counts as one in TRL's mean; with our `mask` it does not."""
    case = random_case(seed)
    scored = trl_side.score(case, **settings("sequence_mask"), loss_type="grpo")
    loss, _ = scored.loss()
    mine = ours(
        case,
        scored.advantages,
        aggregation="seq-mean-token-mean",
        correction={**MODES["sequence_mask"][1], "kind": "mask"},
    )
    left = int(mine.kept.any(-1).sum())
    assert 0 < left < case.occupied
    assert_close(mine.loss * left, loss * case.rows, "loss", tol=TOLERANCE)


def test_bounds_are_inclusive_and_on_old_over_rollout(trl_side: TrlSide) -> None:
    """A bound on the reciprocal μ/π_old, or one that rejects its own value."""
    ratios = [4.0, 0.25, 1.0]
    case = chosen_case([0.0] * 3, [math.log(r) for r in ratios])
    for mode, bounds, kept in (
        ("token_mask", {"clip_max": 3.0}, [False, True, True]),
        ("token_mask", {"clip_max": 1.0}, [False, True, True]),
        ("token_mask", {"clip_min": 1.0, "clip_max": 3.0}, [False, False, True]),
    ):
        weights = trl_side.score(case, **settings(mode, **bounds)).weights
        lower, upper = bounds.get("clip_min"), bounds["clip_max"]
        mine, _, _ = rollout_correction(
            case.old, case.rollout, case.mask, kind="mask_keep_denominator", level="token", lower=lower, upper=upper
        )
        assert_close(
            weights[0], [r if keep else 0.0 for r, keep in zip(ratios, kept, strict=True)], "TRL", tol=TOLERANCE
        )
        assert_close(mine, weights, "ours", tol=TOLERANCE)


def test_truncation_has_two_sides(trl_side: TrlSide) -> None:
    """A lower bound that drops, or that is on the reciprocal: TRL's `*_truncate` lifts small weights to `clip_min`."""
    case = chosen_case([0.0, 0.0], [math.log(0.1), math.log(5.0)])
    weights = trl_side.score(case, **settings("token_truncate", clip_min=0.5, clip_max=2.0)).weights
    assert_close(weights[0], [0.5, 2.0], "TRL", tol=TOLERANCE)
    mine, _, _ = rollout_correction(
        case.old, case.rollout, case.mask, kind="truncate", level="token", lower=0.5, upper=2.0
    )
    assert_close(mine, weights.expand_as(mine), "ours", tol=TOLERANCE)


def test_difference_unbounded_weights(trl_side: TrlSide) -> None:
    """Without `clip_max` TRL's weights know no limit; ours need an upper bound, and stop at e^20 whatever it is."""
    case = chosen_case([0.0], [25.0])
    weights = trl_side.score(case, **settings("token_mask", clip_min=0.5)).weights
    assert_close(weights[0, 0], math.exp(25), "TRL", tol=TOLERANCE)
    mine, _, _ = rollout_correction(case.old, case.rollout, case.mask, kind="truncate", level="token", upper=1e30)
    assert_close(mine[0, 0], math.exp(20), "ours", tol=TOLERANCE)
    with pytest.raises(ValueError, match="upper"):
        rollout_correction(case.old, case.rollout, case.mask, kind="mask", level="token", lower=0.5)


def test_difference_missing_sampling_log_probs(trl_side: TrlSide) -> None:
    """TRL gives a token whose sampling log-prob is NaN the weight 1; we refuse it, since nobody measured it."""
    case = chosen_case([0.0] * 2, [0.5] * 2)
    case.rollout[0, 1] = torch.nan
    weights = trl_side.score(case, **settings("token_truncate", clip_max=9.0)).weights
    assert_close(weights[0], [math.exp(0.5), 1.0], "TRL", tol=TOLERANCE)
    with pytest.raises(ValueError, match="rollout_log_probs"):
        rollout_correction(case.old, case.rollout, case.mask, kind="truncate", level="token", upper=9.0)


def test_difference_veto(trl_side: TrlSide) -> None:
    """TRL has no veto: its `off_policy_mask_threshold` goes by a row's mean log μ/π_θ, spares positive advantages and
    keeps the row in the normaliser. Ours goes by the smallest π_old/μ, whatever the advantage, and out of the
    normaliser."""
    case = chosen_case([0.0] * 4, [0.0, 0.0, 0.0, math.log(1e-3)])
    scored = trl_side.score(
        case, **settings("token_truncate", clip_max=2.0), loss_type="bnpo", off_policy_mask_threshold=1.0
    )
    _, gradient = scored.loss()
    weights = torch.tensor([1.0, 1.0, 1.0, 1e-3], dtype=torch.float64)
    assert_close(gradient[0], -scored.advantages[0] * weights / case.mask.sum(), "kept, over all tokens", tol=TOLERANCE)
    assert gradient[1].abs().max() == 0
    mine = ours(case, scored.advantages, correction={"kind": "truncate", "level": "token", "upper": 2.0, "veto": 1e-2})
    assert mine.tokens == 0
    assert mine.gradient.abs().max() == 0


@every_seed
def test_difference_figures(trl_side: TrlSide, seed: int) -> None:
    """TRL logs the mean |log π_old - log μ| and the weights after bounding; ours are signed and before it. An empty row
    has weight 1."""
    case = random_case(seed)
    scored = trl_side.score(case, **settings("token_truncate"))
    rho = (case.old - case.rollout)[case.mask]
    mine = mismatch_diagnostics(case.old, case.rollout, case.mask)
    assert_close(scored.metric("sampling/sampling_logp_difference/mean"), rho.abs().mean(), "absolute", tol=FIGURE)
    assert_close(mine["rollout_corr/kl"], -rho.mean(), "signed", tol=TOLERANCE)
    assert_close(
        scored.metric("sampling/importance_sampling_ratio/mean"), rho.exp().clamp(max=1.3).mean(), "bounded", tol=FIGURE
    )
    weights = rho.exp()
    share = weights.sum() ** 2 / (weights.numel() * weights.square().sum())
    assert_close(mine["rollout_corr/rollout_is_eff_sample_size"], share, "unbounded", tol=TOLERANCE)

    rows = trl_side.score(case, **settings("sequence_truncate", clip_max=1e9))
    product = torch.where(case.mask, case.old - case.rollout, 0.0).sum(-1).exp()
    assert product[4] == 1
    assert not case.mask[4].any()
    assert_close(
        rows.metric("sampling/importance_sampling_ratio/mean"), product.mean(), "empty row counted", tol=FIGURE
    )
    product = product[case.mask.any(-1)]
    share = product.sum() ** 2 / (product.numel() * product.square().sum())
    assert_close(mine["rollout_corr/rollout_is_eff_sample_size_seq"], share, "empty row left out", tol=TOLERANCE)
