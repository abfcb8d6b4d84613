"""pass@k of every arm."""

from __future__ import annotations

import numpy as np

from alp.evaluation import passk
from alp.rendering.numbers import Cell, percent
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.comparisons import mean_of_known, stands_out
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=60,
    title="pass@k",
    caption=(
        "Chance that at least one of k samples is right, on the test set after the last training step: the unbiased "
        "estimate from all samples of each problem, averaged over all problems and then over seeds; of several "
        "evaluation sets the table also shows each, and pass@1 of all problems is not the accuracy, which weighs the "
        "sets alike."
    ),
)


def make(loaded: Results) -> Table:
    """Unbiased pass@k per arm, mean over problems, then over seeds: of all problems and, where there are several sets,
    of each."""
    samples = loaded.base.samples
    ks = passk.powers_of_two(samples)
    several = len(loaded.sets) > 1
    spans = {"all": slice(None), **(loaded.sets if several else {})}
    evaluations = {
        arms.BASE: [loaded.base],
        **{arm.name: [run.evaluation for run in arm.runs] for arm in loaded.arms},
    }
    rows: list[list[Cell]] = [
        [
            name,
            part,
            *(
                mean_of_known([float(passk.pass_at_k(samples, seed.correct[span], k).mean()) for seed in seeds])
                for k in ks
            ),
        ]
        for part, span in spans.items()
        for name, seeds in evaluations.items()
    ]
    names = [f"pass_at_{k}" for k in ks]
    cells = frame(rows, ["method", "set", *names])
    best = set()
    for number, span in enumerate(spans.values()):
        for k, name in zip(ks, names, strict=True):
            chances = [
                np.stack([passk.pass_at_k(samples, run.evaluation.correct[span], k) for run in arm.runs])
                for arm in loaded.arms
            ]
            if (row := stands_out(chances)) is not None:
                best.add((number * len(evaluations) + 1 + row, name))
    columns = [
        words("method", "Method", lambda name: arms.label(str(name)), link="arm"),
        *([words("set", "Set")] if several else []),
        *(Column(name, f"pass@{k}", percent, "%") for name, k in zip(names, ks, strict=True)),
    ]
    return Table(cells, columns, best=frozenset(best))
