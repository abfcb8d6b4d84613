"""The presets of the literature, as their files are, against references written apart (tests/policy/published.py)."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from alp.configuration import compose
from alp.policy import Correction, LossInputs, Method
from alp.policy.composition import count, survey
from tests.policy.published import PUBLISHED, Sample

SEEDS = range(12)
OURS = {f"{level}_{kind}" for level in ("token", "seq") for kind in ("alp", "bypass", "mis", "tis")} | {"grpo", "gspo"}
SCALES = (1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0)
every_preset = pytest.mark.parametrize("name", sorted(PUBLISHED))


def preset(name: str) -> Method:
    """As its file says."""
    method: Method = compose.load("train", [f"method={name}"]).method
    return method


def sample(seed: int, rows: int = 12, tokens: int = 9) -> Sample:
    """Ragged rows with holes and one without a valid token, each with mismatch and staleness of a size of its own, a
    token here and there far off; advantages of both signs and 0."""
    random = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(rows, tokens, generator=random, dtype=torch.float64)

    scales = torch.tensor(SCALES, dtype=torch.float64)[torch.randint(len(SCALES), (2, rows, 1), generator=random)]
    mask = torch.rand(rows, tokens, generator=random) < 0.8
    mask &= torch.arange(tokens) < torch.randint(2, tokens + 1, (rows, 1), generator=random)
    mask[3] = False
    rollout = -(1.2 * normal().abs() + 0.01)
    old = rollout + scales[0] * normal() - 9.8 * (torch.rand(rows, tokens, generator=random) < 0.01)
    current = old + scales[1] * normal() + 3.0 * (torch.rand(rows, tokens, generator=random) < 0.02)
    advantages = torch.randn(rows, generator=random, dtype=torch.float64)
    advantages[5] = 0.0
    # One row that no mask on the mismatch drops, with a token beyond the dual clip.
    old[7] -= 4.0
    advantages[7], mask[7, 0], rollout[7], current[7] = -1.0, True, old[7], old[7]
    current[7, 0] += 2.8
    rewards = torch.randint(2, (rows,), generator=random).double()
    turns = torch.randint(3, (rows, tokens), generator=random).sort(-1).values
    below = [value.clamp(max=-1e-3).tolist() for value in (current, old, rollout)]
    return Sample(*below, mask.tolist(), advantages.tolist(), rewards.tolist(), turns.tolist())


def inputs(one: Sample) -> LossInputs:
    """The same as tensors, with a leaf for log π_θ and junk where the mask is 0."""
    mask = torch.tensor(one.mask)

    def log_probs(values: list[list[float]], junk: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).where(mask, torch.tensor(junk, dtype=torch.float64))

    return LossInputs(
        log_probs=log_probs(one.current, math.nan).requires_grad_(),
        old_log_probs=log_probs(one.old, -math.inf),
        rollout_log_probs=log_probs(one.rollout, 3.0),
        response_mask=mask,
        advantages=torch.tensor(one.advantages, dtype=torch.float64),
        rewards=torch.tensor(one.rewards, dtype=torch.float64),
        turn_ids=torch.tensor(one.turns),
    )


def value_and_gradient(method: Method, given: LossInputs) -> tuple[float, Tensor]:
    """Of the whole mini-batch at once."""
    loss = method.loss(given).loss
    (gradient,) = torch.autograd.grad(loss, given.log_probs)
    return float(loss.detach()), gradient


def in_parts(method: Method, given: LossInputs, parts: list[Tensor]) -> tuple[float, Tensor]:
    """The same as a trainer does it: corrected as a rollout batch, surveyed as a mini-batch, loss by loss of parts."""
    corrected = method.correct(given.old_log_probs, given.rollout_log_probs, given.response_mask)
    whole = replace(given, weights=corrected.weights, loss_mask=corrected.mask)
    counts = count(method, corrected.mask)
    if method.surveys:
        counts = survey(method, whole, counts)
    total = torch.zeros((), dtype=torch.float64)
    for rows in parts:
        tensors = {
            member.name: value[rows]
            for member in fields(whole)
            if isinstance(value := getattr(whole, member.name), Tensor)
        }
        total = total + method.loss(replace(whole, **tensors, counts=counts)).loss
    (gradient,) = torch.autograd.grad(total, given.log_probs)
    return float(total.detach()), gradient


def test_every_preset_has_a_reference() -> None:
    assert set(PUBLISHED) | OURS == set(compose.choices("method"))
    assert not set(PUBLISHED) & OURS


@every_preset
@pytest.mark.parametrize("seed", SEEDS)
def test_value_and_gradient_are_the_reference(name: str, seed: int) -> None:
    one = sample(seed)
    value, gradient = value_and_gradient(preset(name), inputs(one))
    expected, slopes = PUBLISHED[name](one)
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-12)
    wanted = torch.tensor(slopes, dtype=torch.float64)
    assert torch.allclose(gradient, wanted, rtol=1e-10, atol=1e-13), (gradient - wanted).abs().max()
    assert gradient.abs().sum() > 0


def _changed(method: Method) -> dict[str, Method]:
    """The method with one number of it changed, by name."""
    numbers: dict[str, Method] = {}
    for name in ("clip_low", "clip_high", "dual_clip", "log_square"):
        if value := getattr(method, name):
            numbers[name] = replace(method, **{name: 1.6 * value if name != "clip_low" else min(1.0, 1.6 * value)})
    for name, value in method.loss_options.items():
        factor = 0.9 if value >= 0.9 else 1.1 if value > 0.5 else 1.6
        numbers[name] = replace(method, loss_options=method.loss_options | {name: value * factor})
    for number, rule in enumerate(method.corrections):
        for name in ("upper", "lower", "veto"):
            if value := getattr(rule, name):  # ratios near 1 by their distance to it
                near = 0 < abs(value - 1) < 0.1
                other = 1 + 4 * (value - 1) if near else 0.3 * value
                changed = [*method.corrections]
                changed[number] = replace(rule, **{name: other})
                numbers[f"{number}.{name}"] = replace(method, corrections=changed)
    return numbers


@every_preset
def test_every_number_of_a_preset_matters(name: str) -> None:
    """A correction that is silently off, an option that nothing reads."""
    method = preset(name)
    changes = _changed(method)
    assert changes or name == "grpo_unclipped"
    for setting, other in changes.items():
        if name == "seq_mask_tis" and setting == "1.upper":
            continue  # beyond every ratio by intention
        assert any(_differ(method, other, seed) for seed in range(100)), setting


def _differ(method: Method, other: Method, seed: int) -> bool:
    (value, gradient), (second, slopes) = (value_and_gradient(one, inputs(sample(seed))) for one in (method, other))
    return value != second or not torch.equal(gradient, slopes)


@every_preset
def test_splitting_and_shuffling_a_mini_batch_change_nothing(name: str) -> None:
    """A normaliser, a bound or a mask of the part in place of the mini-batch's."""
    method, given = preset(name), inputs(sample(2))
    rows = len(given.response_mask)
    value, gradient = value_and_gradient(method, given)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    for parts in ([torch.arange(rows)], [*torch.arange(rows)[:, None]], [order], list(order.split(5))):
        loss, slopes = in_parts(method, given, parts)
        assert loss == pytest.approx(value, rel=1e-12, abs=1e-15)
        assert torch.allclose(slopes, gradient, rtol=1e-12, atol=1e-15)


