"""Accuracy of every arm on each evaluation set of a grid that has several."""

from __future__ import annotations

from collections.abc import Mapping

from alp.evaluation.statistics import Interval
from alp.rendering.numbers import Cell, percent
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.comparisons import interval_cells, stands_out
from alp.reporting.records import Floats
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=20,
    title="Evaluation sets",
    caption=(
        "Accuracy on each evaluation set at temperature 1, averaged over the samples of each problem, of the model "
        "after the last training step. Brackets hold 95 % intervals of the mean over training seeds on the problems "
        "of that set, each taken singly; an arm of one seed has none, and the base model's holds the noise of its "
        "samples alone. The mean of the sets weighs each set alike, whatever its size."
    ),
    condition="has_several_sets",
)
# fmt: off
EXPORTED = (
    "method", "set", "problems", "accuracy_mean", "accuracy_low", "accuracy_high", "difference_to_reference",
    "difference_low", "difference_high",
)
# fmt: on
_MEAN = "the mean of the sets"  # no set's name: those are identifiers


def make(loaded: Results) -> Table:
    """One row per arm and set, with the paired difference to its reference on that set; people see an arm's sets
    side by side."""
    accuracies = {arms.BASE: loaded.base.per_problem[None], **{arm.name: arm.accuracy for arm in loaded.arms}}
    of_sets = {part: _intervals(loaded, part) for part in loaded.sets}
    rows: list[list[Cell]] = [
        [
            name,
            part,
            span.stop - span.start,
            *interval_cells(of_sets[part][number]),
            *_gap(loaded, accuracies, name, part),
        ]
        for number, name in enumerate(accuracies)
        for part, span in loaded.sets.items()
    ]
    intervals = {_MEAN: _intervals(loaded), **of_sets}
    names = [[part, f"{part} low", f"{part} high"] for part in intervals]
    wide = [
        [name, *(cell for of_part in intervals.values() for cell in interval_cells(of_part[number]))]
        for number, name in enumerate(accuracies)
    ]
    headers = ["Mean of the sets", *(f"{part} ({span.stop - span.start})" for part, span in loaded.sets.items())]
    columns = [
        words("method", "Method", lambda name: arms.label(str(name)), link="arm"),
        *(
            Column(mean, header, percent, "%", interval=(low, high))
            for header, (mean, low, high) in zip(headers, names, strict=True)
        ),
    ]
    arms_of = [arm.accuracy for arm in loaded.arms]
    sizes = [span.stop - span.start for span in loaded.sets.values()]
    marked = {_MEAN: stands_out(arms_of, sizes=sizes)}
    marked |= {part: stands_out([table[:, span] for table in arms_of]) for part, span in loaded.sets.items()}
    best = {(1 + row, part) for part, row in marked.items() if row is not None}
    sources = ["method", *(name for of_part in names for name in of_part)]
    return Table(frame(rows, EXPORTED), columns, wide=frame(wide, sources), best=frozenset(best))


def _intervals(loaded: Results, part: str | None = None) -> list[Interval]:
    """Of the base model and every arm, on one set or all."""
    return [loaded.base_interval(part), *(loaded.interval(arm.accuracy, part) for arm in loaded.arms)]


def _gap(loaded: Results, accuracies: Mapping[str, Floats], name: str, part: str) -> list[Cell]:
    arm = loaded.find(name)
    other = loaded.reference if arm is None else loaded.reference_of(arm)  # None is the base model
    gap = None if other is None else loaded.difference(accuracies[name], other.accuracy, part)
    return interval_cells(gap)
