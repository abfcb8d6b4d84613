"""What corrections bound and how they weigh, beyond the presets: each statistic, reduction and condition, in floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alp.policy import Correction, LossInputs, Method

SCORE: dict[str, Any] = {"loss_form": "reinforce", "clip_low": None, "clip_high": None, "dual_clip": None}


def _bernoulli(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


OF_TOKENS: dict[str, Callable[[float, float], float]] = {
    "k1": lambda p, q: -math.log(p / q),
    "k2": lambda p, q: math.log(p / q) ** 2 / 2,
    "k3": lambda p, q: p / q - 1 - math.log(p / q),
    "log_square": lambda p, q: math.log(p / q) ** 2,
    "prob_gap": lambda p, q: abs(p - q),
    "binary_kl": lambda p, q: q * math.log(q / p) + (1 - q) * math.log((1 - q + 1e-8) / (1 - p + 1e-8)),
    "binary_kl_max": lambda p, q: max(_bernoulli(p, q), _bernoulli(q, p)),
}
OF_SEQUENCES: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "mean": lambda values: sum(values) / len(values),
    "max": max,
}


def inputs(seed: int) -> LossInputs:
    """Ragged rows with a hole, three policies apart from one another, advantages of both signs, junk where masked."""
    random = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(10, 6, generator=random, dtype=torch.float64)

    mask = torch.arange(6) < torch.randint(1, 7, (10, 1), generator=random)
    mask[0] = True
    mask[0, 2] = False
    rollout = -normal().abs() - 0.1
    old = (rollout + 0.4 * normal()).clamp(max=-0.01)
    current = (old + 0.4 * normal()).clamp(max=-0.01)
    junk = torch.tensor(math.nan, dtype=torch.float64)
    return LossInputs(
        log_probs=current.where(mask, junk).requires_grad_(),
        old_log_probs=old.where(mask, junk),
        rollout_log_probs=rollout.where(mask, junk),
        response_mask=mask,
        advantages=torch.randn(10, generator=random, dtype=torch.float64),
    )


def weights(rule: Correction, given: LossInputs) -> Tensor:
    """The factor that each token's −A log π got, (batch, tokens); NaN where masked."""
    loss = Method(**SCORE, corrections=[rule]).loss(given).loss
    (gradient,) = torch.autograd.grad(loss, given.log_probs)
    factor = -gradient * given.response_mask.sum() / given.advantages[:, None]
    return factor.where(given.response_mask, torch.full_like(factor, math.nan))


def probabilities(given: LossInputs, between: str) -> list[tuple[int, list[tuple[int, float, float]]]]:
    """Rows with the place, p and q of their valid tokens."""
    tables = {"current": given.log_probs, "old": given.old_log_probs, "rollout": given.rollout_log_probs}
    first, second = (tables[name] for name in between.split("_"))
    assert first is not None
    assert second is not None
    return [
        (b, [(t, math.exp(first[b, t]), math.exp(second[b, t])) for t in keep.nonzero()[:, 0].tolist()])
        for b, keep in enumerate(given.response_mask)
    ]


def expected(rule: Correction, given: LossInputs) -> Tensor:
    """By the definitions, one token after another."""
    factor = torch.full_like(given.response_mask, math.nan, dtype=torch.float64)
    for b, tokens in probabilities(given, rule.between):
        a = float(given.advantages[b])
        values = {t: OF_TOKENS[rule.statistic](p, q) for t, p, q in tokens}
        if rule.reduce != "token":
            values = dict.fromkeys(values, OF_SEQUENCES[rule.reduce]([*values.values()]))
        for t, p, q in tokens:
            acts = {"always": True, "negative": a < 0, "outward": a * (p - q) > 0}[rule.when]
            assert rule.upper is not None
            inside = (rule.lower if rule.lower is not None else -math.inf) <= values[t] <= rule.upper
            ratio = 1.0 if rule.weight == "one" else p / q
            factor[b, t] = 1.0 if not acts else ratio if inside else 0.0
    return factor


UPPER = {
    "k1": 0.2,
    "k2": 0.05,
    "k3": 0.05,
    "log_square": 0.1,
    "prob_gap": 0.1,
    "binary_kl": 0.03,
    "binary_kl_max": 0.03,
}
CASES = [
    (statistic, reduce, between, when)
    for statistic in OF_TOKENS
    for reduce in ("token", "sum", "mean", "max")
    for between in ("old_rollout", "current_rollout", "current_old")
    for when in ("always", "negative", "outward")
    if when != "outward" or reduce == "token"
]


