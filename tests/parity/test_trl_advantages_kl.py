"""Group advantages, the KL term and TRL's defaults."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alp.policy import group_advantages, kl_penalty, log_ratio
from tests.policy.cases import assert_close

from .cases import FIGURE, SEEDS, TOLERANCE, Case, random_case
from .our_side import ours
from .test_trl_correction import MODES, settings
from .trl_side import TrlSide

every_seed = pytest.mark.parametrize("seed", SEEDS)
BETA = 0.3


def rewarded(rewards: list[float], samples: int) -> Case:
    """A case with those rewards."""
    return random_case(0, rows=len(rewards), samples=samples).with_(rewards=rewards)


def spread(case: Case) -> torch.Tensor:
    """Unbiased standard deviation of its group, for every row."""
    return (
        torch.tensor(case.rewards, dtype=torch.float64).view(-1, case.samples).std(-1).repeat_interleave(case.samples)
    )


@every_seed
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_difference_advantage_epsilon(trl_side: TrlSide, samples: int, seed: int) -> None:
    """Mean, unbiased std and grouping agree exactly; TRL adds 1e-4 to the std, we 1e-6."""
    case = random_case(seed, rows=12, samples=samples)
    theirs = trl_side.score(case).advantages
    mine = group_advantages(torch.tensor(case.rewards, dtype=torch.float64), case.groups)
    assert_close(mine * (spread(case) + 1e-6), theirs * (spread(case) + 1e-4), "before scaling", tol=TOLERANCE)
    assert (mine - theirs).abs().max() > 1e-5
    assert_close(mine, theirs, "to the epsilon", tol=5e-3)


def test_difference_equal_rewards(trl_side: TrlSide) -> None:
    """In float32, TRL's own dtype, the rounding of a mean leaves equal rewards an advantage, amplified by 1/1e-4; ours
    is exactly 0."""
    case = rewarded([0.9] * 3 + [0.0, 0.5, 1.0, 1.0, 1.0, 1.0], samples=3)
    theirs = trl_side.score(case, dtype=torch.float32).advantages
    mine = group_advantages(torch.tensor(case.rewards), case.groups)
    assert theirs.dtype == mine.dtype == torch.float32
    assert 1e-5 < theirs[:3].abs().max() < 1e-2
    assert mine[:3].tolist() == [0.0] * 3
    assert mine[6:].tolist() == theirs[6:].tolist() == [0.0] * 3


@every_seed
def test_difference_scale_rewards(trl_side: TrlSide, seed: int) -> None:
    """Only `scale_rewards="group"`, TRL's default, is ours; "batch" divides by one std of everything, "none" by
    nothing."""
    case = random_case(seed)
    mine = group_advantages(torch.tensor(case.rewards, dtype=torch.float64), case.groups)
    centred = mine * (spread(case) + 1e-6)
    batch = torch.tensor(case.rewards, dtype=torch.float64).std()
    assert_close(trl_side.score(case, scale_rewards="none").advantages, centred, "none", tol=TOLERANCE)
    assert_close(
        trl_side.score(case, scale_rewards="batch").advantages, centred / (batch + 1e-4), "batch", tol=TOLERANCE
    )


def test_difference_missing_reward(trl_side: TrlSide) -> None:
    """TRL leaves a sample without a reward out of its group and gives it advantage 0; we refuse the batch."""
    rewards = [1.0, 0.0, float("nan"), 1.0, 0.5, 0.0]
    theirs = trl_side.score(rewarded(rewards, samples=3)).advantages
    alone = group_advantages(torch.tensor([1.0, 0.0], dtype=torch.float64), torch.zeros(2, dtype=torch.long))
    assert_close(theirs[:2], alone, "the other two", tol=1e-3)
    assert theirs[2] == 0
    with pytest.raises(ValueError, match="rewards"):
        group_advantages(torch.tensor(rewards), torch.arange(6) // 3)


@every_seed
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_kl(trl_side: TrlSide, level: str, seed: int) -> None:
    """Another estimator, direction or mask of the KL term, a gradient into the reference: with `use_bias_correction_kl`
    off it is k3."""
    case = random_case(seed)
    options: dict[str, Any] = {"importance_sampling_level": level, "loss_type": "bnpo", "use_bias_correction_kl": False}
    scored = trl_side.score(case, beta=BETA, **options)
    loss, gradient = scored.loss()
    mine = ours(case, scored.advantages, level="token" if level == "token" else "sequence_geometric", beta=BETA)
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)
    assert_close(
        kl_penalty(case.current, case.reference, case.mask)[case.mask].mean(), scored.metric("kl"), "figure", tol=FIGURE
    )


@every_seed
def test_difference_kl_times_ratio(trl_side: TrlSide, seed: int) -> None:
    """TRL multiplies each token's k3 by its ratio by default, gradient included; we never do."""
    case = random_case(seed)
    scored = trl_side.score(case, beta=BETA, loss_type="bnpo")
    loss, gradient = scored.loss()
    mine = ours(case, scored.advantages)
    current = case.current.clone().requires_grad_()
    ratio = log_ratio(current, case.old, case.mask, level="token").exp()
    term = BETA * (ratio * kl_penalty(current, case.reference, case.mask)).sum() / case.mask.sum()
    (slope,) = torch.autograd.grad(term, current)
    assert_close(mine.loss + term.detach(), loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient + slope, gradient, "gradient", tol=TOLERANCE)
    assert (ours(case, scored.advantages, beta=BETA).gradient - gradient).abs().max() > 1e-4


