"""The table of a grid: accuracy of every arm, difference to GRPO, and what stands beside them."""

from __future__ import annotations

import numpy as np

from alp.evaluation.statistics import Interval
from alp.rendering.numbers import Cell, one_decimal, percent, percent_as_published, points
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.comparisons import highest, interval_cells, mean_of_known
from alp.reporting.records import Evaluation
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=10,
    title="Main table",
    caption=(
        "Accuracy on the test set at temperature 1, averaged over the samples of each problem, of the model after the "
        "last training step (of several evaluation sets the plain mean, whatever their sizes); the best validation "
        "step is shown for information and selects nothing. Brackets hold 95 % intervals by the hierarchical "
        "bootstrap over seeds and problems (over problems alone for the base model); with few seeds such intervals "
        "are on the narrow side. Differences to GRPO are paired: both methods are resampled with the same seeds and "
        "problems. The published column comes from another setting (a bigger model, real benchmarks, no error bars): "
        "only the ordering of the methods is comparable."
    ),
)
# fmt: off
EXPORTED = (
    "method", "accuracy_mean", "accuracy_low", "accuracy_high", "seeds", "published", "difference_to_grpo",
    "difference_low", "difference_high", "greedy_mean", "length_mean", "best_step", "best_validation",
)
# fmt: on


def make(loaded: Results) -> Table:
    """One row per arm, the base model first (docs/results.md)."""
    reference = loaded.find(arms.REFERENCE)
    rows = [_base_row(loaded, reference), *(_arm_row(loaded, arm, reference) for arm in loaded.arms)]
    cells = frame(rows, EXPORTED)
    # what is printed decides, and of the arms alone
    best = {(row, name) for name in ("accuracy_mean", "greedy_mean") for row in highest(cells[name].tolist(), start=1)}
    columns = [
        words("method", "Method", lambda name: arms.label(str(name))),
        Column("accuracy_mean", loaded.average, percent, "%", interval=("accuracy_low", "accuracy_high")),
        Column(
            "difference_to_grpo", "Difference to GRPO", points, "points", interval=("difference_low", "difference_high")
        ),
        Column("greedy_mean", "Greedy", percent, "%"),
        Column("length_mean", "Tokens", one_decimal),
        Column("best_validation", "Best validation", percent, "% (step)", aside="best_step"),
        Column("seeds", "Seeds"),
        Column("published", "Published", percent_as_published, "%"),
    ]
    return Table(cells, columns, best=frozenset(best))


def _base_row(loaded: Results, reference: ArmRuns | None) -> list[Cell]:
    accuracy = loaded.base.per_problem[None]
    difference = loaded.difference(accuracy, reference.accuracy) if reference else None
    figures: list[Cell] = [_greedy(loaded, loaded.base), loaded.base.response_length, None, None]
    return _row(arms.BASE, loaded.interval(accuracy), None, None, difference, figures)


def _arm_row(loaded: Results, arm: ArmRuns, reference: ArmRuns | None) -> list[Cell]:
    published = loaded.grid.published.get(arm.arm.method) if arm.arm.variant is None else None
    difference = loaded.difference(arm.accuracy, reference.accuracy) if reference and arm is not reference else None
    evaluations = [run.evaluation for run in arm.runs]
    figures: list[Cell] = [
        mean_of_known([_greedy(loaded, evaluation) for evaluation in evaluations]),
        mean_of_known([evaluation.response_length for evaluation in evaluations]),
        *_best_validation(arm),
    ]
    fraction = None if published is None else published / 100
    return _row(arm.name, loaded.interval(arm.accuracy), len(arm.runs), fraction, difference, figures)


def _row(
    name: str,
    accuracy: Interval,
    seeds: int | None,
    published: float | None,
    difference: Interval | None,
    figures: list[Cell],
) -> list[Cell]:
    return [name, *interval_cells(accuracy), seeds, published, *interval_cells(difference), *figures]


def _best_validation(arm: ArmRuns) -> tuple[int | None, float | None]:
    """Step of the highest validation accuracy averaged over seeds (the first of equals), among steps that every seed
    has."""
    steps, values = arm.series("validation/accuracy")
    complete = ~np.isnan(values).any(axis=0)
    if not complete.any():
        return None, None
    means = values[:, complete].mean(axis=0)
    best = int(np.argmax(means))
    return int(steps[complete][best]), float(means[best])


def _greedy(loaded: Results, evaluation: Evaluation) -> float | None:
    """Accuracy of the greedy answers; None when none were drawn."""
    marks = evaluation.greedy_correct
    return None if marks is None or not marks.size else loaded.mean(marks)
