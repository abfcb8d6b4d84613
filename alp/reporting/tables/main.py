"""The table of a grid: accuracy of every arm, difference to GRPO or GSPO, and what stands beside them."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from alp.evaluation.statistics import Interval, stay_clear
from alp.rendering.numbers import Cell, one_decimal, percent, percent_as_published, points
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.comparisons import interval_cells, mean_of_known, stands_out
from alp.reporting.records import Evaluation
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=10,
    title="Main table",
    caption=(
        "Accuracy on the test set at temperature 1, averaged over the samples of each problem, of the model after the "
        "last training step (of several evaluation sets the plain mean, whatever their sizes); the best validation "
        "step is shown for information and selects nothing. Brackets hold 95 % intervals of the mean over training "
        "seeds on these very problems (Student's t over the seeds; nothing is said of other problems), each taken "
        "singly; an arm of one seed has none, and the base model's holds the noise of its samples alone. Differences "
        "to GRPO (in a grid without it to GSPO; to the same variant of it where it has no other) are taken seed by "
        "seed. A dagger (†) marks the differences that stay clear of zero over all "
        "comparisons of this table at once (Holm's test: a chance of at most 5 % that any mark is wrong). Bold is an "
        "arm above each other one by more than the interval of their difference, if there is such an arm."
    ),
)
# fmt: off
EXPORTED = (
    "method", "accuracy_mean", "accuracy_low", "accuracy_high", "seeds", "published", "difference_to_reference",
    "difference_low", "difference_high", "clear", "greedy_mean", "length_mean", "best_step", "best_validation",
)
# fmt: on


def make(loaded: Results) -> Table:
    """One row per arm, the base model first (docs/results.md)."""
    gaps = _gaps(loaded)
    marks = stay_clear([None if gap is None else gap.p_value for gap in gaps])
    compared = [
        [*interval_cells(gap), None if gap is None or gap.p_value is None else mark]
        for gap, mark in zip(gaps, marks, strict=True)
    ]
    rows = [_base_row(loaded, compared[0]), *map(partial(_arm_row, loaded), loaded.arms, compared[1:])]
    cells = frame(rows, EXPORTED)
    sizes = [span.stop - span.start for span in loaded.sets.values()]
    compared_by: dict[str, list[NDArray[np.generic] | None]] = {
        "accuracy_mean": [*(arm.accuracy for arm in loaded.arms)],
        "greedy_mean": [_greedy_marks(arm) for arm in loaded.arms],
    }
    best = {(1 + row, name) for name, of in compared_by.items() if (row := stands_out(of, sizes=sizes)) is not None}
    columns = [
        words("method", "Method", lambda name: arms.label(str(name)), link="arm"),
        Column("accuracy_mean", loaded.average, percent, "%", interval=("accuracy_low", "accuracy_high")),
        Column(
            "difference_to_reference",
            f"Difference to {loaded.reference_label}",
            points,
            "points",
            interval=("difference_low", "difference_high"),
            mark="clear",
        ),
        Column("greedy_mean", "Greedy", percent, "%"),
        Column("length_mean", "Tokens", one_decimal),
        Column("best_validation", "Best validation", percent, "% (step)", aside="best_step"),
        Column("seeds", "Seeds"),
    ]
    if loaded.grid.published:
        columns.append(Column("published", "Published", percent_as_published, "%"))
    return Table(cells, columns, best=frozenset(best))


def _gaps(loaded: Results) -> list[Interval | None]:
    """The difference of every row to its reference, the base model's first: every comparison of the table."""
    compared = [(loaded.base.per_problem[None], loaded.reference)]
    compared += [(arm.accuracy, loaded.reference_of(arm)) for arm in loaded.arms]
    return [None if other is None else loaded.difference(accuracy, other.accuracy) for accuracy, other in compared]


def _base_row(loaded: Results, compared: list[Cell]) -> list[Cell]:
    accuracy = interval_cells(loaded.base_interval())
    greedy = _greedy(loaded, loaded.base)
    return [arms.BASE, *accuracy, None, None, *compared, greedy, loaded.base.response_length, None, None]


def _arm_row(loaded: Results, arm: ArmRuns, compared: list[Cell]) -> list[Cell]:
    published = loaded.grid.published.get(arm.arm.method) if arm.arm.variant is None else None
    evaluations = [run.evaluation for run in arm.runs]
    return [
        arm.name,
        *interval_cells(loaded.interval(arm.accuracy)),
        len(arm.runs),
        None if published is None else published / 100,
        *compared,
        mean_of_known([_greedy(loaded, evaluation) for evaluation in evaluations]),
        mean_of_known([evaluation.response_length for evaluation in evaluations]),
        *_best_validation(arm),
    ]


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


def _greedy_marks(arm: ArmRuns) -> NDArray[np.generic] | None:
    """Right greedy answers (seeds, problems); None unless every seed has them."""
    marks = [run.evaluation.greedy_correct for run in arm.runs]
    known = [one for one in marks if one is not None and one.size]
    return np.stack(known) if len(known) == len(marks) else None


def _greedy(loaded: Results, evaluation: Evaluation) -> float | None:
    """Accuracy of the greedy answers; None when none were drawn."""
    marks = evaluation.greedy_correct
    return None if marks is None or not marks.size else loaded.mean(marks)
