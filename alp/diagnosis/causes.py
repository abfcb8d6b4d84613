"""What most likely made the differences, told from their pattern alone: a name, a confidence, and the evidence.

A test per cause looks at the main pair of a dump (docs/diagnose.md) and returns a :class:`Cause` or nothing; "none of
these" is an answer. Their thresholds were set on the tuning half of the runs of ``benchmarks/causes.py``;
docs/causes.md says how they did on the other half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alp.diagnosis import measures
from alp.diagnosis.dumps import Dump
from alp.diagnosis.pattern import BFLOAT16, FAR, FLOAT32, ROUNDING, SURE, Pattern
from alp.rendering.numbers import share, significant

NONE = "none of these"
OTHER_WEIGHTS = "other weights (quantised, stale, another head)"
_SMALL = 1e-12
ENOUGH = 100  # tokens: fewer show no pattern
RETOKENISED = 0.02  # share of the sequences that break off: fewer are sequences of their own
ADRIFT = 3.0  # nats that the tokens of a wrong sequence differ by together: experts that flip, or few bits, make less
SOME = 0.06  # share of the sequences: up to it they are some wrong ones, beyond it is a way of handling text
QUANTISED = 0.17  # noise of a logit: four bits a weight make less of it, another head more
FEW = 0.1  # share of tokens far apart up to which they are exceptions


@dataclass(frozen=True)
class Cause:
    """``confidence`` from 0 to 1; ``alarm`` is False for what is no fault (rounding in a bfloat16 run)."""

    name: str
    confidence: float
    evidence: str
    alarm: bool = True


def causes(dump: Dump) -> list[Cause]:
    """The causes that the pattern speaks for, the likeliest first, or that there is none; empty without two
    policies."""
    pair = measures.main_pair(dump)
    if pair is None:
        return []
    if dump.lengths.sum() < ENOUGH:
        return [Cause(NONE, 0.0, f"fewer than {ENOUGH} valid tokens show no pattern", alarm=False)]
    labels = pair.label.split(" / ")
    pattern = Pattern(
        dump.tokens[pair.numerator],
        dump.tokens[pair.denominator],
        dump.lengths,
        dump.steps,
        (labels[0], labels[1]),
    )
    if pattern.typical < FLOAT32 and not pattern.loud.any():
        return [Cause("agreement", 0.99, "no token differs by more than float32 makes of it", alarm=False)]
    found = [cause for test in TESTS if (cause := test(pattern)) is not None]
    return sorted(found, key=lambda cause: -cause.confidence) or [
        Cause(NONE, 0.5, "no pattern that a known cause leaves")
    ]


# ---- values that are no log-probs ------------------------------------------------------------------------------------


def placeholders(pattern: Pattern) -> Cause | None:
    """Zeros anywhere in a response."""
    zeros, name = pattern.zeros
    inside = zeros & ~pattern.trailing
    if inside.sum() < 2 or inside.sum() < 0.5 * zeros.sum() or pattern.support is not None:
        return None
    part = float(zeros.mean())
    return Cause("placeholders", 0.97, f"{name} is exactly 0 on {share(part)} % of the tokens, where the other is not")


def padding(pattern: Pattern) -> Cause | None:
    """Zeros, or one value again and again, at the ends of many sequences."""
    zeros, name = pattern.zeros
    ends = pattern.trailing
    hit = np.unique(pattern.sequence[ends])
    few = len(hit) < max(3, 0.02 * len(pattern.lengths))
    if few or ends.sum() < 0.5 * zeros.sum() or pattern.support is not None:
        return None
    per = ends.sum() / len(hit)
    return Cause(
        "padding in the mask",
        0.96,
        f"{share(len(hit) / len(pattern.lengths))} % of the sequences end in {significant(float(per))} tokens of which"
        f" {name} is exactly 0",
    )


# ---- tokens that are not those ---------------------------------------------------------------------------------------


def shifted(pattern: Pattern) -> Cause | None:
    """The policies agree one place apart, in whole sequences."""
    gap = np.abs(pattern.gap)
    inner = pattern.position[1:] > 0
    of = pattern.sequence[1:][inner]
    later = np.abs(pattern.numerator[:-1] - pattern.denominator[1:])[inner]
    earlier = np.abs(pattern.numerator[1:] - pattern.denominator[:-1])[inner]
    count = len(pattern.lengths)
    here = np.bincount(of, np.minimum(gap[1:], gap[:-1] + gap[1:])[inner], count)
    later_sum, earlier_sum = np.bincount(of, later, count), np.bincount(of, earlier, count)
    best = np.minimum(later_sum, earlier_sum)
    rounded = min(pattern.noise, BFLOAT16) * np.bincount(pattern.sequence, pattern.room, count)
    telling = (pattern.lengths >= 4) & (here > np.maximum(0.5, 4 * rounded))
    hit = telling & (best < 0.2 * here)
    if hit.sum() < 3 or hit.sum() < 0.6 * telling.sum() or hit.sum() < 0.02 * count:
        return None
    way = "later" if (later_sum <= earlier_sum)[hit].mean() > 0.5 else "earlier"
    return Cause(
        "off by one token",
        0.95,
        f"in {share(hit.sum() / count)} % of the sequences {pattern.names[1]} stands one token {way} than"
        f" {pattern.names[0]}: there they agree, not where they stand",
    )


def retokenised(pattern: Pattern) -> Cause | None:
    """Agreement up to a place that differs from sequence to sequence, none behind it."""
    broken, wrong = pattern.breaks
    if broken.sum() < 3 or broken.mean() < RETOKENISED or broken.sum() < 1.5 * wrong.sum():
        return None
    quiet = pattern.typical if broken.mean() < 0.3 else pattern.noise
    if quiet > 5 * ROUNDING:
        return None
    return Cause(
        "retokenised text",
        0.9,
        f"{share(float(broken.mean()))} % of the sequences agree up to some token and differ from there to their end",
    )


def wrong_sequence(pattern: Pattern) -> Cause | None:
    """All that differs stands in a few sequences, and makes much of each of them."""
    broken, wrong = pattern.breaks
    nats = np.bincount(pattern.sequence, pattern.loud * np.abs(pattern.gap), len(pattern.lengths))
    hit = (pattern.loud_share >= 0.1) & (nats >= ADRIFT)
    if not hit.any() or hit.mean() > SOME or pattern.typical > 5 * ROUNDING:
        return None
    if broken.mean() >= RETOKENISED and broken.sum() > wrong.sum() + 1:
        return None
    held = float(nats[hit].sum() / nats.sum())
    if held < 0.6:
        return None
    rows = ", ".join(map(str, np.flatnonzero(hit)[:3].tolist()))
    return Cause(
        "wrong sequences",
        0.92,
        f"{int(hit.sum())} of {len(hit)} sequences (index {rows}) hold {share(held)} %"
        " of what tokens differ by beyond rounding, in nats",
    )


def other_prompt(pattern: Pattern) -> Cause | None:
    """The first tokens of every response differ most."""
    first, later = pattern.open & (pattern.position < 2), pattern.open & (pattern.position >= 2)
    if first.sum() < 20 or later.sum() < 20:
        return None
    early, late = float(np.median(pattern.size[first])), float(np.median(pattern.size[later]))
    lowest = [float(np.quantile(pattern.size[part], 0.25)) for part in (first, later)]
    if early < 4 * late or early < FAR or lowest[0] < max(ROUNDING, 2 * lowest[1]):
        return None  # where some of the first tokens agree as others do it is no other prompt
    return Cause(
        "another prompt (chat template)",
        0.8,
        f"a logit's noise of {significant(early)} on the first two tokens of a response, {significant(late)} on"
        " the others",
    )


# ---- logits that were processed --------------------------------------------------------------------------------------


def temperature(pattern: Pattern) -> Cause | None:
    """The logits of one side are a multiple of the other's: among likely tokens, where two words share nearly all of
    the probability, log p/(1 - p) has that slope exactly; unlikely ones need not move."""
    if pattern.support is not None:
        return None
    inside = (np.minimum(pattern.numerator, pattern.denominator) > np.log(1e-5)) & (
        np.maximum(pattern.numerator, pattern.denominator) < np.log(SURE)
    )
    policies = (pattern.numerator[inside], pattern.denominator[inside])
    one, other = (policy - np.log1p(-np.exp(policy)) for policy in policies)
    likely = other > 1.0
    if likely.sum() < 20:
        return None
    slopes = one[likely] / other[likely]
    slope, (low, high) = float(np.median(slopes)), np.quantile(slopes, (0.25, 0.75))
    same = float(((slopes - 1) * np.sign(slope - 1) > 0).mean())
    if abs(slope - 1) < 0.025 or same < 0.9 or high - low > 0.6 * abs(slope - 1):
        return None
    return Cause(
        "temperature on one side",
        0.94,
        f"the logits of {pattern.names[0]} are {significant(slope)} times those of {pattern.names[1]}"
        f" ({share(same)} % of the likely tokens on that side)",
    )


def support(pattern: Pattern) -> Cause | None:
    """One side is renormalised over a part of the vocabulary: above the other at likely and unlikely tokens alike, by a
    bounded difference."""
    if pattern.support is None:
        return None
    name, bound, sided = pattern.support
    return Cause(
        "top-k or top-p on one side",
        0.93,
        f"{name} is above the other on {share(sided)} % of the tokens that differ, unlikely ones too, by at most"
        f" {significant(bound)}: renormalised over fewer tokens (top-p of about {significant(float(np.exp(-bound)))},"
        " or a top-k)",
    )


# ---- weights and numbers ---------------------------------------------------------------------------------------------


def stale(pattern: Pattern) -> Cause | None:
    """Differences of all tokens that grow with the step, or that are not there at the first."""
    sizes = pattern.per_step
    if sizes is None or sizes.max() < ROUNDING:
        return None
    third = max(1, len(sizes) // 3)
    rank = float(np.corrcoef(np.argsort(np.argsort(sizes)), np.arange(len(sizes)))[0, 1])
    grown = float(sizes[-third:].mean() / (sizes[:third].mean() + _SMALL))
    fresh = sizes[0] < 0.2 * np.median(sizes[1:])
    if not ((rank > 0.8 and grown > 2.5) or fresh):
        return None
    return Cause(
        "stale weights",
        0.94,
        f"a logit's noise is {significant(float(sizes[0]))} at the first step and {significant(float(sizes[-1]))} at"
        f" the last (rank correlation with the step {significant(rank)})",
    )


def draft(pattern: Pattern) -> Cause | None:
    """Many tokens far apart between many that agree: log-probs of two models in one response."""
    part, quiet = pattern.scattered, pattern.quantile(0.1)
    if part is None or part <= FEW:
        return None
    apart = pattern.quantile(0.9)
    if not (pattern.noise <= ROUNDING and apart >= 20 * pattern.noise) and apart < 500 * quiet:
        return None
    return Cause(
        "log-probs of two models (speculative decoding)",
        0.75,
        f"{share(part)} % of the uncertain tokens are far apart, all over the sequences, between others that agree to"
        f" {significant(quiet)}",
    )


def outliers(pattern: Pattern) -> Cause | None:
    """A few tokens far out, one by one, all over."""
    part = pattern.scattered
    if part is None or part > FEW or pattern.far.sum() < 3 or pattern.typical > ROUNDING:
        return None
    return Cause(
        "a few tokens far out (routing of experts)",
        0.55,
        f"{share(part)} % of the uncertain tokens, one here and there; the others agree to"
        f" {significant(pattern.typical)}; a mixture of experts does so in bfloat16 by itself",
    )


def other_weights(pattern: Pattern) -> Cause | None:
    """Differences of all tokens, to both sides, larger than rounding, the same at every step."""
    if pattern.typical <= BFLOAT16:
        return None
    sizes = pattern.per_step
    flat = sizes is not None and sizes.max() < 2.5 * sizes.min()
    small = flat and pattern.typical < QUANTISED
    name = "quantised rollouts" if small else OTHER_WEIGHTS
    over = "; the same at every step" if flat else ""
    return Cause(
        name, 0.6, f"a logit's noise of {significant(pattern.typical)}, beyond bfloat16's, on all tokens{over}"
    )


def rounding(pattern: Pattern) -> Cause | None:
    """Small differences, larger where a token is uncertain, to both sides."""
    if not FLOAT32 <= pattern.typical <= BFLOAT16:
        return None
    kind = "bfloat16" if pattern.typical > 1.5e-3 else "float16 or mixed precision"
    alike = "; weights of 5 or 6 bits look the same" if pattern.typical > ROUNDING else ""
    return Cause(
        "rounding",
        0.5,
        f"a logit's noise of {significant(pattern.typical)}, as {kind} makes of it; tokens near probability 1 differ"
        f" less{alike}",
        alarm=False,
    )


TESTS: tuple[Callable[[Pattern], Cause | None], ...] = (
    placeholders,
    padding,
    support,
    shifted,
    retokenised,
    wrong_sequence,
    stale,
    temperature,
    other_prompt,
    draft,
    outliers,
    other_weights,
    rounding,
)
