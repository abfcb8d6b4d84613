"""Engines compared: how far each one's log-probs are from the training code's, and what became of training on its
samples."""

from __future__ import annotations

from alp.rendering.numbers import Cell, percent, points, significant
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting.comparisons import interval_cells
from alp.reporting.mismatch import K3, KL, QUANTILES, by_engine, counterpart, method_label, quantile
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=30,
    title="Engines compared",
    caption=(
        "How far each inference engine is from the training code, per method: the KL divergence of the rollout policy "
        "to the policy that the trainer recomputes, as a mean of log differences and by the k3 estimator, and "
        "quantiles of the difference of log-probabilities per sampled token, all means over steps and seeds; accuracy "
        "of the last weights (of several evaluation sets the plain mean) with a single 95 % interval of the mean over "
        "training seeds on these very problems; one seed gives none. Differences are to the same method under the "
        "first engine, seed by seed."
    ),
    condition="compares_engines",
)
MEASURED = ("kl", "k3_kl", *(f"{level}_{name}" for level in ("token", "sequence") for name in QUANTILES))
# fmt: off
EXPORTED = (
    "engine", "method", *MEASURED, "accuracy_mean", "accuracy_low", "accuracy_high", "difference_to_first_engine",
    "difference_low", "difference_high",
)
# fmt: on


def make(loaded: Results) -> Table:
    """One row per engine and method: divergences and log-ratio quantiles of π_old to μ, accuracy, difference to the
    first engine."""
    rows: list[list[Cell]] = []
    for arm in by_engine(loaded):
        against = counterpart(arm, loaded)
        gap = loaded.difference(arm.accuracy, against.accuracy) if against else None
        accuracy = loaded.interval(arm.accuracy)
        quantiles = [quantile(arm, level, name) for level in ("token", "sequence") for name in QUANTILES]
        measured = [arm.step_mean(KL), arm.step_mean(K3), *quantiles]
        label = method_label(arm, loaded)
        rows.append([arm.engine, arm.name, *measured, *interval_cells(accuracy), *interval_cells(gap), label])
    columns = [
        words("engine", "Engine"),
        words("label", "Method"),
        Column("kl", "KL", significant),
        Column("k3_kl", "k3", significant),
        *(Column(f"token_{name}", f"token {shown} %", significant) for name, shown in QUANTILES.items()),
        Column("accuracy_mean", loaded.average, percent, "%", interval=("accuracy_low", "accuracy_high")),
        Column(
            "difference_to_first_engine",
            f"Difference to {loaded.arms[0].engine}",
            points,
            "points",
            interval=("difference_low", "difference_high"),
        ),
    ]
    return Table(frame(rows, [*EXPORTED, "label"]), columns, exported=EXPORTED, significant=frozenset(MEASURED))
