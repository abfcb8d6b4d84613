"""The accuracy of every arm, and its difference to its reference, or to the same without noise."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alp.rendering import plots
from alp.rendering.numbers import points
from alp.reporting.looks import Look, base_or_words, dot, dot_handles, looks, name_rows
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results
from alp.reporting.tables.controls import noise_free

ARTEFACT = Declaration(
    order=10,
    title="Accuracy",
    caption=(
        "First panel: accuracy on the test set of the model after the last training step, one row per arm in the order "
        "of the grid (of several evaluation sets the plain mean, whatever their sizes); dots are means, bars 95 % "
        "intervals of the mean over training seeds on these very problems, ticks single seeds, and the dashed line is "
        "the base model, in the grey band of its samples' noise (where it is far from every arm: in words). Second: "
        "difference to GRPO (in a grid without it to GSPO; under the same variant where the grid has it under variants "
        "alone), in a grid without both to what differs from the arm in the noise alone, taken seed by seed; a bar "
        "that crosses zero is no evidence either way, and of several bars one in twenty misses the truth. One seed "
        "gives no bar."
    ),
)


def make(loaded: Results) -> Figure:
    """Accuracy with interval per arm, and the paired difference to what it is compared with."""
    arm_looks = looks(loaded)
    whose = loaded.reference_method
    free = {} if whose else noise_free(loaded)
    panels = 2 if whose or free else 1
    figure = plots.canvas(plots.stacked(panels) * (0.9 + 0.27 * len(loaded.arms)))
    left, *right = plots.row_of(figure, panels, sharey=True)
    for row, arm in enumerate(loaded.arms):
        seeds = [100 * loaded.mean(of_seed) for of_seed in arm.accuracy]
        left.plot(seeds, [row + 0.28] * len(arm.runs), "|", color=arm_looks[arm.name].colour, markersize=4)
        dot(left, loaded.interval(arm.accuracy), row, arm_looks[arm.name])
        if right:
            other = loaded.reference_of(arm) or free.get(arm.name) or (arm if arm.arm.method == whose else None)
            _compare(right[0], loaded, arm, other, row, arm_looks[arm.name])
    left.set(title="Accuracy on the test set" + "s" * (len(loaded.sets) > 1), xlabel=f"{loaded.average} at T = 1, %")
    name_rows(left, loaded, arm_looks)
    for axes in (left, *right):
        plots.at_least(axes, 1.0)
    drawn = base_or_words(left, loaded.base_interval())
    for axes in right:
        axes.axvline(0, color="#555555", linewidth=1, zorder=0.9)
        title = f"Paired difference to {loaded.reference_label}" if whose else "Paired difference to no noise"
        axes.set(title=title, xlabel="percentage points")
        axes.tick_params(left=False)
    plots.legend_below(figure, dot_handles(base=drawn))
    return figure


def _compare(axes: Axes, loaded: Results, arm: ArmRuns, other: ArmRuns | None, row: int, look: Look) -> None:
    """Its difference to ``other``; a mark on zero for what others are compared with, nothing where there is none."""
    if arm is other:
        axes.plot(0, row, markersize=5.5, linestyle="none", **look.point())
    elif other is not None:
        dot(axes, loaded.difference(arm.accuracy, other.accuracy), row, look, points)
