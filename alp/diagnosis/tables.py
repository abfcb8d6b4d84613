"""Tables of a dump: mismatch, quantiles, what each preset would do, and per step. CSV holds six significant digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alp.diagnosis import measures as measures
from alp.diagnosis.causes import Cause
from alp.diagnosis.diagnosed import Diagnosed, Parts, has_pairs, has_steps
from alp.diagnosis.dumps import Dump
from alp.diagnosis.measures import Effect, Figures, Weights
from alp.policy.diagnostics import QUANTILES
from alp.policy.method import Method
from alp.rendering.artefact import Artefact
from alp.rendering.numbers import Cell, share, significant
from alp.rendering.tables import Column, Table, frame, words

QUANTITIES = {  # mismatch_diagnostics in the order of reading, with what the value says
    "kl": "mean of −log ratio, nats per token; 0 when both agree",
    "k3_kl": "mean of r − log r − 1, nats per token; never negative, 0 when both agree",
    "log_ppl_diff": "mean over sequences of the mean log-ratio: a bias in one direction",
    "log_ppl_abs_diff": "the same of absolute values: gaps that do not cancel",
    "training_ppl": "perplexity of the numerator",
    "rollout_ppl": "perplexity of the denominator",
    "chi2_token": "mean of r² − 1 per token",
    "chi2_seq": "mean of r² − 1 with r the product over a sequence",
    "rollout_is_eff_sample_size": "effective share of the tokens, weights r per token; 1 when both agree",
    "rollout_is_eff_sample_size_seq": "effective share of the sequences, weights Π r; 1 when both agree",
    "rollout_is_max_share": "share of all token weights that the largest carries; near 1, it alone makes ESS and chi2",
    "rollout_is_max_share_seq": "the same of sequences",
}
MOMENTS = ("mean", "std", "min", *QUANTILES, "max")
SHARES = {  # of an effect, with their headers
    "below": "Below",
    "above": "Above",
    "above_dual": "Above c",
    "clipped_low": "Clipped low",
    "clipped_high": "Clipped high",
    "dual_clipped": "Dual-clipped",
    "masked_tokens": "Masked tokens",
    "masked_sequences": "Masked sequences",
}
# fmt: off
METHOD_COLUMNS = (
    "method", "numerator", "denominator", "level", "clip_low", "clip_high", *SHARES, "correction", "correction_level",
    "weight_mean", "weight_min", "weight_max", "weight_eff_sample_size", "remark",
)
# fmt: on
LABELS = {
    "rollout_log_probs": "μ",
    "old_log_probs": "π_old",
    "log_probs": "π_θ",
    "perturbed_log_probs": "π_θ,δ",
}
STAND_INS = LABELS | {"": "–"}
POLICIES = {"rollout": "μ", "old": "π_old"}
STEP_FIGURES = {
    "kl": "kl",
    "k3_kl": "k3_kl",
    "rollout_is_eff_sample_size": "ESS, tokens",
    "rollout_is_eff_sample_size_seq": "ESS, sequences",
    "log_ppl_diff": "log ppl diff",
    "log_ppl_abs_diff": "abs log ppl diff",
}
GRADIENT = ("size", "silent", "cosine", "equal_lr", "effective", "top_sequence")
TAILS = ("q001", "q01", "q50", "q99", "q999")


def policies(dump: Dump) -> Table:
    """One row per policy: how sure it is of the sampled tokens."""
    rows: list[list[Cell]] = []
    for field, label in LABELS.items():
        if field in dump:
            values = dump.tokens[field]
            low, median = np.quantile(values, (0.001, 0.5))
            # fmt: off
            rows.append([
                field, float(values.mean()), float(np.exp(-dump.means(values)).mean()), float(values.min()),
                float(low), float(median), float((values == 0).mean()), float((values > 0).mean()), label,
            ])
            # fmt: on
    columns = [
        words("label", "Policy"),
        Column("mean", "Mean log-prob", significant),
        Column("ppl", "Perplexity", significant),
        Column("min", "Lowest", significant),
        Column("q001", _quantile_header("q001"), significant),
        Column("q50", _quantile_header("q50"), significant),
        Column("zero", "Exactly 0", share, "%"),
        Column("positive", "Above 0", share, "%"),
    ]
    exported = ["policy", "mean", "ppl", "min", "q001", "q50", "zero", "positive"]
    return Table(frame(rows, [*exported, "label"]), columns, exported=exported, significant=frozenset(exported[1:]))


def mismatch(dump: Dump, figures: Figures) -> Table:
    """One row per figure of ``mismatch_diagnostics``, one column per pair of policies."""
    pairs = measures.pairs(dump)
    names = [pair.name for pair in pairs]
    rows: list[list[Cell]] = [
        [f"rollout_corr/{name}", *(figures[f"{pair.prefix}rollout_corr/{name}"] for pair in pairs), name, meaning]
        for name, meaning in QUANTITIES.items()
    ]
    columns = [
        words("shown", "Quantity"),
        *(Column(pair.name, pair.label, significant) for pair in pairs),
        words("meaning", "Reads as"),
    ]
    cells = frame(rows, ["quantity", *names, "shown", "meaning"])
    return Table(cells, columns, exported=["quantity", *names], significant=frozenset(names))


def quantiles(dump: Dump, figures: Figures) -> Table:
    """Moments and quantiles of the log-ratio, per pair and level."""
    rows: list[list[Cell]] = [
        [pair.name, level, *(figures[f"{pair.prefix}ratio/{level}/log_{name}"] for name in MOMENTS), pair.label]
        for pair in measures.pairs(dump)
        for level in ("token", "sequence")
    ]
    columns = [
        words("label", "Ratio"),
        words("level", "Level"),
        *(Column(name, _quantile_header(name), significant) for name in MOMENTS),
    ]
    exported = ["ratio", "level", *MOMENTS]
    return Table(frame(rows, [*exported, "label"]), columns, exported=exported, significant=frozenset(MOMENTS))


def _quantile_header(name: str) -> str:
    return f"q{100 * QUANTILES[name]:g} %" if name in QUANTILES else name


def methods(effects: Sequence[Effect]) -> Table:
    """One row per preset: its ratio, what leaves the clip range, what the clip holds, what the correction takes
    away."""
    columns = [
        words("method", "Method"),
        words("ratio", "Ratio"),
        words("range", "Range"),
        *(Column(name, header, share, "%") for name, header in SHARES.items()),
        Column("weight_mean", "Mean weight", significant),
        Column("weight_min", "Lowest", significant),
        Column("weight_max", "Highest", significant),
        Column("weight_eff_sample_size", "Effective", share, "%"),
        words("remark", "Remark"),
    ]
    cells = frame([_effect_row(effect) for effect in effects], [*METHOD_COLUMNS, "ratio", "range"])
    return Table(cells, columns, exported=METHOD_COLUMNS, significant=frozenset(METHOD_COLUMNS))


def gradients(effects: Sequence[Effect], advantages: bool) -> Table:
    """One row per preset: how hard, on how many tokens and in which direction it would push."""
    rows: list[list[Cell]] = []
    for effect in effects:
        figures = effect.gradient.figures() if not effect.missing else {}
        said = "; ".join(part for part in (remarks(effect), "" if advantages else "A = 1") if part)
        rows.append([effect.method.name, *(figures.get(name) for name in GRADIENT), said])
    columns = [
        words("method", "Method"),
        Column("size", "Push", significant),
        Column("silent", "Silent", share, "%"),
        Column("cosine", "Cosine", significant),
        Column("equal_lr", "Equal rate", significant),
        Column("effective", "Effective", share, "%"),
        Column("top_sequence", "Top sequence", share, "%"),
        words("remark", "Remark"),
    ]
    exported = ["method", *GRADIENT, "remark"]
    return Table(frame(rows, exported), columns, exported=exported, significant=frozenset(GRADIENT))


def _effect_row(effect: Effect) -> list[Cell]:
    method = effect.method
    acting = [correction for correction in method.corrections if correction.kind != "none"]
    shares = [effect.shares.get(name) for name in SHARES]
    if not any(
        correction.acts and not correction.at_update for correction in method.corrections
    ):  # what nothing masks has no share of masked tokens
        shares[-2:] = [None, None]
    weights = [None] * 4 if effect.weights is None or not effect.weights.count else _weights(effect.weights)
    return [
        *(method.name, effect.numerator, method.denominator, method.level, method.clip_low, method.clip_high),
        *shares,
        " + ".join(correction.kind for correction in acting) or "none",
        " + ".join(correction.level for correction in acting) or None,
        *weights,
        remarks(effect),
        f"{STAND_INS[effect.numerator]} / {POLICIES[method.denominator]}, {method.level}",
        _range(method),
    ]


def _range(method: Method) -> str | None:
    if method.clip_low is None or method.clip_high is None:
        return None
    return f"[{1 - method.clip_low:.6g}, {1 + method.clip_high:.6g}]"


def _weights(weights: Weights) -> list[float | None]:
    return [weights.total / weights.count, weights.lowest, weights.highest, weights.effective]


def remarks(effect: Effect) -> str:
    """What the preset's row leaves out of the preset."""
    parts = [effect.missing] if effect.missing else []
    if effect.method.numerator == "perturbed" and effect.numerator != "perturbed_log_probs":
        parts.append("without its noise")
    if any(correction.at_update for correction in effect.method.corrections):
        parts.append("without its masks and weights of each update")
    if effect.numerator == "old_log_probs":
        parts.append("first update")
    return "; ".join(parts)


