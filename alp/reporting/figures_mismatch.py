"""The figure of a grid that compares engines (workflow/report/mismatch.rst says what it shows)."""

from __future__ import annotations

import itertools

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alp.reporting import mismatch as measures
from alp.reporting import plots
from alp.reporting.plots import Look
from alp.reporting.runs import ArmRuns, Results

_GAP = 0.6  # rows between two engines


def mismatch(loaded: Results, looks: dict[str, Look]) -> Figure:
    """Divergence, log-ratio quantiles and final accuracy, one row per engine and method."""
    arms = measures.by_engine(loaded)
    places = _places(arms)
    figure = plots.canvas(1.2 + 0.21 * (places[-1] + 1))
    divergence, ratio, accuracy = figure.subplots(1, 3, sharey=True)
    tails = []
    for place, arm in zip(places, arms, strict=True):
        colour = looks[arm.name].colour
        for key, marker in ((measures.KL, "|"), (measures.K3, "o")):
            value = arm.step_mean(key)
            if value is not None and value > 0:
                divergence.plot(value, place, marker=marker, color=colour, markersize=5, linestyle="none")
        ends = [measures.quantile(arm, "token", name) for name in measures.QUANTILES]
        tails.append(plots.tail_bar(ratio, ends, place, colour))
        _accuracy(accuracy, loaded, arm, place, colour)
    divergence.set_xscale("log")
    divergence.set(title="Divergence", xlabel="nats per token")
    plots.fit_scale(ratio, tails, axis="x")
    ratio.axvline(0, color="#555555", linewidth=0.8, zorder=0.9)
    ratio.set(title="Log-ratio of a token", xlabel="nats")
    accuracy.set(title="Accuracy on the test set", xlabel=f"{loaded.average} at T = 1, %")
    _name_rows(divergence, loaded, arms, places)
    dark = "#444444"
    handles = [
        Line2D([], [], color=dark, marker="|", markersize=5, linestyle="none", label="KL"),
        Line2D([], [], color=dark, marker="o", markersize=4.5, linestyle="none", label="k3"),
        Line2D([], [], color=dark, linewidth=5, solid_capstyle="butt", label="1–99 %"),
        Line2D([], [], color=dark, linewidth=1.4, label="0.1–99.9 %, 95 % interval"),
    ]
    plots.legend_below(figure, handles)
    return figure


def _places(arms: list[ArmRuns]) -> list[float]:
    """Heights of the rows, engines a little apart."""
    place, found = 0.0, [0.0]
    for before, arm in itertools.pairwise(arms):
        place += 1 + _GAP * (before.engine != arm.engine)
        found.append(place)
    return found


def _name_rows(axes: Axes, loaded: Results, arms: list[ArmRuns], places: list[float]) -> None:
    labels = [f"{arm.engine} · {measures.method_label(arm, loaded)}" for arm in arms]
    axes.set_yticks(places, labels)
    axes.set_ylim(places[-1] + 0.6, -0.6)


def _accuracy(axes: Axes, loaded: Results, arm: ArmRuns, place: float, colour: str) -> None:
    value = loaded.interval(arm.accuracy)
    axes.plot([100 * value.low, 100 * value.high], [place, place], color=colour, linewidth=1.4)
    axes.plot(100 * value.mean, place, "o", color=colour, markersize=4.5)
