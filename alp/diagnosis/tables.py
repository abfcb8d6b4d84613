"""Tables of a dump: mismatch, quantiles, what each preset would do, and per step. CSV holds six significant digits."""

from __future__ import annotations

from collections.abc import Sequence

from alp.diagnosis import measures as measures
from alp.diagnosis.dumps import Dump
from alp.diagnosis.measures import Effect, Figures, Pair
from alp.policy.diagnostics import QUANTILES
from alp.reporting.tables import Cell, Table, exact, significant

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
}
MOMENTS = ("mean", "std", "min", *QUANTILES, "max")
SHARES = (
    "below",
    "above",
    "above_dual",
    "clipped_low",
    "clipped_high",
    "dual_clipped",
    "masked_tokens",
    "masked_sequences",
)
STAND_INS = {"perturbed_log_probs": "π_θ,δ", "log_probs": "π_θ", "old_log_probs": "π_old"}
POLICIES = {"rollout": "μ", "old": "π_old"}
STEP_FIGURES = (
    "kl",
    "k3_kl",
    "rollout_is_eff_sample_size",
    "rollout_is_eff_sample_size_seq",
    "log_ppl_diff",
    "log_ppl_abs_diff",
)
TAILS = ("q001", "q01", "q50", "q99", "q999")


def mismatch(dump: Dump, figures: Figures) -> Table:
    """One row per figure of ``mismatch_diagnostics``, one column per pair of policies."""
    known = measures.pairs(dump)
    columns = [[figures[f"{pair.prefix}rollout_corr/{name}"] for name in QUANTITIES] for pair in known]
    rows: list[list[Cell]] = [
        [f"rollout_corr/{name}", *map(exact, values)] for name, *values in zip(QUANTITIES, *columns, strict=True)
    ]
    shown = [
        [name, *map(significant, values), meaning]
        for (name, meaning), *values in zip(QUANTITIES.items(), *columns, strict=True)
    ]
    names = [pair.name for pair in known]
    return Table(["quantity", *names], rows, ["Quantity", *(pair.label for pair in known), "Reads as"], shown)


def quantiles(dump: Dump, figures: Figures) -> Table:
    """Moments and quantiles of the log-ratio, per pair and level."""
    rows: list[list[Cell]] = []
    shown = []
    for pair in measures.pairs(dump):
        for level in ("token", "sequence"):
            values = [figures[f"{pair.prefix}ratio/{level}/log_{name}"] for name in MOMENTS]
            rows.append([pair.name, level, *map(exact, values)])
            shown.append([pair.label, level, *map(significant, values)])
    names = [f"q{100 * QUANTILES[name]:g} %" if name in QUANTILES else name for name in MOMENTS]
    return Table(["ratio", "level", *MOMENTS], rows, ["Ratio", "Level", *names], shown)


def methods(found: Sequence[Effect]) -> Table:
    """One row per preset: its ratio, what leaves the clip range, what the clip holds, what the correction takes
    away."""
    rows: list[list[Cell]] = []
    shown = []
    for one in found:
        method, fix = one.method, one.method.correction
        shares = [one.shares.get(name) for name in SHARES]
        weights = [None] * 4 if one.weights is None or not one.weights.size else _weights(one)
        remark = remarks(one)
        active = fix.kind != "none" or fix.veto is not None
        masks = shares[-2:] if active else [None, None]
        setting: list[Cell] = [
            method.name,
            one.numerator,
            method.denominator,
            method.level,
            method.clip_low,
            method.clip_high,
        ]
        cells = [
            *map(exact, [*shares[:-2], *masks]),
            fix.kind,
            fix.level if fix.kind != "none" else None,
            *map(exact, weights),
            remark,
        ]
        rows.append([*map(_plain, setting), *cells])
        ratio = f"{STAND_INS[one.numerator]} / {POLICIES[method.denominator]}"
        text = [method.name, f"{ratio}, {method.level}", f"[{1 - method.clip_low:.6g}, {1 + method.clip_high:.6g}]"]
        weight = [significant(value) for value in weights[:3]] + [percent(weights[3])]
        shown.append([*text, *map(percent, [*shares[:-2], *masks]), *weight, remark])
    names = ["weight_mean", "weight_min", "weight_max", "weight_eff_sample_size", "remark"]
    columns = [
        "method",
        "numerator",
        "denominator",
        "level",
        "clip_low",
        "clip_high",
        *SHARES,
        "correction",
        "correction_level",
        *names,
    ]
    # fmt: off
    shown_columns = [
        "Method", "Ratio", "Range", "Below, %", "Above, %", "Above c, %", "Clipped low, %",
        "Clipped high, %", "Dual-clipped, %",
        "Masked tokens, %", "Masked sequences, %", "Mean weight", "Lowest", "Highest", "Effective, %", "Remark",
    ]
    # fmt: on
    return Table(columns, rows, shown_columns, shown)


def _weights(one: Effect) -> list[float | None]:
    assert one.weights is not None
    values = one.weights
    return [float(values.mean()), float(values.min()), float(values.max()), measures.effective_sample_size(values)]


def remarks(one: Effect) -> str:
    """What the preset's row leaves out of the preset."""
    found = [one.missing] if one.missing else []
    if one.method.numerator == "perturbed" and one.numerator != "perturbed_log_probs":
        found.append("without its noise")
    if one.numerator == "old_log_probs":
        found.append("first update")
    return "; ".join(found)


def steps(parts: Sequence[tuple[int, Dump, Pair, Figures]]) -> Table:
    """One row per step and pair: mismatch, effective sample sizes, and the tails per token and per sequence."""
    tails = [(level, name) for level in ("token", "sequence") for name in TAILS]
    keys = [*(f"rollout_corr/{name}" for name in STEP_FIGURES), *(f"ratio/{level}/log_{name}" for level, name in tails)]
    rows: list[list[Cell]] = []
    shown = []
    for step, dump, pair, figures in parts:
        counts = [len(dump.lengths), int(dump.lengths.sum())]
        rows.append([step, pair.name, *counts, *(exact(figures[key]) for key in keys)])
        shown.append([str(step), pair.label, *map(str, counts), *(significant(figures[key]) for key in keys)])
    names = [*STEP_FIGURES, *(f"{level}_{name}" for level, name in tails)]
    heads = ["kl", "k3_kl", "ESS, tokens", "ESS, sequences", "log ppl diff", "abs log ppl diff"]
    heads += [f"{level} q{100 * QUANTILES[name]:g} %" for level, name in tails]
    return Table(
        ["step", "ratio", "sequences", "tokens", *names], rows, ["Step", "Ratio", "Sequences", "Tokens", *heads], shown
    )


# ---- numbers as text -------------------------------------------------------------------------------------------------


def _plain(value: Cell) -> Cell:
    return exact(value) if isinstance(value, float) else value


def percent(value: float | None) -> str:
    """A share in percent: two digits after the point, and neither 0 nor 100 for what is not quite that."""
    if value is None:
        return "–"
    text = f"{100 * value:.2f}"
    if value in (0, 1):
        return f"{100 * value:g}"
    return {"0.00": "< 0.01", "100.00": "> 99.99"}.get(text, text)
