"""How arms look in the figures of a grid: one hue and marker per method, dashes per variant; and what several of these
figures draw alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alp.evaluation.statistics import Interval
from alp.rendering import plots
from alp.rendering.numbers import Cell, percent
from alp.rendering.plots import BASE_COLOUR, HUES
from alp.reporting.arms import label
from alp.reporting.records import Floats
from alp.reporting.runs import ArmRuns, Results

_MARKERS = dict(zip(HUES, "oPsDv<>p^X", strict=True))
_DASHES: list[Any] = ["solid", (0, (4, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (2.5, 1, 1, 1, 1, 1))]

_ROOM = 2.0  # times the arms' own span: more of an axis is not spent on the base model


@dataclass(frozen=True)
class Look:
    """How one arm is drawn in every figure: its method's hue and marker, its variant's dashes."""

    label: str
    colour: str
    dashes: Any
    marker: str
    filled: bool

    def line(self) -> dict[str, Any]:
        return {"color": self.colour, "linestyle": self.dashes}

    def point(self) -> dict[str, Any]:
        """A marker without a colour for its line; hollow for variants."""
        face = self.colour if self.filled else "white"
        return {"marker": self.marker, "markerfacecolor": face, "markeredgecolor": self.colour}


def looks(loaded: Results) -> dict[str, Look]:
    """Looks by arm name. Methods without a fixed hue take the unused ones in alphabetical order."""
    methods = {runs.arm.method for runs in loaded.arms}
    free = [name for name in HUES if name not in methods] or list(HUES)
    borrowed = {method: free[position % len(free)] for position, method in enumerate(sorted(methods - HUES.keys()))}
    chosen: dict[str, Look] = {}
    for runs in loaded.arms:
        method, variant = runs.arm.method, runs.arm.variant
        hue = borrowed.get(method, method)
        variants = [other.arm.variant for other in loaded.arms if other.arm.method == method and other.arm.variant]
        rank = 0 if variant is None else 1 + variants.index(variant)
        dashes = _DASHES[min(rank, len(_DASHES) - 1)]
        chosen[runs.name] = Look(label(runs.name), HUES[hue], dashes, _MARKERS[hue], variant is None)
    return chosen


def arm_handles(chosen: Iterable[Look], *, markers: bool = False) -> list[Artist]:
    """Legend entries of arms, as lines and, where the figure has them, markers."""
    return [
        Line2D([], [], label=look.label, markersize=4, **look.line(), **(look.point() if markers else {}))
        for look in chosen
    ]


def base_handle(label: str = "Base model") -> Line2D:
    """Legend entry of the base model's line."""
    return Line2D([], [], color=BASE_COLOUR, linestyle="dashed", linewidth=1, label=label)


def name_rows(axes: Axes, loaded: Results, chosen: dict[str, Look]) -> None:
    """One row per arm, the first on top."""
    axes.set_yticks(range(len(loaded.arms)), [plots.name(chosen[arm.name].label) for arm in loaded.arms])
    axes.set_ylim(len(loaded.arms) - 0.5, -0.5)


def curve(axes: Axes, arm: ArmRuns, key: str, look: Look, arms: int) -> Floats:
    """A training metric against step, as a band over seeds; returns its values (seeds, steps)."""
    steps, values = arm.series(key)
    band(axes, steps, values, look, arms)
    return values


def band(axes: Axes, steps: Floats, values: Floats, look: Look, arms: int, **line: Any) -> None:
    """Mean over seeds (rows of ``values``) with the range from the lowest to the highest seed, paler among many
    ``arms``."""
    if not steps.size:
        return
    wide, stretched = plots.stretched(steps, values)
    drawn = (steps, values) if "marker" in line else (wide, stretched)
    axes.plot(drawn[0], np.nanmean(drawn[1], axis=0), label=look.label, **look.line(), **line)
    if len(values) > 1:
        axes.fill_between(
            wide,
            np.nanmin(stretched, axis=0),
            np.nanmax(stretched, axis=0),
            color=look.colour,
            alpha=0.17 if arms <= 5 else 0.11 if arms <= 9 else 0.07,
            linewidth=0,
        )


