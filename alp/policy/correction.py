"""Corrections: weights and masks from the ratio of two policies (docs/method.md, Corrections), once a rollout
batch or anew in each update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import check_finite, check_log_probs, check_mask
from .choices import registers
from .correction_settings import POLICIES, Correction
from .method import Corrected
from .ratio import k3, unchecked_log_ratio


@dataclass(frozen=True)
class Gap:
    """Two policies on the same tokens, detached: what a correction is between. Tensors (batch, tokens)."""

    p: Tensor
    q: Tensor
    mask: Tensor
    """The response mask, boolean: what sequences are aggregated over."""

    def log_ratio(self, level: str = "token") -> Tensor:
        """log ω at a level, clamped; 0 where masked."""
        return unchecked_log_ratio(self.p, self.q, self.mask, level=level)

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """p and q themselves, 0 where masked."""
        zero = self.p.new_zeros(())
        return self.p.exp().where(self.mask, zero), self.q.exp().where(self.mask, zero)


Statistic = Callable[[Gap], Tensor]
STATISTICS: dict[str, Statistic] = {
    "k1": lambda gap: -gap.log_ratio(),
    "k2": lambda gap: gap.log_ratio().square() / 2,
    "k3": lambda gap: k3(gap.log_ratio()),
    "log_square": lambda gap: gap.log_ratio().square(),
}
"""Of each token, (batch, tokens), by name; ``ratio`` is the weight itself."""


@registers(STATISTICS, "prob_gap")
def _prob_gap(gap: Gap) -> Tensor:
    p, q = gap.probabilities()
    return (p - q).abs()


@registers(STATISTICS, "binary_kl")
def _binary_kl(gap: Gap) -> Tensor:
    """q log(q/p) + (1 − q) log((1 − q)/(1 − p)), with 1e-8 on the complements as in DPPO's own code."""
    p, q = gap.probabilities()
    return -q * gap.log_ratio() + (1 - q) * ((1 - q + 1e-8) / (1 - p + 1e-8)).log()


@registers(STATISTICS, "binary_kl_max")
def _binary_kl_max(gap: Gap) -> Tensor:
    """The larger of both directions, of probabilities clamped to [1e-6, 1 − 1e-6] as in prime-rl's KPop."""
    p, q = (value.clamp(1e-6, 1 - 1e-6) for value in gap.probabilities())
    inner, outer = (p / q).log(), ((1 - p) / (1 - q)).log()
    return (p * inner + (1 - p) * outer).maximum(-q * inner - (1 - q) * outer)


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token": lambda values, _: values,
    "sum": lambda values, mask: values.where(mask, values.new_zeros(())).sum(-1, keepdim=True),
    "mean": lambda values, mask: (
        values.where(mask, values.new_zeros(())).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    ),
    "max": lambda values, mask: values.where(mask, values.new_full((), -torch.inf)).amax(-1, keepdim=True),
}
"""Of a statistic under the response mask, broadcastable to (batch, tokens); ``batch`` is :func:`cut`."""


@dataclass(frozen=True)
class Effect:
    """What one correction does, (batch, tokens): the factor of the loss, what stays in the normaliser, what counts."""

    factor: Tensor
    kept: Tensor
    counted: Tensor


def effect(correction: Correction, gap: Gap, acting: Tensor, limit: Tensor | None = None) -> Effect:
    """A correction on tokens ``acting``; ``limit`` is the :func:`cut` of a reduction over the batch."""
    mask = gap.mask
    one = gap.p.new_ones(())
    if correction.kind == "none":
        return Effect(torch.ones_like(gap.p), mask, mask)
    read = correction.weighs or correction.statistic == "ratio"
    ratio = gap.log_ratio(correction.level).exp() if read else torch.ones_like(gap.p)
    if correction.kind == "truncate":
        factor = ratio.clamp(min=correction.lower, max=correction.upper)
        factor = _normalised(factor, correction, mask) if correction.batch_normalise else factor
        return Effect(factor.where(acting, one), mask, mask)
    inside = _inside(correction, gap, ratio, limit) | ~acting
    factor = ratio if correction.weighs else torch.ones_like(gap.p)
    factor = factor.where(inside, gap.p.new_zeros(())).where(acting, one)
    kept = mask & inside if correction.kind == "mask" else mask
    return Effect(factor, kept, mask & (factor > 0))


def _inside(correction: Correction, gap: Gap, ratio: Tensor, limit: Tensor | None) -> Tensor:
    assert correction.upper is not None  # every kind but `none` has one
    if correction.statistic == "ratio":
        return (ratio >= (correction.lower or 0.0)) & (ratio <= correction.upper)
    values = STATISTICS[correction.statistic](gap)
    if correction.reduce == "batch":
        assert limit is not None
        return values <= limit
    values = REDUCTIONS[correction.reduce](values, gap.mask).expand_as(gap.mask)
    inside = values <= correction.upper
    return inside if correction.lower is None else inside & (values >= correction.lower)


def _normalised(weights: Tensor, correction: Correction, mask: Tensor) -> Tensor:
    """Weights over their mean: of valid tokens, or of sequences with any."""
    if correction.level == "token":
        return weights / weights[mask].mean() if bool(mask.any()) else weights
    first = mask & (mask.cumsum(-1) == 1)  # a sequence's tokens share its weight
    return weights / weights[first].mean() if bool(mask.any()) else weights


