"""How many responses were cut at the length limit: they earn nothing, so a method that writes longer must not be judged
by that alone."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alp.reporting import plots
from alp.reporting.plots import Look
from alp.reporting.runs import Results


def limit(loaded: Results, looks: dict[str, Look]) -> Figure:
    """Share of cut test samples per arm, and of cut training responses against step."""
    figure = plots.canvas(1.6 + 0.24 * len(loaded.arms))
    left, right = figure.subplots(1, 2)
    if loaded.base.truncated is not None:
        left.axvline(100 * loaded.base.truncated, color=plots.BASE_COLOUR, linestyle="dashed", linewidth=1)
    for row, arm in enumerate(loaded.arms):
        look = looks[arm.name]
        shares = [100 * run.evaluation.truncated for run in arm.runs if run.evaluation.truncated is not None]
        if shares:
            left.plot(shares, [row + 0.28] * len(shares), "|", color=look.colour, markersize=4)
            left.plot(sum(shares) / len(shares), row, markersize=5.5, linestyle="none", **look.point())
        steps, values = arm.series("response/truncated")
        plots.band(right, steps, 100 * values, look, len(loaded.arms))
    per_seed = loaded.base.problems * loaded.base.samples
    left.set(title="Test samples cut at the limit", xlabel=f"% of {per_seed} samples a seed")
    left.set_yticks(range(len(loaded.arms)), [looks[arm.name].label for arm in loaded.arms])
    left.set_ylim(len(loaded.arms) - 0.5, -0.5)
    right.set(title="Training responses cut at the limit", xlabel="step (rollout batch)", ylabel="%")
    plots.step_ticks(right)
    for axes, low in ((left, left.set_xlim), (right, right.set_ylim)):
        high = axes.dataLim.xmax if axes is left else axes.dataLim.ymax
        low(-0.04 * max(high, 1.0), 1.08 * max(high, 1.0))  # a grid in which nothing was cut still has a scale
    base = Line2D([], [], color=plots.BASE_COLOUR, linestyle="dashed", linewidth=1, label="Base model")
    plots.legend_below(figure, [base, *plots.arm_handles(looks.values(), markers=True)])
    return figure
