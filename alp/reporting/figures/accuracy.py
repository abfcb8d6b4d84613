"""The accuracy of every arm, and its difference to GRPO."""

from __future__ import annotations

from matplotlib.figure import Figure

from alp.rendering import plots
from alp.reporting.arms import REFERENCE
from alp.reporting.looks import base_line, dot, dot_handles, looks, name_rows
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=10,
    title="Accuracy",
    caption=(
        "Left: accuracy on the test set of the model after the last training step, one row per arm in the order of "
        "the grid (of several evaluation sets the plain mean, whatever their sizes); dots are means, bars 95 % "
        "intervals of the mean over training seeds on these very problems, ticks single seeds, and the dashed line "
        "is the base model, in the grey band of its samples' noise. Right: difference to GRPO, taken seed by seed; a "
        "bar that crosses zero is no evidence either way, and of several bars one in twenty misses the truth. One "
        "seed gives no bar."
    ),
)


def make(loaded: Results) -> Figure:
    """Accuracy with interval per arm, and the paired difference to GRPO."""
    arm_looks = looks(loaded)
    reference = loaded.find(REFERENCE)
    figure = plots.canvas(0.9 + 0.27 * len(loaded.arms))
    left, *right = figure.subplots(1, 2 if reference else 1, sharey=True, squeeze=False)[0]
    base_line(left, loaded.base_interval())
    for row, arm in enumerate(loaded.arms):
        seeds = [100 * loaded.mean(of_seed) for of_seed in arm.accuracy]
        left.plot(seeds, [row + 0.28] * len(arm.runs), "|", color=arm_looks[arm.name].colour, markersize=4)
        dot(left, loaded.interval(arm.accuracy), row, arm_looks[arm.name])
        if arm is reference:
            right[0].plot(0, row, markersize=5.5, linestyle="none", **arm_looks[arm.name].point())
        elif reference:
            dot(right[0], loaded.difference(arm.accuracy, reference.accuracy), row, arm_looks[arm.name])
    left.set(title="Accuracy on the test set" + "s" * (len(loaded.sets) > 1), xlabel=f"{loaded.average} at T = 1, %")
    name_rows(left, loaded, arm_looks)
    for axes in (left, *right):
        plots.at_least(axes, 1.0)
    for axes in right:
        axes.axvline(0, color="#555555", linewidth=1, zorder=0.9)
        axes.set(title="Paired difference to GRPO", xlabel="percentage points")
        axes.tick_params(left=False)
    plots.legend_below(figure, dot_handles())
    return figure
