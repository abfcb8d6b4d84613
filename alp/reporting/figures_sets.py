"""Accuracy on each evaluation set of a grid that has several (workflow/report/sets.rst says what it shows)."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alp.evaluation import statistics
from alp.reporting import plots
from alp.reporting.plots import Look
from alp.reporting.runs import Results


def sets(loaded: Results, looks: dict[str, Look]) -> Figure:
    """One panel per set, one row per arm: mean, interval and seeds, and the base model as a line. Each panel has a
    scale of its own."""
    columns = plots.columns_for(len(loaded.sets), most=3)
    rows = -(-len(loaded.sets) // columns)
    figure = plots.canvas(0.5 + rows * (0.7 + 0.2 * len(loaded.arms)))
    drawing = plots.above_legend(figure)
    panels = drawing.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in panels[len(loaded.sets) :]:
        axes.set_visible(False)
    for axes, (name, place) in zip(panels, loaded.sets.items(), strict=False):
        base = statistics.interval(loaded.base.per_problem[None, place])
        axes.axvspan(100 * base.low, 100 * base.high, color=plots.BASE_COLOUR, alpha=0.08, linewidth=0)
        axes.axvline(100 * base.mean, color=plots.BASE_COLOUR, linestyle="dashed", linewidth=1)
        for row, arm in enumerate(loaded.arms):
            look, values = looks[arm.name], arm.accuracy[:, place]
            axes.plot(100 * values.mean(axis=1), [row + 0.28] * len(values), "|", color=look.colour, markersize=4)
            plots.dot(axes, statistics.interval(values), row, look)
        axes.set_title(f"{name} ({place.stop - place.start} problems)", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        plots.at_least(axes, 1.0)
    panels[0].set_yticks(range(len(loaded.arms)), [looks[arm.name].label for arm in loaded.arms])
    panels[0].set_ylim(len(loaded.arms) - 0.5, -0.5)
    drawing.supxlabel(f"avg@{loaded.base.samples} at T = 1, %", fontsize=8.5)
    plots.legend_below(figure, plots.dot_handles())
    return figure
