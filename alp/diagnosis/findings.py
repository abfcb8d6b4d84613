"""A diagnosis in words: the figures to look at first, and what must be known about the file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alp.diagnosis import measures as measures
from alp.diagnosis.causes import NONE, Cause
from alp.diagnosis.dumps import Dump
from alp.diagnosis.measures import MISMATCH, Figures, Pair
from alp.errors import nearest, printable
from alp.rendering.numbers import share, significant

_SAID = 1  # causes in the summary; the table has the others
_DOMINATED = 0.5  # share of all weights from which one of them makes the figures


def findings(dump: Dump, figures: Figures, causes: Sequence[Cause]) -> list[str]:
    """The handful of figures to look at first, one sentence each, with how to read them."""
    steps = "" if dump.steps is None else f", steps {dump.steps.min()}–{dump.steps.max()}"
    empty = dump.total - len(dump.lengths)
    sentences = [
        f"read as {dump.source}: {dump.total} sequences, {int(dump.lengths.sum())} valid tokens{steps}"
        + (f"; {empty} sequences have no valid token" if empty else "")
    ]
    sentences += [_cause(cause) for cause in causes[:_SAID]]
    sentences += [_pair(pair, figures) for pair in measures.pairs(dump)]
    if measures.pairs(dump):
        sentences.append(_HOW)
    main = measures.main_pair(dump)
    return sentences if main is None else [*sentences, _furthest(dump, main)]


def verdict(dump: Dump, figures: Figures, causes: Sequence[Cause]) -> str:
    """The whole diagnosis in a sentence."""
    main = measures.main_pair(dump)
    if main is None or not causes:
        return "One policy alone: nothing can be compared."
    cause, size = causes[0], f"{main.prefix}rollout_corr/rollout_is_eff_sample_size"
    if cause.name == NONE:
        said = f"{main.label} differs, and no known cause has this pattern" if cause.alarm else "Too little to judge by"
    elif cause.alarm:
        said = f"Likely a fault: {cause.name} ({100 * cause.confidence:.0f} % sure)"
    else:
        said = f"No fault seen: {main.label} shows {cause.name}"
    return (
        f"{said}. Effective sample size: {share(figures[size])} % of the tokens,"
        f" {share(figures[f'{size}_seq'])} % of the sequences."
    )


_HOW = (
    "how to read: kl and k3_kl are 0 where two policies agree (k3_kl is never negative); the effective share is 100"
    " % on-policy, and at a few % a few outliers carry the whole estimate; the ratio itself is e to the log-ratio"
)


def _cause(cause: Cause) -> str:
    """The likeliest cause and how sure it is."""
    if cause.name == NONE:
        return f"likely cause: none of the known ones: {cause.evidence}"
    calm = "" if cause.alarm else " (no fault)"
    return f"likely cause: {cause.name}{calm}, confidence {100 * cause.confidence:.0f} %: {cause.evidence}"


def _pair(pair: Pair, figures: Figures) -> str:
    """The figures of one pair in one line."""
    kl, k3 = (significant(figures[f"{pair.prefix}rollout_corr/{name}"]) for name in ("kl", "k3_kl"))
    size = f"{pair.prefix}rollout_corr/rollout_is_eff_sample_size"
    shares = f"effective {share(figures[size])} % of tokens, {share(figures[f'{size}_seq'])} % of sequences"
    token, sequence = (
        " … ".join(significant(figures[f"{pair.prefix}ratio/{level}/log_{name}"]) for name in ("q001", "q999"))
        for level in ("token", "sequence")
    )
    return (
        f"{pair.label}: kl {kl}, k3_kl {k3} nats per token; {shares}; 0.1–99.9 % of log-ratios {token} per token,"
        f" {sequence} per sequence"
    )


def _furthest(dump: Dump, pair: Pair) -> str:
    """The sequence whose summed log-ratio is largest in size: where to start looking."""
    tokens = dump.difference(pair.numerator, pair.denominator)
    sums = dump.sums(tokens)
    worst = int(np.argmax(np.abs(sums)))
    start = int(dump.lengths[:worst].sum())
    inside = tokens[start : start + dump.lengths[worst]]
    largest = significant(float(inside[np.argmax(np.abs(inside))]))
    row, total = int(dump.rows[worst]), significant(float(sums[worst]))
    line = "" if dump.place(row).startswith("row") else f", {dump.place(row)}"
    sums_up = f"Σ log {pair.label} = {total} over {dump.lengths[worst]} tokens, largest token {largest}"
    return f"furthest sequence: index {row} (from 0){line}, {sums_up}"


def notes(dump: Dump, wanted: dict[str, str], figures: Figures) -> list[str]:
    """What a reader of the figures must know about the file."""
    sentences = [*dump.notes, *_told(dump)]
    if "log_probs" not in dump and "old_log_probs" in dump:
        sentences.append("no current log-probs in the file: presets are shown for the first update, π_θ = π_old")
    if MISMATCH in measures.pairs(dump) and not dump.difference(MISMATCH.numerator, MISMATCH.denominator).any():
        sentences.append("old_log_probs and rollout_log_probs are equal on every token: was one tensor dumped twice?")
    sentences += _dominated(dump, figures)
    absent = [name for field, name in wanted.items() if field not in dump and field not in ("step", "response_mask")]
    absent += ["step"] if dump.steps is None else []
    for name in dump.unread:
        hint = nearest(name, absent)
        if "did you mean" in hint:
            sentences.append(printable(f"not read: field '{name}'{hint}"))
    return sentences


def _told(dump: Dump) -> list[str]:
    """What the file cannot tell, for want of a policy."""
    if "rollout_log_probs" not in dump:
        return ["no log-probs of the engine: nothing can be told about training-inference mismatch"]
    if "old_log_probs" in dump:
        return []
    if "log_probs" in dump:
        return [
            "no old_log_probs: π_θ / μ is mismatch and staleness in one, and presets that read π_old are not shown;"
            " on the first update after a sync it is the mismatch"
        ]
    return ["log-probs of the engine alone: how far the training code is from it cannot be told"]


def _dominated(dump: Dump, figures: Figures) -> list[str]:
    """Whether one weight makes the figures of the main pair."""
    sentences: list[str] = []
    main = measures.main_pair(dump)
    if main is None:
        return sentences
    sizes = (("", "token", int(dump.lengths.sum())), ("_seq", "sequence", len(dump.lengths)))
    for ending, one, number in sizes:
        largest = figures[f"{main.prefix}rollout_corr/rollout_is_max_share{ending}"]
        if number > 1 and largest > _DOMINATED:
            sentences.append(
                f"one {one} of {number} carries {share(largest)} % of all {one} weights: ESS and chi2 of {one}s are"
                " about that one"
            )
    return sentences