def dot(axes: Axes, value: Interval, row: float, look: Look, show: Callable[[Cell], str] = percent) -> None:
    """An accuracy in per cent with its interval, where it has one, as a bar; ``show`` makes the numbers' text."""
    if value.low is not None and value.high is not None:
        ends = [100 * value.low, 100 * value.high]
        axes.plot(ends, [row, row], color=look.colour, linewidth=1.8, solid_capstyle="butt")
    label = f"{look.label}: {show(value.mean)}"
    if value.low is not None and value.high is not None:
        label += f" [{show(value.low)}, {show(value.high)}]"
    axes.plot(100 * value.mean, row, label=label, markersize=5.5, linestyle="none", color=look.colour, **look.point())


def base_line(axes: Axes, base: Interval, *, vertical: bool = True) -> None:
    """The base model's accuracy in per cent as a line in the band of its interval."""
    band, line = (axes.axvspan, axes.axvline) if vertical else (axes.axhspan, axes.axhline)
    if base.low is not None and base.high is not None:
        band(100 * base.low, 100 * base.high, color=BASE_COLOUR, alpha=0.08, linewidth=0)
    line(100 * base.mean, color=BASE_COLOUR, linestyle="dashed", linewidth=1)


def base_or_words(axes: Axes, base: Interval, *, vertical: bool = True) -> bool:
    """The base model's line where the arms' scale has room for it; else where it lies, in words: a base model far below
    its arms would leave them a sliver of the axis. Returns whether the line is there."""
    low, high = axes.get_xlim() if vertical else axes.get_ylim()
    ends = [100 * end for end in (base.low, base.mean, base.high) if end is not None]
    if max(high, *ends) - min(low, *ends) <= _ROOM * (high - low):
        base_line(axes, base, vertical=vertical)
        return True
    below, text = 100 * base.mean < low, f"base model {percent(base.mean)} %"
    if vertical:
        place, text = ((0.02, 0.01), f"← {text}") if below else ((0.98, 0.01), f"{text} →")
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom + 0.7, top)
    else:
        place, text = ((0.02, 0.02), f"↓ {text}") if below else ((0.02, 0.93), f"↑ {text}")
        axes.set_ylim(low - 0.12 * (high - low) * below, high + 0.12 * (high - low) * (not below))
    side = "right" if place[0] > 0.5 else "left"
    axes.text(*place, text, transform=axes.transAxes, ha=side, va="bottom", color="#333333")
    return False


def dot_handles(*, base: bool = True) -> list[Artist]:
    """Legend entries of ``dot``, of the ticks of single seeds and, where it is there, of the base model's line."""
    return [
        Line2D([], [], color="#444444", marker="o", markersize=4.5, linewidth=1.4, label="mean, 95 % interval"),
        Line2D([], [], color="#444444", marker="|", markersize=5, linestyle="none", label="one seed"),
        *([base_handle("base model")] if base else []),
    ]


def by_level(loaded: Results) -> list[tuple[str, list[ArmRuns]]]:
    """Arms by the level of their ratio with a title each; levels without arms are left out."""
    titles = {"token": "Token-level ratio", "sequence": "Sequence-level ratio"}
    groups = [(title, [arm for arm in loaded.arms if arm.ratio_level == level]) for level, title in titles.items()]
    return [(title, arms) for title, arms in groups if arms]


def two_levels(loaded: Results) -> tuple[Figure, list[tuple[Axes, list[ArmRuns]]]]:
    """One panel for token-level and one for sequence-level methods, on one scale: a dozen curves would hide each
    other."""
    groups = by_level(loaded)
    names = arm_handles(looks(loaded).values(), markers=True)
    figure = plots.canvas(2.7 * plots.stacked(len(groups)) + 0.17 * plots.legend_rows(names))
    panels = plots.row_of(figure, len(groups), sharex=True, sharey=True)
    for axes, (title, _) in zip(panels, groups, strict=True):
        axes.set_title(title)
    return figure, [(axes, arms) for axes, (_, arms) in zip(panels, groups, strict=True)]


def label_sides(axes_of: list[tuple[Axes, list[ArmRuns]]], below: str, left: str) -> None:
    """Axis labels of the panels of :func:`two_levels`, where they do not repeat what the next panel says."""
    for axes, _ in axes_of[-plots.beside(len(axes_of)) :]:
        axes.set_xlabel(below)
    for axes, _ in axes_of[: plots.stacked(len(axes_of))]:
        axes.set_ylabel(left)
