"""The composition of a method, which stands here alone: ratio → correction → loss → aggregation → KL.

``correct`` and ``loss`` are the :class:`Method`'s methods of these names (method.py), which say what they do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_finite, check_log_probs, check_mask
from .correction import apply_corrections
from .method import Corrected, Counts, LossInputs, LossOutputs, Method
from .objective import aggregate, kl_penalty, loss_count
from .ratio import unchecked_log_ratio


def correct(method: Method, old_log_probs: Tensor | None, rollout_log_probs: Tensor | None, mask: Tensor) -> Corrected:
    """:meth:`Method.correct`."""
    policies = {"old_log_probs": old_log_probs, "rollout_log_probs": rollout_log_probs}
    needed = list(policies) if method.corrections else [f"{method.denominator}_log_probs"]
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
    log_probs = inputs.log_probs
    check_log_probs("log_probs", log_probs)
    for name in ("old_log_probs", "rollout_log_probs"):
        if (value := getattr(inputs, name)) is not None:
            check_log_probs(name, value, log_probs.shape)
    mask = check_mask(inputs.response_mask, log_probs.shape)
    weights, loss_mask = _corrected(method, inputs, mask)
    counts = inputs.counts or count(method, loss_mask)
    denominator = inputs.rollout_log_probs if method.denominator == "rollout" else inputs.old_log_probs
    if denominator is None:
        raise ValueError(f"{method.denominator}_log_probs: missing, method '{method.name}' needs it")
    log_ratio = unchecked_log_ratio(log_probs, denominator, mask, level=method.level, turn_ids=inputs.turn_ids)
    total, metrics = aggregate(method, log_ratio, inputs.advantages, loss_mask, weights, counts.normaliser)
    # A share of this piece's tokens, as its part of the mini-batch's share.
    portion = loss_mask.sum().double() / max(counts.tokens, 1)
    metrics = {name: share * portion for name, share in metrics.items()}
    metrics["policy/loss"] = total.detach().double()
    if inputs.ref_log_probs is not None:
        penalty = kl_penalty(log_probs, inputs.ref_log_probs, loss_mask).sum() / max(counts.tokens, 1)
        metrics["policy/kl"] = penalty.detach().double()
        total = total + inputs.kl * penalty
    return LossOutputs(total, metrics, torch.where(mask, log_probs.detach() - denominator, 0.0))


def _corrected(method: Method, inputs: LossInputs, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and mask after correction: the given ones, or computed from these rows."""
    if (inputs.weights is None) != (inputs.loss_mask is None):
        raise ValueError("weights and loss_mask go together: one is given without the other")
    if inputs.weights is None or inputs.loss_mask is None:
        corrected = correct(method, inputs.old_log_probs, inputs.rollout_log_probs, mask)
        return corrected.weights, corrected.mask
    return inputs.weights, check_mask(inputs.loss_mask, mask.shape)