def steps(parts: Parts) -> Table:
    """One row per step and pair: mismatch, effective sample sizes, and the tails per token and per sequence."""
    tails = [(level, name) for level in ("token", "sequence") for name in TAILS]
    keys = [*(f"rollout_corr/{name}" for name in STEP_FIGURES), *(f"ratio/{level}/log_{name}" for level, name in tails)]
    names = [*STEP_FIGURES, *(f"{level}_{name}" for level, name in tails)]
    headers = [*STEP_FIGURES.values(), *(f"{level} {_quantile_header(name)}" for level, name in tails)]
    rows: list[list[Cell]] = [
        [step, pair.name, len(lengths), int(lengths.sum()), *(figures[key] for key in keys), pair.label]
        for step, lengths, pair, figures in parts
    ]
    columns = [
        Column("step", "Step"),
        words("label", "Ratio"),
        Column("sequences", "Sequences"),
        Column("tokens", "Tokens"),
        *(Column(name, header, significant) for name, header in zip(names, headers, strict=True)),
    ]
    exported = ["step", "ratio", "sequences", "tokens", *names]
    return Table(frame(rows, [*exported, "label"]), columns, exported=exported, significant=frozenset(names))


def likely(found: Sequence[Cause]) -> Table:
    """One row per cause that the pattern speaks for, the likeliest first."""
    rows: list[list[Cell]] = [
        [cause.name, cause.confidence, cause.evidence, "yes" if cause.alarm else "no"] for cause in found
    ]
    columns = [
        words("cause", "Cause"),
        Column("confidence", "Confidence", share, "%"),
        words("alarm", "A fault"),
        words("evidence", "Evidence"),
    ]
    exported = ["cause", "confidence", "evidence", "alarm"]
    return Table(frame(rows, exported), columns, exported=exported, significant=frozenset(["confidence"]))