def cut(correction: Correction, gap: Gap, acting: Tensor) -> Tensor:
    """The largest value of the statistic that may stay, 0-dim, so that the mean of those that stay is at most
    ``upper``. It lies half-way to the smallest that goes: the noise of another forward moves no token across. Equal
    values go together."""
    assert correction.upper is not None  # every kind but `none` has one
    ordered = STATISTICS[correction.statistic](gap)[acting].double().sort(descending=True).values
    if not ordered.numel():
        return gap.p.new_full((), torch.inf)
    counts = torch.arange(ordered.numel(), 0, -1, device=ordered.device)
    means = ordered.flip(0).cumsum(0).flip(0) / counts  # [k]: of what stays when the k largest go
    allowed = means <= correction.upper
    allowed[1:] &= ordered[1:] < ordered[:-1]
    if bool(allowed[0]):
        return gap.p.new_full((), torch.inf)
    if not bool(allowed.any()):
        return gap.p.new_full((), -torch.inf)
    dropped = int(allowed.int().argmax())
    return ((ordered[dropped - 1] + ordered[dropped]) / 2).to(gap.p)


def rollout_correction(
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    mask: Tensor,
    *,
    kind: str,
    level: str,
    upper: float | None = None,
    lower: float | None = None,
    veto: float | None = None,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Weights (batch, tokens), the mask after correction, and what was removed: one :class:`Correction` by its
    keywords, which says what they mean. All detached.

    Raises ValueError for wrong shapes, dtypes, kinds, levels, bounds that do not fit the kind, NaN on valid tokens.
    """
    settings: dict[str, Any] = {"kind": kind, "level": level, "upper": upper, "lower": lower, "veto": veto}
    correction = Correction(**settings)
    check_log_probs("old_log_probs", old_log_probs)
    check_log_probs("rollout_log_probs", rollout_log_probs, old_log_probs.shape)
    mask = check_mask(mask, old_log_probs.shape)
    check_finite("old_log_probs", old_log_probs, mask)
    check_finite("rollout_log_probs", rollout_log_probs, mask)
    corrected = apply_corrections([correction], old_log_probs, rollout_log_probs, mask)
    names, values = list(corrected.metrics), torch.stack(list(corrected.metrics.values())).tolist()
    return corrected.weights, corrected.mask, dict(zip(names, values, strict=True))


@torch.no_grad()
def apply_corrections(
    corrections: Sequence[Correction], old_log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor
) -> Corrected:
    """Every correction of a rollout batch on the same checked (batch, tokens) tensors; ``mask`` is boolean and the one
    before any."""
    weights = torch.ones_like(old_log_probs)
    kept = counted = mask
    gap = Gap(old_log_probs, rollout_log_probs, mask)
    for correction in corrections:
        if correction.at_update:
            continue
        limit = cut(correction, gap, mask) if correction.reduce == "batch" else None
        done = effect(correction, gap, mask, limit)
        weights, kept, counted = weights * done.factor, kept & done.kept, counted & done.counted
        if correction.veto is not None:
            low = mask & (gap.log_ratio().exp() < correction.veto)
            kept = kept & ~low.any(-1, keepdim=True)
    return Corrected(weights, kept, _removed(mask, kept & counted))


@dataclass(frozen=True)
class Update:
    """What the corrections of an update need of it: log-probs by policy, advantages (batch, tokens), the response mask
    and the loss mask, boolean. All detached."""

    policies: dict[str, Tensor]
    advantages: Tensor
    mask: Tensor
    loss_mask: Tensor

    def gap(self, correction: Correction) -> Gap:
        """The two policies that it is between."""
        p, q = POLICIES[correction.between]
        return Gap(self.policies[p], self.policies[q], self.mask)

    def acting(self, correction: Correction) -> Tensor:
        """The tokens that it acts on."""
        if correction.when == "always":
            return self.loss_mask
        if correction.when == "negative":
            return self.loss_mask & (self.advantages < 0)
        return self.loss_mask & (self.advantages * self.gap(correction).log_ratio().sign() > 0)


@torch.no_grad()
def update_corrections(
    corrections: Sequence[Correction], update: Update, figures: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The factor of each token's loss and the tokens that still count, (batch, tokens), of the corrections that wait
    for an update; ``figures`` of :func:`survey_corrections`."""
    factor = torch.ones_like(update.policies["current"])
    counted = update.loss_mask
    for number, correction in enumerate(corrections):
        if correction.at_update:
            limit = figures[f"cut_{number}"] if correction.surveys else None
            done = effect(correction, update.gap(correction), update.acting(correction), limit)
            factor, counted = factor * done.factor, counted & done.counted
    return factor, counted


@torch.no_grad()
def survey_corrections(corrections: Sequence[Correction], update: Update) -> dict[str, Tensor]:
    """The :func:`cut` of each correction that needs the whole mini-batch, which ``update`` is."""
    return {
        f"cut_{number}": cut(correction, update.gap(correction), update.acting(correction))
        for number, correction in enumerate(corrections)
        if correction.surveys
    }


def _removed(before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Shares of valid tokens, and of sequences with a valid token, that no longer count; 0-dim float64."""
    rows = before.any(-1)
    lost_tokens, lost_rows = (before & ~after).sum(), (rows & ~after.any(-1)).sum()
    return {
        "correction/masked_tokens": lost_tokens.double() / before.sum().clamp(min=1).double(),
        "correction/masked_sequences": lost_rows.double() / rows.sum().clamp(min=1).double(),
    }
