"""What each correction buys: the accuracy of every arm against how far its policy went from the one that sampled."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from alp import presets
from alp.evaluation.statistics import Interval
from alp.rendering import plots
from alp.rendering.numbers import percent, significant
from alp.reporting.arms import label
from alp.reporting.looks import base_handle, base_or_words
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=15,
    title="Accuracy against drift",
    caption=(
        "Every arm as a point: accuracy of the last weights on the test set (bar: 95 % interval of the mean over "
        "training seeds on these very problems; one seed gives none) against the divergence of its policy from the "
        "one that sampled, taken without noise over whole rollout batches after their last update (mean of r − 1 − "
        "log r, r = π_θ / μ, over logged steps and seeds). Numbers run from the highest accuracy down, as in the "
        "list of the arms; colours are the groups that alp methods prints. A cross is a collapse: an accuracy more "
        "than ten points under the base model's. Where bars overlap, the order of the numbers says nothing."
    ),
    condition="compares_corrections",
)
COLLAPSED = 0.10  # below the base model
_KEY = "clean_batch/k3_kl"
_HUES = dict(zip(presets.GROUPS, ("#572a00", "#4a7aee", "#b53d5a", "#35268f"), strict=True))
_ROW = 0.14  # inches of a name
_SIZE = 8  # points of names and numbers
_DIGIT = 5.5  # points, its width
_HALF = 20  # characters of a name that has half of a phone's width
_TICKS = (
    (0.5, (1, 1.5, 2, 3, 4, 5, 6, 8)),
    (1.7, (1, 2, 3, 5)),
    (3, (1, 3)),
    (math.inf, (1,)),
)  # up to so many decades
# Where a number may stand beside its point, in points from it to its middle: the nearest place that is free.
_PLACES = [
    (reach * math.cos(turn * math.pi / 6 + 0.4), reach * math.sin(turn * math.pi / 6 + 0.4))
    for reach in (10, 16, 24, 34, 46, 60, 76)
    for turn in range(12)
]


def make(loaded: Results) -> Figure:
    """Accuracy with its interval against the mean k3 of the clean policy to the rollout policy."""
    ranked = sorted(loaded.arms, key=lambda arm: -loaded.mean(arm.accuracy))
    figure, axes, names, listed = _canvas(len(ranked), longest=max(len(label(arm.name)) for arm in ranked))
    base = loaded.base_interval()
    known = [(number, arm) for number, arm in enumerate(ranked, 1) if arm.step_mean(_KEY)]
    for _, arm in known:
        _point(axes, arm, loaded.interval(arm.accuracy), collapsed=_collapsed(loaded, arm, base))
    if known:
        _logarithmic(axes)
    else:
        plots.empty(axes, "not logged")
    axes.set(xlabel="divergence of the policy from μ, nats per token", ylabel=f"accuracy, {loaded.average} at T = 1, %")
    plots.at_least(axes, 1.0, axis="y")
    line = bool(known) and base_or_words(axes, base, vertical=False)
    names.set_axis_off()
    for number, arm in enumerate(ranked, 1):
        column, row = divmod(number - 1, listed)
        place = (column / 2, 1 - (row + 0.5) / listed)
        names.text(*place, f"{number}  {label(arm.name)}", color=_colour(arm), va="center", fontsize=_SIZE)
    plots.legend_below(figure, _handles(ranked, base=line), columns=3)
    _numbers(figure, axes, {number: (arm.step_mean(_KEY), 100 * loaded.mean(arm.accuracy)) for number, arm in known})
    return figure


def _logarithmic(axes: Axes) -> None:
    """A logarithmic x axis with as many ticks as its width has room for, as plain numbers."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    subs = next(subs for most, subs in _TICKS if decades < most)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _canvas(arms: int, *, longest: int) -> tuple[Figure, Axes, Axes, int]:
    """The figure, the panel of points, the panel of names at its right, or below it where it is narrow, in two columns
    if the ``longest`` leaves room for them, and how many names a column has room for."""
    if plots.beside(2) == 2:
        figure = plots.canvas(max(3.4, 0.8 + _ROW * arms))
        axes, names = figure.subplots(1, 2, width_ratios=[2.6, 1])
        return figure, axes, names, max(arms, 20)
    listed = -(-arms // 2) if longest <= _HALF else arms
    heights = [max(3.4, 0.09 * arms), _ROW * listed]
    figure = plots.canvas(sum(heights) + 0.6)
    axes, names = figure.subplots(2, 1, height_ratios=heights)
    return figure, axes, names, listed


def _collapsed(loaded: Results, arm: ArmRuns, base: Interval) -> bool:
    return loaded.mean(arm.accuracy) < base.mean - COLLAPSED


def _colour(arm: ArmRuns) -> str:
    return _HUES[presets.group(arm.method)]


def _numbers(figure: Figure, axes: Axes, points: dict[int, Any]) -> None:
    """The rank beside each point, where no other number stands."""
    figure.draw_without_rendering()  # which lays the axes out
    scale = 72 / figure.dpi
    taken: list[tuple[float, float, float]] = []  # middle and width
    for number, point in points.items():
        x, y = (float(part) * scale for part in axes.transData.transform(point))
        width = _DIGIT * len(str(number)) + 1
        free = (
            place
            for place in _PLACES
            if all(
                abs(x + place[0] - left) > (width + other) / 2 or abs(y + place[1] - top) > _SIZE + 2
                for left, top, other in taken
            )
        )
        across, along = next(free, _PLACES[0])
        taken.append((x + across, y + along, width))
        middle: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": _SIZE}
        axes.annotate(str(number), point, (across, along), **middle).set_in_layout(False)


def _point(axes: Axes, arm: ArmRuns, accuracy: Interval, *, collapsed: bool) -> None:
    drift = arm.step_mean(_KEY)
    look: dict[str, Any] = {"color": _colour(arm), "zorder": 3.0}
    assert drift is not None
    if accuracy.low is not None and accuracy.high is not None:
        axes.plot([drift, drift], [100 * accuracy.low, 100 * accuracy.high], linewidth=0.9, alpha=0.5, **look)
    name = f"{label(arm.name)}: {percent(accuracy.mean)} at {significant(drift)}"
    axes.plot(
        drift, 100 * accuracy.mean, "x" if collapsed else "o", markersize=5 if collapsed else 4, label=name, **look
    )


def _handles(arms: list[ArmRuns], *, base: bool) -> list[Line2D]:
    groups = [name for name in presets.GROUPS if any(presets.group(arm.method) == name for arm in arms)]
    marks = [
        Line2D([], [], color=_HUES[name], marker="o", markersize=4, linestyle="none", label=name) for name in groups
    ]
    cross = Line2D([], [], color="#444444", marker="x", markersize=5, linestyle="none", label="collapsed")
    return [*marks, cross, *([base_handle()] if base else [])]
