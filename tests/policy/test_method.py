"""`Method.loss`, the one composition: against its parts put together by hand; its inputs, lists and registries."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alp.policy import (
    Correction,
    LossInputs,
    Method,
    Perturbation,
    kl_penalty,
    log_ratio,
    losses,
    policy_loss,
    rollout_correction,
)
from alp.policy.choices import registers
from alp.policy.composition import count

ROOT = Path(__file__).resolve().parents[2]
TRUNCATE, MASK = Correction("truncate", "token", 1.2), Correction("mask", "sequence", 1.5, 0.5, veto=0.4)
SCORE = {"loss_form": "reinforce", "clip_low": None, "clip_high": None, "dual_clip": None}
REJECT = Correction("mask", "sequence", 1.5, 0.5, veto=0.4, weight="one")


def _inputs(**changes: Any) -> LossInputs:
    """8 ragged sequences of 7 tokens with a hole, a turn id each and advantages of both signs, in float64."""
    random = torch.Generator().manual_seed(3)
    mask = torch.arange(7) < torch.tensor([7, 6, 5, 4, 3, 2, 1, 0]).unsqueeze(-1)
    mask[0, 2] = False
    rollout = -3 * torch.rand(8, 7, generator=random, dtype=torch.float64)
    old = rollout + 0.3 * torch.randn(8, 7, generator=random, dtype=torch.float64)
    current = old + 0.3 * torch.randn(8, 7, generator=random, dtype=torch.float64)
    plain = LossInputs(
        log_probs=current.requires_grad_(),
        old_log_probs=old,
        rollout_log_probs=rollout,
        ref_log_probs=rollout,
        response_mask=mask,
        advantages=torch.randn(8, generator=random, dtype=torch.float64),
        turn_ids=(torch.arange(7) // 3).expand(8, 7),
        kl=0.1,
    )
    return replace(plain, **changes)


def _by_hand(method: Method, inputs: LossInputs, correction: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    assert inputs.old_log_probs is not None
    assert inputs.rollout_log_probs is not None
    assert inputs.ref_log_probs is not None
    denominator = inputs.rollout_log_probs if method.denominator == "rollout" else inputs.old_log_probs
    ratio = log_ratio(inputs.log_probs, denominator, inputs.response_mask, level=method.level, turn_ids=inputs.turn_ids)
    weights, kept, _ = rollout_correction(
        inputs.old_log_probs, inputs.rollout_log_probs, inputs.response_mask, **correction
    )
    loss, metrics = policy_loss(
        ratio,
        inputs.advantages,
        kept,
        clip_low=method.clip_low,
        clip_high=method.clip_high,
        dual_clip=method.dual_clip,
        weights=weights,
        aggregation=method.aggregation,
    )
    return loss + 0.1 * kl_penalty(inputs.log_probs, inputs.ref_log_probs, kept).sum() / kept.sum(), metrics


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
@pytest.mark.parametrize("level", ["token", "sequence", "sequence_geometric", "prefix", "turn", "turn_geometric"])
@pytest.mark.parametrize("correction", [None, TRUNCATE, MASK])
def test_it_is_its_parts_put_together(aggregation: Any, level: Any, correction: Correction | None) -> None:
    method = Method(
        level=level, aggregation=aggregation, dual_clip=1.5, corrections=[] if correction is None else [correction]
    )
    keywords = {name: getattr(correction or Correction(), name) for name in ("kind", "level", "upper", "lower", "veto")}
    inputs = _inputs()
    outputs = method.loss(inputs)
    loss, metrics = _by_hand(method, inputs, keywords)
    assert torch.equal(outputs.loss, loss)
    assert {name: value for name, value in outputs.floats().items() if name.startswith("ratio/")} == metrics
    (ours,), (expected,) = (torch.autograd.grad(value, inputs.log_probs) for value in (outputs.loss, loss))
    assert torch.equal(ours, expected)
    assert ours.abs().sum() > 0


def test_micro_batches_add_up() -> None:
    """Loss and metrics of pieces, each with the mini-batch's counts and what the corrections left of it."""
    method, whole = Method(corrections=[MASK]), _inputs()
    corrected = method.correct(whole.old_log_probs, whole.rollout_log_probs, whole.response_mask)
    shared = {"weights": corrected.weights, "loss_mask": corrected.mask}
    expected = method.loss(whole)
    totals: dict[str, float] = {}
    loss = 0.0
    for rows in (slice(0, 3), slice(3, 8)):
        rowwise = {
            member.name: value[rows]
            for member in fields(whole)
            if isinstance(value := shared.get(member.name, getattr(whole, member.name)), Tensor)
        }
        outputs = method.loss(replace(whole, **rowwise, counts=count(method, corrected.mask)))
        loss += float(outputs.loss)
        for name, value in outputs.floats().items():
            totals[name] = totals.get(name, 0.0) + value
    assert loss == pytest.approx(float(expected.loss), rel=1e-12)
    assert totals == pytest.approx(expected.floats(), rel=1e-12)


