"""Accuracy on each evaluation set of a grid that has several."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alp.rendering import plots
from alp.reporting.looks import base_line, dot, dot_handles, looks, name_rows
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=20,
    title="Evaluation sets",
    caption=(
        "Accuracy on each evaluation set at temperature 1, averaged over the samples of each problem, of the model "
        "after the last training step. Dots are means, bars 95 % intervals of the mean over training seeds on the "
        "problems of that set (none of one seed), ticks single seeds, and the dashed line is the base model, in the "
        "grey band of its samples' noise. The mean of the sets weighs each set alike, whatever its size."
    ),
    condition="has_several_sets",
)


def make(loaded: Results) -> Figure:
    """One panel per set, one row per arm: mean, interval and seeds, and the base model as a line. Each panel has a
    scale of its own."""
    arm_looks = looks(loaded)
    columns = plots.columns_for(len(loaded.sets), most=plots.beside(3))
    rows = -(-len(loaded.sets) // columns)
    row = 0.2 if plots.beside(2) == 2 else 0.27
    figure = plots.canvas(0.5 + rows * (0.7 + row * len(loaded.arms)))
    drawing = plots.above_legend(figure)
    panels = drawing.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in panels[len(loaded.sets) :]:
        axes.set_visible(False)
    for axes, (name, span) in zip(panels, loaded.sets.items(), strict=False):
        base_line(axes, loaded.base_interval(name))
        for row, arm in enumerate(loaded.arms):
            look, values = arm_looks[arm.name], arm.accuracy[:, span]
            axes.plot(100 * values.mean(axis=1), [row + 0.28] * len(values), "|", color=look.colour, markersize=4)
            dot(axes, loaded.interval(arm.accuracy, name), row, look)
        axes.set_title(f"{name} ({span.stop - span.start} problems)", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        plots.at_least(axes, 1.0)
    name_rows(panels[0], loaded, arm_looks)
    drawing.supxlabel(f"avg@{loaded.base.samples} at T = 1, %", fontsize=8.5)
    plots.legend_below(figure, dot_handles())
    return figure