@every_preset
def test_on_policy_is_reinforce(name: str) -> None:
    """Where the three policies are one, every correction is the policy gradient with the given advantages; probability
    smoothing is that times 1 - α."""
    method, one = preset(name), sample(4)
    given = inputs(replace(one, old=one.current, rollout=one.current))
    _, gradient = value_and_gradient(method, given)
    mask = given.response_mask
    share = {
        "token-mean": 1 / mask.sum().double(),
        "seq-mean-token-sum": 1 / mask.any(-1).sum().double(),
        "seq-mean-token-mean": 1 / (mask.any(-1).sum() * mask.sum(-1, keepdim=True).clamp(min=1)).double(),
    }[method.aggregation]
    wanted = torch.where(mask, -given.advantages[:, None] * share * (0.9 if name == "pspo" else 1.0), 0.0)
    assert torch.allclose(gradient, wanted, rtol=1e-12, atol=1e-15)


# What makes a mask drop everything: by how much log π_θ/π_old, log π_old/μ and the sign of A.
ALL_GONE = {
    "icepop": (0.0, 3.0, 1.0),
    "geo_rs": (0.0, 0.1, 1.0),
    "seq_mask_tis": (0.0, 0.1, 1.0),
    "seq_mask_trl": (0.0, 2.0, 1.0),
    "opsm": (-0.4, -0.4, -1.0),
    "trm_max_k2": (0.0, 0.5, 1.0),
    "trm_mean_k3": (0.0, 0.5, 1.0),
    "veto": (0.0, -9.5, 1.0),
    "dppo_tv": (1.0, 1.0, 1.0),
    "dppo_kl": (1.0, 1.0, 1.0),
    "m2po": (0.5, 0.0, 1.0),
}


@pytest.mark.parametrize("name", sorted(ALL_GONE))
def test_a_mask_may_drop_everything(name: str) -> None:
    """The loss is 0 and its gradient exactly 0: no 0/0, no token kept for company."""
    stale, gap, sign = ALL_GONE[name]
    one = sample(6)
    old = [[-2.0 for _ in row] for row in one.old]
    rollout = [[value - gap for value in row] for row in old]
    current = [[value + stale for value in row] for row in old]
    advantages = [sign for _ in one.advantages]
    given = inputs(replace(one, current=current, old=old, rollout=rollout, advantages=advantages))
    value, gradient = value_and_gradient(preset(name), given)
    assert value == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", ["ipo", "kpop"])