@pytest.mark.parametrize(("statistic", "reduce", "between", "when"), CASES)
def test_a_mask_bounds_what_its_name_says(statistic: Any, reduce: Any, between: Any, when: Any) -> None:
    """Another direction, factor, policy, reduction or condition."""
    scale = {"token": 1.0, "mean": 1.0, "sum": 3.0, "max": 2.0}[reduce]
    seen: set[float] = set()
    for weight in ("one", "ratio"):
        rule = Correction(
            "mask_keep_denominator",
            upper=scale * UPPER[statistic],
            lower=-0.1 * scale if statistic == "k1" else None,
            between=between,
            statistic=statistic,
            reduce=reduce,
            when=when,
            weight=weight,  # type: ignore[arg-type]
        )
        for seed in range(3):
            given = inputs(seed)
            factor, wanted = weights(rule, given), expected(rule, given)
            assert torch.allclose(factor, wanted, rtol=1e-10, atol=1e-12, equal_nan=True)
            seen |= set(factor[given.response_mask].tolist())
    assert 0.0 in seen
    assert len(seen) > 2


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_geometric"])
@pytest.mark.parametrize("normalise", [False, True])
def test_truncation_has_two_sides_and_may_be_normalised(level: Any, normalise: bool) -> None:
    """A bound on one side, a mean over tokens where it is over sequences, a mean before the truncation."""
    rule = Correction("truncate", level=level, lower=0.8, upper=1.3, batch_normalise=normalise)
    given = inputs(4)
    one_each: list[float] = []
    wanted = torch.full_like(given.response_mask, math.nan, dtype=torch.float64)
    for b, tokens in probabilities(given, "old_rollout"):
        product = math.prod(p / q for _, p, q in tokens)
        whole = {"sequence": product, "sequence_geometric": product ** (1 / len(tokens))}
        for number, (t, p, q) in enumerate(tokens):
            wanted[b, t] = min(max(whole.get(level, p / q), 0.8), 1.3)
            one_each += [float(wanted[b, t])] if level == "token" or number == 0 else []
    assert {0.8, 1.3} <= {round(weight, 12) for weight in one_each}
    wanted = wanted / (sum(one_each) / len(one_each)) if normalise else wanted
    assert torch.allclose(weights(rule, given), wanted, rtol=1e-10, atol=1e-12, equal_nan=True)


def test_normalised_weights_are_those_of_the_whole_rollout_batch() -> None:
    """A mean of a micro-batch's own weights."""
    method, given = Method(corrections=[Correction("truncate", upper=1.3, batch_normalise=True)]), inputs(5)
    whole = method.correct(given.old_log_probs, given.rollout_log_probs, given.response_mask)
    assert whole.weights[given.response_mask].mean() == pytest.approx(1.0, rel=1e-12)
    nothing = method.correct(given.old_log_probs, given.rollout_log_probs, torch.zeros_like(given.response_mask))
    assert not nothing.mask.any()


def test_a_budget_may_be_of_the_rollout_batch() -> None:
    """AReaL's reading of M2PO: all tokens, log² π_old/μ, those over budget out of the normaliser."""
    rule = Correction("mask", statistic="log_square", reduce="batch", weight="one", upper=0.04)
    method, given = Method(corrections=[rule]), inputs(6)
    assert not method.surveys
    corrected = method.correct(given.old_log_probs, given.rollout_log_probs, given.response_mask)
    squares = sorted(math.log(p / q) ** 2 for _, tokens in probabilities(given, "old_rollout") for _, p, q in tokens)
    kept = list(squares)
    while sum(kept) / len(kept) > 0.04:
        kept.pop()
    assert 0 < len(kept) < len(squares)
    assert int(corrected.mask.sum()) == len(kept)
    assert method.correct(given.old_log_probs, given.old_log_probs, given.response_mask).mask.equal(given.response_mask)


def test_masks_of_both_times_join() -> None:
    """A mask of the rollout batch and one of the update: the first leaves the normaliser, the second keeps it."""
    early = Correction("mask", level="sequence", weight="one", upper=1.2)
    late = Correction("mask_keep_denominator", between="current_old", statistic="k2", weight="one", upper=0.05)
    given = inputs(7)
    both = Method(**SCORE, corrections=[early, late])
    corrected = both.correct(given.old_log_probs, given.rollout_log_probs, given.response_mask)
    (gradient,) = torch.autograd.grad(both.loss(given).loss, given.log_probs)
    kept = weights(late, given).nan_to_num() * corrected.mask
    assert torch.allclose(gradient, -given.advantages[:, None] * kept / corrected.mask.sum(), rtol=1e-10, atol=1e-14)
    assert 0 < kept.sum() < corrected.mask.sum() < given.response_mask.sum()


def test_a_policy_that_a_correction_of_an_update_reads_is_asked_for() -> None:
    late = Correction("truncate", between="current_rollout", upper=2.0)
    given = replace(inputs(0), rollout_log_probs=None)
    with pytest.raises(ValueError, match="rollout_log_probs: missing, method 'custom' needs it"):
        Method(**SCORE, corrections=[late]).loss(given)