def test_a_list_of_corrections_multiplies_weights_and_joins_masks() -> None:
    inputs = _inputs()
    policies = (inputs.old_log_probs, inputs.rollout_log_probs, inputs.response_mask)
    both = Method(corrections=[TRUNCATE, REJECT]).correct(*policies)
    first, second = (Method(corrections=[correction]).correct(*policies) for correction in (TRUNCATE, REJECT))
    assert torch.equal(both.weights, first.weights * second.weights)
    assert second.weights[inputs.response_mask].unique().tolist() == [0.0, 1.0]
    assert torch.equal(both.mask, first.mask & second.mask)
    assert not torch.equal(both.mask, inputs.response_mask)
    assert both.metrics["correction/masked_tokens"] == second.metrics["correction/masked_tokens"] > 0


def test_metrics_stay_on_the_device() -> None:
    """As 0-dim float64 tensors: the transfer is the caller's, and there is one."""
    method = Method(corrections=[MASK])
    inputs = _inputs()
    metrics = method.loss(inputs).metrics
    metrics |= method.correct(inputs.old_log_probs, inputs.rollout_log_probs, inputs.response_mask).metrics
    assert len(metrics) == 7
    assert all(value.shape == () and value.dtype is torch.float64 for value in metrics.values())


def test_a_policy_that_is_not_read_may_be_missing() -> None:
    bypass = Method(denominator="rollout")
    inputs = _inputs(ref_log_probs=None)
    assert torch.equal(bypass.loss(replace(inputs, old_log_probs=None)).loss, bypass.loss(inputs).loss)
    for method, missing in (
        (bypass, "rollout_log_probs"),
        (Method(), "old_log_probs"),
        (Method(corrections=[TRUNCATE]), "rollout_log_probs"),
    ):
        with pytest.raises(ValueError, match=f"{missing}: missing, method 'custom' needs it"):
            method.loss(replace(inputs, **{missing: None}))


@pytest.mark.parametrize("name", ["old_log_probs", "rollout_log_probs", "response_mask", "advantages", "ref_log_probs"])
def test_inputs_of_another_shape_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="mask" if name == "response_mask" else name):
        Method().loss(_inputs(**{name: torch.zeros(8, 6)}))