def test_a_dropped_token_keeps_its_regulariser(name: str) -> None:
    """prime-rl's squared log-ratio is on all tokens: with every token dropped it is all that is left."""
    one = sample(6)
    old = [[-2.0 for _ in row] for row in one.old]
    given = inputs(replace(one, current=[[-0.5 for _ in row] for row in old], old=old, rollout=old))
    value, gradient = value_and_gradient(preset(name), given)
    assert value == pytest.approx(1e-3 * 1.5**2, rel=1e-12)
    wanted = torch.where(given.response_mask, 2e-3 * 1.5 / given.response_mask.sum().double(), 0.0)
    assert torch.allclose(gradient, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_dropped_tokens_are_counted(name: str) -> None:
    """Masks of an update report the share of tokens that they take; without any there is no such figure."""
    method, given = preset(name), inputs(sample(1))
    figures = method.loss(given).floats()
    masks = [rule for rule in method.corrections if rule.at_update]
    assert ("correction/dropped_tokens" in figures) == bool(masks)
    if any(rule.kind != "truncate" for rule in masks):
        assert 0 < figures["correction/dropped_tokens"] < 1


def test_a_missing_survey_is_refused() -> None:
    """A part of a mini-batch without the figures of the whole would be another method."""
    for name in ("m2po", "bapo", "apmpo"):
        method, given = preset(name), inputs(sample(0))
        counts = count(method, given.response_mask)
        with pytest.raises(ValueError, match=f"counts.figures: missing, method '{name}' needs those of the mini-batch"):
            method.loss(replace(given, counts=counts))


def test_missing_rewards_are_refused() -> None:
    with pytest.raises(ValueError, match="rewards: one a sequence is what loss 'power_mean' needs"):
        preset("apmpo").loss(replace(inputs(sample(0)), rewards=None))


def test_old_log_probs_are_asked_for_by_those_that_read_them() -> None:
    readers = {name for name in compose.choices("method") if preset(name).reads_old}
    bypass = {"token_bypass", "seq_bypass", "token_alp", "seq_alp"}
    own = {"kpop", "ipo", "dppo_tv", "dppo_kl", "bypass_pg_is", "topr", "vespo", "dro"}
    assert set(compose.choices("method")) - readers == bypass | own
    for name in sorted(own):
        method, given = preset(name), inputs(sample(0))
        value = method.loss(given).loss
        assert torch.equal(method.loss(replace(given, old_log_probs=None)).loss, value)


NOISE: dict[str, Any] = {"loss_form": "ratio", "clip_low": None, "clip_high": None, "dual_clip": None}


def test_m2po_cuts_where_the_second_moment_says() -> None:
    """Worked by hand: A > 0, log-ratios 0.1, 0.2, 0.5 and -3 (inward). Mean of squares 0.1, over 0.04; without 0.5:
    0.025."""
    method = preset("m2po")
    current = torch.tensor([[-0.9, -0.8, -0.5, -4.0]], dtype=torch.float64, requires_grad=True)
    one = LossInputs(
        log_probs=current,
        old_log_probs=torch.full((1, 4), -1.0, dtype=torch.float64),
        rollout_log_probs=torch.full((1, 4), -1.0, dtype=torch.float64),
        response_mask=torch.ones(1, 4, dtype=torch.bool),
        advantages=torch.ones(1, dtype=torch.float64),
    )
    counts = survey(method, one, count(method, one.response_mask))
    assert float(counts.figures["cut_0"]) == pytest.approx((0.25 + 0.04) / 2)
    (gradient,) = torch.autograd.grad(method.loss(one).loss, current)
    assert (gradient == 0).tolist() == [[False, False, True, False]]


def test_equal_values_are_cut_together() -> None:
    """Which of two equal tokens goes must not depend on their order."""
    rule = Correction(
        "mask_keep_denominator", between="current_old", statistic="log_square", reduce="batch", weight="one", upper=0.1
    )
    method = Method(corrections=[rule], **NOISE)
    for order in ([0.1, 0.5, 0.5], [0.5, 0.1, 0.5]):
        current = torch.tensor([order], dtype=torch.float64).sub(1.0).requires_grad_()
        old = torch.full((1, 3), -1.0, dtype=torch.float64)
        one = LossInputs(
            log_probs=current,
            old_log_probs=old,
            rollout_log_probs=old,
            response_mask=torch.ones(1, 3, dtype=torch.bool),
            advantages=torch.ones(1, dtype=torch.float64),
        )
        (gradient,) = torch.autograd.grad(method.loss(one).loss, current)
        assert [bool(slope) for slope in gradient[0]] == [drift == 0.1 for drift in order]


@every_preset
def test_a_file_holds_what_differs_and_says_where_it_is_from(name: str) -> None:
    text = (compose.CONFIGS / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    given, plain = yaml.safe_load(text), asdict(Method())
    assert given.pop("name") == name
    assert all(plain[key] != value for key, value in given.items())
    assert "Evidence: " in " ".join(text.split("\n# ")) or name == "grpo_unclipped"
