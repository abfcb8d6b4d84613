"""A noise budget as a figure: variance of Δ log π by layer, of all layers together, and of the engine's mismatch, on
one logarithmic scale. What ``alp noise`` and a grid's report share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from alp.rendering import plots
from alp.rendering.numbers import significant

MISMATCH_COLOUR = "#222222"
ROUNDING = 1e-5  # standard deviation of a token's log π below which two codes differ by the rounding of float32 alone
_APART = 0.12  # of the axis: labels of shares that are nearer would touch
_LEAST = 0.01  # share that is worth a label where layers are many
_MOST_TICKS = 12


@dataclass(frozen=True)
class Profile:
    """Variances in nats² at one level: of each source (a layer, or a band of them), of all together, and of the
    mismatch (None: not known). A missing figure of a source is NaN. ``errors`` are of the sources and the whole."""

    names: Sequence[str]
    variances: Sequence[float]
    together: float
    mismatch: float | None
    errors: Sequence[float] = ()

    @property
    def shares(self) -> list[float]:
        """Of the sum over the sources; NaN where that is 0 or not known."""
        whole = math.fsum(self.variances)
        return [part / whole if whole else math.nan for part in self.variances]

    @property
    def shown_mismatch(self) -> float | None:
        """The mismatch where it is more than rounding."""
        exact = self.mismatch is None or math.sqrt(self.mismatch) < ROUNDING
        return None if exact else self.mismatch


def draw(
    axes: Axes, profile: Profile, colour: str, *, hollow: bool = False, shares: bool = True, shift: float = 0.0
) -> None:
    """A dot for each layer, a diamond for all of them, a dashed line (dotted with ``hollow`` marks) for the mismatch;
    ``shift`` moves the marks aside. To be followed by :func:`fit`."""
    axes.set_yscale("log")
    middle = [*range(len(profile.names)), len(profile.names) + 0.4]
    places = [place + shift for place in middle]
    heights = [value if value > 0 else math.nan for value in (*profile.variances, profile.together)]
    face = "white" if hollow else colour
    axes.plot(places[:-1], heights[:-1], "o", color=colour, markerfacecolor=face, markersize=4.5, zorder=3)
    axes.plot(places[-1:], heights[-1:], "D", color=colour, markerfacecolor=face, markersize=5, zorder=3)
    if profile.errors:
        # two standard errors; the lower end stays on the logarithmic axis
        low = [min(2 * error, 0.9 * height) for error, height in zip(profile.errors, heights, strict=True)]
        high = [2 * error for error in profile.errors]
        axes.errorbar(places, heights, [low, high], fmt="none", ecolor=colour, elinewidth=1, zorder=2)
    if profile.shown_mismatch is not None:
        style = ":" if hollow else "--"
        axes.axhline(profile.shown_mismatch, color=MISMATCH_COLOUR, linewidth=1.3, linestyle=style)
    if shares:
        _label_shares(axes, profile, heights, shift)
    _ticks(axes, profile.names, middle[-1])


def fit(axes: Axes, profiles: Sequence[Profile]) -> None:
    """Limits that hold everything drawn, with room for the topmost label."""
    values = [value for item in profiles for value in (*item.variances, item.together, item.shown_mismatch or 0.0)]
    known = [value for value in values if value > 0]
    if known:
        axes.set_ylim(min(known) / 2.5, max(known) * (max(known) / min(known)) ** 0.12 * 2.5)


def handles(colour: str, mismatch: str | None, *, unknown: str = "") -> list[Artist]:
    """Legend entries: ``mismatch`` says whose it is; without one ``unknown`` says why no line is drawn."""
    alone = "one layer's noise alone (% of their sum)"
    rows: list[Artist] = [
        Line2D([], [], marker="o", linestyle="", color=colour, markersize=4.5, label=alone),
        Line2D([], [], marker="D", linestyle="", color=colour, markersize=5, label="all layers together"),
    ]
    line = "" if mismatch is None else "--"
    label = unknown if mismatch is None else f"mismatch π_old/μ: {mismatch}"
    return [*rows, Line2D([], [], linestyle=line, color=MISMATCH_COLOUR, linewidth=1.3, label=label)]


def _label_shares(axes: Axes, profile: Profile, heights: Sequence[float], shift: float) -> None:
    """Percentages above the dots, the largest first, where there is room for them; of many layers those that matter."""
    placed: list[int] = []
    least = _LEAST if len(profile.names) > _MOST_TICKS else 0.0
    room = _APART * (len(profile.names) + 1)
    order = sorted(range(len(profile.names)), key=lambda place: -_finite(profile.shares[place]))
    for place in order:
        share = profile.shares[place]
        if not math.isfinite(share) or share < least or not math.isfinite(heights[place]):
            continue
        if all(abs(place - other) >= room for other in placed):
            placed.append(place)
            text = "> 99 %" if 0.995 <= share < 1 else f"{significant(100 * share, 3 if share == 1 else 2)} %"
            top = heights[place] + (2 * profile.errors[place] if profile.errors else 0)
            axes.annotate(
                text, (place + shift, top), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8
            )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _ticks(axes: Axes, names: Sequence[str], last: float) -> None:
    """Names of the layers, not too many, and of the whole; powers of ten, not too many."""
    every = -(-len(names) // _MOST_TICKS)
    every = every if every == 1 else 5 * -(-every // 5)
    shown = [*range(0, len(names), every)]
    shown = [place for place in shown if last - place >= 0.06 * last or len(names) <= _MOST_TICKS]
    axes.set_xticks([*shown, last], [*(names[place] for place in shown), "all"])
    margin = max(0.6, 0.05 * last)
    axes.set_xlim(-margin, last + margin)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    plots.name_powers(axes.yaxis)