TABLES: tuple[Artefact[Dump, Diagnosed, Table], ...] = (
    Artefact(
        name="causes",
        title="Likely causes",
        caption=(
            "Told from the pattern of the differences alone, the likeliest first; a cause that leaves no pattern, or "
            "two at once, may be missed. Rounding is no fault where the engine computes in bfloat16."
        ),
        make=lambda diagnosed: likely(diagnosed.causes),
        condition=has_pairs,
    ),
    Artefact(
        name="mismatch",
        title="Mismatch",
        caption=(
            "Over valid tokens, r the ratio of the two policies named above the column. Weights are neither truncated "
            "nor clamped."
        ),
        make=lambda diagnosed: mismatch(diagnosed.dump, diagnosed.figures),
        condition=has_pairs,
    ),
    Artefact(
        name="ratio_quantiles",
        title="Quantiles of the log-ratios",
        caption=("Log-ratio per token, and summed over each sequence, in nats: before any clamp or clip."),
        make=lambda diagnosed: quantiles(diagnosed.dump, diagnosed.figures),
        condition=has_pairs,
    ),
    Artefact(
        name="policies",
        title="Log-probs of each policy",
        caption=(
            "Of the sampled tokens, in nats; perplexity is the mean over sequences of e to minus their mean. Healthy: "
            "the policies agree in every column, few tokens below −10, none above 0; many exact zeros beside another "
            "policy without them are placeholders or bfloat16."
        ),
        make=lambda diagnosed: policies(diagnosed.dump),
    ),
    Artefact(
        name="methods",
        title="What each preset would do to this batch",
        caption=(
            "Shares are percentages. Below, Above and Above c: tokens whose ratio is under the range, over it, over "
            "the dual clip, whatever their advantage, of those that the rollout correction leaves in the loss; with "
            "advantages in the file, the clipped ones are those whose gradient the clip holds back. Masked and "
            "weights: what the rollout correction by π_old / μ takes out and the weights it leaves, one per token or "
            "sequence; Effective is their (Σw)² / (N Σw²). Without its noise: the preset's numerator is π_θ,δ, and "
            "π_θ (or π_old) stands in for it. First update: the file has no current log-probs, so π_θ = π_old."
        ),
        make=lambda diagnosed: methods(diagnosed.effects),
        condition=has_pairs,
    ),
    Artefact(
        name="gradients",
        title="What each preset would push on",
        caption=(
            "No training: the derivative of each preset's loss by the log-prob of each token of this batch, against "
            "the on-policy one (the token's advantage). Push: its mean size. Silent: tokens with an advantage that "
            "get no gradient. Cosine: with the on-policy weights; 1 is the same direction. Equal rate: the learning "
            "rate at which a step of plain gradient descent is as long as the on-policy one at rate 1; two presets "
            "take equal steps at rates in the ratio of their entries (Adam divides most of it out again). Effective: "
            "share of the tokens that carry the push, (Σ|u|)² / (N Σu²). Top sequence: share of the push in one "
            "sequence; near 100 %, the update is about that one, whatever the other columns say. Tokens are taken for "
            "independent and equally steep, as no model is at hand. Without advantages in the file every A is 1."
        ),
        make=lambda diagnosed: gradients(diagnosed.effects, "advantages" in diagnosed.dump),
        condition=has_pairs,
    ),
    Artefact(
        name="steps",
        title="Per step",
        caption=(
            "Each step alone. ESS: effective share of tokens or sequences under untruncated weights. Quantiles of the "
            "log-ratio in nats."
        ),
        make=lambda diagnosed: steps(diagnosed.parts),
        condition=has_steps,
    ),
)