def test_nan_of_the_rollout_is_refused_and_of_the_current_policy_is_not() -> None:
    spoilt = _inputs().rollout_log_probs
    assert spoilt is not None
    spoilt[0, 0] = float("nan")
    with pytest.raises(ValueError, match="rollout_log_probs: NaN on a valid token"):
        Method(denominator="rollout").loss(_inputs(rollout_log_probs=spoilt))
    assert Method().loss(_inputs(log_probs=spoilt)).loss.isnan()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "tokens"}, "level: unknown 'tokens'; did you mean 'token'?"),
        ({"loss_form": "clop"}, "loss_form: unknown 'clop'; did you mean 'clip'?"),
        ({"clip_low": 1.5}, "clip_low: at most 1 expected, got 1.5"),
        ({"clip_high": float("nan")}, "clip_high: at least 0 expected, got nan"),
        ({"dual_clip": 1.0}, "dual_clip: more than 1 expected, got 1.0"),
        ({"numerator": "perturbed"}, "numerator 'perturbed' and a perturbation block go together"),
        ({"perturbation": Perturbation()}, "method 'custom' has no perturbation"),
        ({"denominator": "rollout", "corrections": [TRUNCATE]}, "would correct twice"),
        (
            {"corrections": [TRUNCATE, MASK]},
            "corrections: two weights for one ratio: a truncate between 'old_rollout' and a mask between 'old_rollout'"
            " both weigh the mismatch; give one of them weight 'one'",
        ),
        (
            {"corrections": [Correction("truncate", upper=2.0, between="current_old")]},
            "two weights for one ratio: denominator 'old' and a truncate between 'current_old' both weigh the stale",
        ),
        (
            {"denominator": "rollout", "corrections": [Correction("truncate", upper=2.0, between="current_rollout")]},
            "two weights for one ratio: denominator 'rollout' and a truncate between 'current_rollout'",
        ),
        (
            SCORE
            | {
                "corrections": [
                    Correction("truncate", upper=2.0, between="current_rollout"),
                    Correction("truncate", upper=2.0),
                ]
            },
            "two weights for one ratio: a truncate between 'current_rollout' and a truncate between 'old_rollout'",
        ),
        ({"loss_form": "ratio"}, "clip_low: loss 'ratio' has no such clip and would ignore 0.2: leave clip_low empty"),
        ({"clip_low": None}, "clip_low: loss 'clip' needs one"),
        (
            SCORE | {"loss_form": "geometric"},
            "aggregation: loss 'geometric' is one value a sequence: only 'seq-mean-token-mean', not 'token-mean'",
        ),
        (SCORE | {"level": "sequence"}, "level: loss 'reinforce' reads no ratio and would ignore 'sequence'"),
        ({"level": "sequence", "log_square": 0.1}, "log_square: of a token's log-ratio, not at level 'sequence'"),
        (
            {"loss_options": {"facter": 2.0}},
            "loss_options: loss 'clip' has no option 'facter', only: none",
        ),
        (
            SCORE | {"loss_form": "sigmoid", "loss_options": {"tau_positive": 0.0}},
            "loss_options.tau_positive: 0.001 to 1000 expected, got 0.0",
        ),
    ],
)
def test_a_method_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Method(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "mask"}, "upper: kind 'mask' needs an upper bound"),
        ({"kind": "mask", "upper": 1.0, "lower": 1.0}, "lower = 1.0 must be below upper = 1.0"),
        ({"kind": "truncate", "upper": 2.0, "lower": -1.0}, "lower: at least 0 expected, got -1.0"),
        (
            {"kind": "mask", "upper": 2.0, "lower": 0.1, "statistic": "k3"},
            "lower: statistic 'k3' is 0 at best and has an upper bound alone",
        ),
        (
            {"kind": "truncate", "upper": 2.0, "statistic": "k3"},
            "statistic: truncate bounds the weight, a ratio: 'k3' belongs to a mask",
        ),
        (
            {"kind": "truncate", "upper": 2.0, "weight": "one"},
            "weight: truncate bounds the weight, a ratio: 'one' belongs to a mask",
        ),
        (
            {"kind": "mask", "upper": 2.0, "reduce": "mean"},
            "reduce: 'mean' of a ratio is its level: set level instead, or another statistic",
        ),
        (
            {"kind": "mask", "upper": 2.0, "reduce": "batch", "statistic": "k1"},
            "reduce: 'batch' needs a statistic that is 0 at best, not 'k1'",
        ),
        (
            {"kind": "mask", "upper": 2.0, "level": "sequence", "statistic": "k3", "weight": "one"},
            "level: nothing is taken at 'sequence' under weight 'one' and 'k3'",
        ),
        (
            {"kind": "mask_keep_denominator", "upper": 2.0, "level": "sequence", "when": "outward"},
            r"when: 'outward' is asked of single tokens: level and reduce must be token \(or batch\)",
        ),
        (
            {"kind": "mask", "upper": 2.0, "between": "current_old"},
            "kind: 'mask' takes tokens out of the normaliser, which is counted before between 'current_old' is known",
        ),
        (
            {"kind": "mask", "upper": 2.0, "when": "negative"},
            "which is counted before when 'negative' is known: use mask_keep_denominator",
        ),
        (
            {"kind": "truncate", "upper": 2.0, "between": "current_old", "veto": 0.1},
            "veto: is on old_rollout, not between 'current_old': give it a correction of its own, of kind 'none'",
        ),
        (
            {"kind": "truncate", "upper": 2.0, "between": "current_old", "batch_normalise": True},
            "batch_normalise: of truncated weights between old_rollout alone",
        ),
        ({"kind": "mask", "upper": 2.0, "batch_normalise": True}, "batch_normalise: of truncated weights"),
        ({"veto": 0.1, "when": "negative"}, "when: kind 'none' is the veto alone and would ignore it"),
        ({"upper": 2.0}, "upper/lower: bounds without a kind would be ignored"),
        ({"kind": "mask", "upper": 2.0, "statistic": "k4"}, "statistic: unknown 'k4'; choose from binary_kl, "),
        ({"kind": "mask", "upper": 2.0, "between": "old_current"}, "between: unknown 'old_current'; did you mean"),
    ],
)
def test_a_correction_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Correction(**settings)


