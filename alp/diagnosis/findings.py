"""A diagnosis in words: the figures to look at first, and what must be known about the file."""

from __future__ import annotations

import numpy as np

from alp.diagnosis import dumps
from alp.diagnosis import measures as measures
from alp.diagnosis.dumps import Dump
from alp.diagnosis.measures import MISMATCH, Figures, Pair
from alp.errors import nearest, printable
from alp.rendering.numbers import share, significant

_DOMINATED = 0.5  # share of all weights from which one of them makes the figures


def findings(dump: Dump, figures: Figures) -> list[str]:
    """The handful of figures to look at first, one sentence each, with how to read them."""
    steps = "" if dump.steps is None else f", steps {dump.steps.min()}–{dump.steps.max()}"
    empty = dump.total - len(dump.lengths)
    sentences = [
        f"{dump.total} sequences, {int(dump.lengths.sum())} valid tokens{steps}"
        + (f"; {empty} sequences have no valid token" if empty else "")
    ]
    sentences += [_pair(pair, figures) for pair in measures.pairs(dump)]
    sentences.append(
        "how to read: kl and k3_kl are 0 where two policies agree (k3_kl is never negative); the effective share is 100"
        " % on-policy, and at a few % a few outliers carry the whole estimate; the ratio itself is e to the log-ratio"
    )
    return [*sentences, _furthest(dump)]


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


def _furthest(dump: Dump) -> str:
    """The sequence whose summed mismatch is largest in size: where to start looking."""
    tokens = dump.difference(MISMATCH.numerator, MISMATCH.denominator)
    sums = dump.sums(tokens)
    worst = int(np.argmax(np.abs(sums)))
    start = int(dump.lengths[:worst].sum())
    inside = tokens[start : start + dump.lengths[worst]]
    largest = significant(float(inside[np.argmax(np.abs(inside))]))
    row, total = int(dump.rows[worst]), significant(float(sums[worst]))
    line = "" if dump.place(row).startswith("row") else f", {dump.place(row)}"
    sums_up = f"Σ log {MISMATCH.label} = {total} over {dump.lengths[worst]} tokens, largest token {largest}"
    return f"furthest sequence: index {row} (from 0){line}, {sums_up}"


def notes(dump: Dump, wanted: dict[str, str]) -> list[str]:
    """What a reader of the figures must know about the file."""
    sentences = []
    if "log_probs" not in dump:
        sentences.append("no current log-probs in the file: presets are shown for the first update, π_θ = π_old")
    if np.array_equal(dump.tokens["old_log_probs"], dump.tokens["rollout_log_probs"]):
        sentences.append("old_log_probs and rollout_log_probs are equal on every token: was one tensor dumped twice?")
    figures = measures.mismatch(dump)
    sizes = (("", "token", int(dump.lengths.sum())), ("_seq", "sequence", len(dump.lengths)))
    for ending, one, number in sizes:
        largest = figures[f"rollout_corr/rollout_is_max_share{ending}"]
        if number > 1 and largest > _DOMINATED:
            sentences.append(
                f"one {one} of {number} carries {share(largest)} % of all {one} weights: ESS and chi2 of {one}s are"
                " about that one"
            )
    absent = [name for field, name in wanted.items() if field not in dump and field not in ("step", *dumps.REQUIRED)]
    absent += ["step"] if dump.steps is None else []
    for name in dump.unread:
        hint = nearest(name, absent)
        if "did you mean" in hint:
            sentences.append(printable(f"not read: field '{name}'{hint}"))
    return sentences
