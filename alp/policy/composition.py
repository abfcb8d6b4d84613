"""The composition of a method, which stands here alone: ratio → correction → loss → aggregation → KL.

``correct`` and ``loss`` are the :class:`Method`'s methods of these names (method.py), which say what they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checks import check_finite, check_log_probs, check_mask
from .correction import Update, apply_corrections, survey_corrections, update_corrections
from .correction_settings import POLICIES
from .losses import Terms
from .method import Corrected, Counts, LossInputs, LossOutputs, Method
from .objective import aggregate, kl_penalty, loss_count, per_token, terms_of
from .ratio import unchecked_log_ratio


def correct(method: Method, old_log_probs: Tensor | None, rollout_log_probs: Tensor | None, mask: Tensor) -> Corrected:
    """:meth:`Method.correct`."""
    policies = {"old_log_probs": old_log_probs, "rollout_log_probs": rollout_log_probs}
    early = [correction for correction in method.corrections if not correction.at_update]
    needed = list(policies) if early else [f"{method.denominator}_log_probs"]
    for name in needed:
        if policies[name] is None:
            raise ValueError(f"{name}: missing, method '{method.name}' needs it")
    present = {name: value for name, value in policies.items() if value is not None}
    for name, value in present.items():
        check_log_probs(name, value, present[needed[0]].shape)
    mask = check_mask(mask, present[needed[0]].shape)
    for name, value in present.items():
        check_finite(name, value, mask)
    old, rollout = (present.get(name, present[needed[0]]) for name in policies)  # without corrections nobody reads them
    return apply_corrections(method.corrections, old, rollout, mask)


def count(method: Method, loss_mask: Tensor) -> Counts:
    """What a mini-batch's loss is divided by, from its mask after correction; waits for the device once."""
    normaliser, tokens = torch.stack(
        [loss_count(loss_mask, method.aggregation), loss_count(loss_mask, "token-mean")]
    ).tolist()
    return Counts(normaliser, tokens)


def loss(method: Method, inputs: LossInputs) -> LossOutputs:
    """:meth:`Method.loss`."""
    parts = _parts(method, inputs)
    counts = inputs.counts
    if counts is None:
        counts = count(method, parts.loss_mask)
        counts = _surveyed(method, parts, counts) if method.surveys else counts
    if method.surveys and not counts.figures:
        raise ValueError(f"counts.figures: missing, method '{method.name}' needs those of the mini-batch (survey)")
    weights, dropped = parts.weights, {}
    if parts.update is not None:
        factor, counted = update_corrections(method.corrections, parts.update, counts.figures)
        weights, left = weights * factor, parts.loss_mask.sum().clamp(min=1).double()
        dropped = {"correction/dropped_tokens": (parts.loss_mask & ~counted).sum().double() / left}
    terms = parts.terms(counts.figures)
    total, metrics = aggregate(method, terms, weights, counts.normaliser)
    # A share of this piece's tokens, as its part of the mini-batch's share.
    portion = parts.loss_mask.sum().double() / max(counts.tokens, 1)
    metrics = {name: share * portion for name, share in (metrics | dropped).items()}
    metrics["policy/loss"] = total.detach().double()
    if inputs.ref_log_probs is not None:
        penalty = kl_penalty(inputs.log_probs, inputs.ref_log_probs, parts.loss_mask).sum() / max(counts.tokens, 1)
        metrics["policy/kl"] = penalty.detach().double()
        total = total + inputs.kl * penalty
    return LossOutputs(total, metrics, torch.where(parts.mask, inputs.log_probs.detach() - parts.denominator, 0.0))


@torch.no_grad()
def survey(method: Method, inputs: LossInputs, counts: Counts) -> Counts:
    """``counts`` with the figures of a whole mini-batch that a method which ``surveys`` needs for each part of it; the
    ``log_probs`` of ``inputs`` are only read by one which ``surveys_policy``. Waits for the device.

    Raises ValueError naming what is wrong or missing.
    """
    return _surveyed(method, _parts(method, inputs), counts)


def _surveyed(method: Method, parts: _Parts, counts: Counts) -> Counts:
    figures = {} if parts.update is None else survey_corrections(method.corrections, parts.update)
    with torch.no_grad():
        return replace(counts, figures=figures | method.form.surveyed(parts.terms({}), method.loss_options))


@dataclass(frozen=True)
class _Parts:
    """Checked inputs, with what the rollout batch's corrections left of them."""

    inputs: LossInputs
    log_ratio: Tensor
    denominator: Tensor
    mask: Tensor
    loss_mask: Tensor
    weights: Tensor
    update: Update | None
    """What the corrections of an update read; None without any."""

    def terms(self, figures: Mapping[str, Tensor]) -> Terms:
        """Those of the loss."""
        inputs = self.inputs
        return terms_of(
            self.log_ratio,
            inputs.log_probs,
            inputs.advantages,
            self.loss_mask,
            rewards=inputs.rewards,
            figures=figures,
        )


def _parts(method: Method, inputs: LossInputs) -> _Parts:
    log_probs = inputs.log_probs
    check_log_probs("log_probs", log_probs)
    policies = {"current": log_probs.detach()}
    for policy in ("old", "rollout"):
        if (value := getattr(inputs, f"{policy}_log_probs")) is not None:
            check_log_probs(f"{policy}_log_probs", value, log_probs.shape)
            policies[policy] = value.detach()
    mask = check_mask(inputs.response_mask, log_probs.shape)
    weights, loss_mask = _corrected(method, inputs, mask)
    late = [correction for correction in method.corrections if correction.at_update]
    for policy in (method.denominator, *(part for each in late for part in POLICIES[each.between])):
        if policy not in policies:
            raise ValueError(f"{policy}_log_probs: missing, method '{method.name}' needs it")
    if "rewards" in method.form.reads and (inputs.rewards is None or inputs.rewards.shape != log_probs.shape[:1]):
        raise ValueError(f"rewards: one a sequence is what loss '{method.loss_form}' needs")
    denominator = policies[method.denominator]
    log_ratio = unchecked_log_ratio(log_probs, denominator, mask, level=method.level, turn_ids=inputs.turn_ids)
    update = None
    if late:
        advantages = torch.where(loss_mask, per_token("advantages", inputs.advantages, log_probs), 0.0)
        update = Update(policies, advantages, mask, loss_mask)
    return _Parts(inputs, log_ratio, denominator, mask, loss_mask, weights, update)


def _corrected(method: Method, inputs: LossInputs, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and mask after correction: the given ones, or computed from these rows."""
    if (inputs.weights is None) != (inputs.loss_mask is None):
        raise ValueError("weights and loss_mask go together: one is given without the other")
    if inputs.weights is None or inputs.loss_mask is None:
        corrected = correct(method, inputs.old_log_probs, inputs.rollout_log_probs, mask)
        return corrected.weights, corrected.mask
    return inputs.weights, check_mask(inputs.loss_mask, mask.shape)