@every_seed
def test_kl_under_a_truncation(trl_side: TrlSide, seed: int) -> None:
    """Correction weights on the KL term: neither side applies them."""
    case = random_case(seed)
    scored = trl_side.score(
        case, beta=BETA, loss_type="bnpo", use_bias_correction_kl=False, **settings("token_truncate")
    )
    loss, gradient = scored.loss()
    mine = ours(case, scored.advantages, beta=BETA, correction=MODES["token_truncate"][1])
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)


@every_seed
def test_difference_kl_of_rejected_tokens(trl_side: TrlSide, seed: int) -> None:
    """TRL keeps the KL of tokens its mask rejects; under our `mask` they leave the KL too, under
    `mask_keep_denominator` they stay."""
    case = random_case(seed)
    scored = trl_side.score(case, beta=BETA, loss_type="bnpo", use_bias_correction_kl=False, **settings("token_mask"))
    loss, gradient = scored.loss()
    stays = ours(case, scored.advantages, beta=BETA, correction=MODES["token_mask"][1])
    assert_close(stays.loss, loss, "mask_keep_denominator", tol=TOLERANCE)
    assert_close(stays.gradient, gradient, "mask_keep_denominator", tol=TOLERANCE)
    leaves = ours(case, scored.advantages, beta=BETA, correction={**MODES["token_mask"][1], "kind": "mask"})
    rejected = case.mask & ~leaves.kept
    assert rejected.any()
    lost = BETA * kl_penalty(case.current, case.reference, rejected).sum()
    assert_close(leaves.loss * leaves.tokens + lost, loss * case.mask.sum(), "mask", tol=TOLERANCE)
    assert (gradient[rejected].abs() > 0).all()
    assert (leaves.gradient[rejected] == 0).all()


@every_seed
def test_difference_kl_normaliser(trl_side: TrlSide, seed: int) -> None:
    """TRL aggregates the KL term as `loss_type` says; ours is a mean over tokens under every aggregation."""
    case = random_case(seed)
    options: dict[str, Any] = {"loss_type": "grpo", "use_bias_correction_kl": False}
    with_kl, without = (trl_side.score(case, beta=beta, **options).loss()[0] for beta in (BETA, 0.0))
    terms = kl_penalty(case.current, case.reference, case.mask)
    means = terms.sum(-1) / case.mask.sum(-1).clamp(min=1)
    assert_close(with_kl - without, BETA * means.sum() / case.rows, "TRL: mean of means", tol=TOLERANCE)
    scored = trl_side.score(case, **options)
    with_ours, without_ours = (
        ours(case, scored.advantages, aggregation="seq-mean-token-mean", beta=beta).loss for beta in (BETA, 0.0)
    )
    assert_close(with_ours - without_ours, BETA * terms.sum() / case.mask.sum(), "ours: token mean", tol=TOLERANCE)


def test_defaults_and_version(trl_side: TrlSide) -> None:
    """A TRL whose defaults are no longer those of docs/parity.md: read it again before the table is believed."""
    import trl

    assert trl.__version__ == "1.16.0"
    config = trl.GRPOConfig(output_dir=str(trl_side.folder / "out"), use_cpu=True, bf16=False)
    expected = {
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": None,
        "delta": None,
        "importance_sampling_level": "token",
        "scale_rewards": "group",
        "beta": 0.0,
        "use_bias_correction_kl": True,
        "num_iterations": 1,
        "temperature": 1.0,
        "mask_truncated_completions": False,
        "off_policy_mask_threshold": None,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_clip_max": 3.0,
    }
    assert {name: getattr(config, name) for name in expected} == expected