def test_options_are_those_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that was registered elsewhere takes its own keyword arguments, and no others."""
    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))

    @losses.register("scaled")
    def scaled(terms: losses.Terms, method: Method, *, factor: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        return -factor * terms.ratio * terms.advantages, {}

    inputs = _inputs(ref_log_probs=None)
    plain = SCORE | {"loss_form": "scaled"}
    single, double = (Method(**plain, loss_options={"factor": factor}).loss(inputs) for factor in (1.0, 2.0))
    assert double.loss == 2 * single.loss != 0
    with pytest.raises(ValueError, match="loss_options: loss 'scaled' has no option 'facter', only: factor"):
        Method(**plain, loss_options={"facter": 2.0})


def test_a_name_is_registered_once() -> None:
    registry: dict[str, Any] = {}
    registers(registry, "mean")(len)
    with pytest.raises(ValueError, match="'mean' is registered twice"):
        registers(registry, "mean")(len)
    losses.find("clip")
    with pytest.raises(ValueError, match="'clip' is registered twice"):
        losses.register("clip")(len)


def test_every_field_has_a_default_and_a_docstring() -> None:
    """What a configuration shows, a reader finds explained."""
    assert Method() == Method(**{member.name: getattr(Method(), member.name) for member in fields(Method)})
    for kind in (Method, Correction, Perturbation, LossInputs):
        lines = Path(inspect.getfile(kind)).read_text(encoding="utf-8").splitlines()
        start = next(row for row, line in enumerate(lines) if line.startswith(f"class {kind.__name__}"))
        for member in fields(kind):
            row = next(row for row in range(start, len(lines)) if lines[row].startswith(f"    {member.name}: "))
            row = next(row for row in range(row + 1, len(lines)) if not lines[row].startswith(("     ", "    ]")))
            assert lines[row].startswith('    """'), f"{kind.__name__}.{member.name}"


def test_a_method_is_read_without_torch() -> None:
    """Configurations are checked where there is no GPU stack."""
    script = (
        "import sys; from alp.policy import losses; from alp.policy.method import Method; Method();"
        " [losses.find(name) for name in losses.names()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
