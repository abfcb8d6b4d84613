"""How every figure looks and is saved: one style, the same bytes each time; and the shapes that figures of grids and of
dumps share.

No pyplot and no global state: figures are built on the Agg canvas under matplotlib's own defaults, whatever a user's
matplotlibrc says.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from alp.rendering import readout
from alp.reproducibility import write_bytes, write_text

Floats = NDArray[np.float64]

WIDTH = 7.0  # inches: the text width of a one-column page, so that the font sizes below are those in print
PHONE = 3.5  # the same of a phone's screen
DOTS = 200
BINS = 12  # of an envelope
_HANDLE = 2.6  # font sizes, the line of a legend's entry
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "alp",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "axes.formatter.limits": (-5, 5),
}
# Ten hues that stay at least 29 apart in CIE Lab under normal, protan, deutan and tritan vision (found by search over
# that distance), black kept for the base model. Bypass is the pale sister of ALP at the same level.
HUES = {
    "grpo": "#572a00",
    "gspo": "#c7b62b",
    "token_bypass": "#f092b4",
    "seq_bypass": "#b7afff",
    "token_tis": "#4ed276",
    "seq_tis": "#617e00",
    "token_mis": "#4a7aee",
    "seq_mis": "#925c9d",
    "token_alp": "#b53d5a",
    "seq_alp": "#35268f",
}
BASE_COLOUR = "#000000"
CLEAN: dict[str, Any] = {"color": "#1a1a1a", "linestyle": (0, (2.6, 1.3)), "linewidth": 1.0}  # over bands of any hue
FAN = (
    ("q001", "q999", 0.16),
    ("q01", "q99", 0.2),
    ("q05", "q95", 0.25),
    ("q25", "q75", 0.35),
)  # opacities add up inwards


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and ours on top, for the time of a block."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


_LONG = 20  # characters of a line of an arm's name, of those that a phone's width has room for
_NARROW: ContextVar[bool] = ContextVar("narrow", default=False)


@contextmanager
def narrow() -> Iterator[None]:
    """Figures of a phone's width, for the time of a block."""
    token = _NARROW.set(True)
    try:
        yield
    finally:
        _NARROW.reset(token)


def beside(panels: int, narrow: int = 1) -> int:
    """How many of so many panels stand side by side: no more than ``narrow`` where it is narrow."""
    return min(panels, narrow) if _NARROW.get() else panels


def stacked(panels: int) -> int:
    """How many of so many panels stand one below the other: all of them where it is narrow."""
    return panels // beside(panels)


def row_of(figure: FigureBase, count: int, **shared: Any) -> list[Axes]:
    """``count`` panels beside each other, or one below the other where it is narrow; ``shared`` is of ``subplots``."""
    return list(figure.subplots(stacked(count), beside(count), squeeze=False, **shared).ravel())


def name(label: str) -> str:
    """The name of an arm as a row or a small panel has room for it: in lines where it is narrow, the variant in its own
    where that is enough."""
    if not _NARROW.get() or len(label) <= _LONG:
        return label
    lines = label.replace(" (", "\n(").split("\n")
    return "\n".join(lines if max(map(len, lines)) <= _LONG else textwrap.wrap(label, _LONG, break_on_hyphens=False))


def head(axes: Axes, title: str, unit: str) -> None:
    """What a panel shows and in what unit: above it and beside it, or in one line above it where it is narrow."""
    if _NARROW.get():
        axes.set_title(f"{title}: {unit}")
    else:
        axes.set(title=title, ylabel=unit)


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure in inches whose layout keeps text from overlapping."""
    width = min(width, PHONE) if _NARROW.get() else width
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """Write ``stem``.svg, with the numbers of its named lines, and ``stem``.png, each whole or not at all, without
    date."""
    write_text(stem.with_suffix(".svg"), svg(figure))
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=DOTS)
    write_bytes(stem.with_suffix(".png"), pixels.getvalue())


def svg(figure: Figure) -> str:
    """The drawing as SVG, with the numbers of its named lines."""
    vector = io.BytesIO()
    figure.savefig(vector, format="svg", dpi=DOTS, metadata={"Date": None})
    return readout.within(vector.getvalue().decode(), figure)


def above_legend(figure: Figure) -> SubFigure:
    """The whole figure once more as a part of it: common axis labels of a part stay clear of the legend of the
    whole."""
    part: SubFigure = figure.subfigures(squeeze=False)[0, 0]
    return part


def columns_for(count: int, most: int = 4) -> int:
    """Columns of ``count`` small multiples: as few rows as ``most`` allows, filled as evenly as possible."""
    return math.ceil(count / math.ceil(count / most))


def panels(figure: FigureBase, count: int, columns: int, *, share_y: bool = True) -> list[Axes]:
    """``count`` small multiples in rows of ``columns``, with common x (and y) axes; spare places stay empty."""
    grid = figure.subplots(math.ceil(count / columns), columns, sharex=True, sharey=share_y, squeeze=False)
    flat = [axes for row in grid for axes in row]
    for position, axes in enumerate(flat):
        axes.set_visible(position < count)
        axes.yaxis.set_major_locator(
            MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        )  # the default leaves low panels two ticks
        # with a spare place below, the panel above it carries the tick labels of its column
        axes.tick_params(labelbottom=position + columns >= count)
    return flat[:count]


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    """A legend under everything."""
    columns = _legend_columns(handles, columns)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, handlelength=_HANDLE)


def legend_rows(handles: Sequence[Artist], columns: int = 4) -> int:
    """Rows of a legend of ``handles``, for the height of what it stands under."""
    return math.ceil(len(handles) / _legend_columns(handles, columns))


def _legend_columns(handles: Sequence[Artist], columns: int) -> int:
    """No more than ``columns``; of a phone's width, as many as it has room for."""
    columns = min(columns, len(handles))
    if not _NARROW.get():
        return columns
    size = float(mpl.rcParams["legend.fontsize"])
    names = [str(handle.get_label()) for handle in handles]
    widths = [float(TextPath((0, 0), name, size=size).get_extents().width) / size for name in names]
    # In font sizes, as matplotlib's legends are: its border, between two columns, between a line and its name.
    room, border, between, beside_line = 72 * PHONE / size, 2 * 0.9, 2.0, 0.8
    for count in range(columns, 1, -1):
        widest = [max(part) for part in np.array_split(np.array(widths), count)]
        if sum(widest) + count * (_HANDLE + beside_line) + (count - 1) * between + border <= room:
            return count
    return 1


def stretched(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """A single step as a short stretch around it, so that its line or band is seen; more as they are. Steps are the
    last axis."""
    if len(steps) != 1:
        return steps, values
    return steps[0] + np.array([-0.3, 0.3]), np.repeat(values, 2, axis=-1)


def step_ticks(axes: Axes, most: int | None = None) -> None:
    """Whole steps alone on the x axis."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=most or "auto", integer=True, min_n_ticks=1))


def ticks_at(axes: Axes, steps: Sequence[float], most: int = 9) -> None:
    """Ticks at measured steps alone, the last one among them: every one, or every second, third … of many."""
    every = max(1, math.ceil((len(steps) - 1) / max(1, most - 1)))
    axes.xaxis.set_major_locator(FixedLocator([*steps[::-1][::every]][::-1]))


def at_least(axes: Axes, span: float, *, axis: str = "x") -> None:
    """Widen an axis whose values all but agree: what differs by rounding shall not fill the panel."""
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    if high - low < span:
        change = axes.set_xlim if axis == "x" else axes.set_ylim
        change((low + high - span) / 2, (low + high + span) / 2)


def fan(axes: Axes, curves: Mapping[str, tuple[Floats, Floats]], colour: str) -> list[Floats]:
    """Quantiles against step as nested bands: ``curves`` maps q001 … q999 to (steps, values). Returns the outermost two
    curves."""
    axes.plot(*stretched(*curves["q50"]), color=colour, linewidth=1.1)
    outer: list[Floats] = []
    for low, high, opacity in FAN:
        (steps, below), (_, above) = curves[low], curves[high]
        if steps.size and below.shape == above.shape:
            ends = [below, above]
            wide, drawn = stretched(steps, np.array(ends))
            axes.fill_between(wide, *drawn, color=colour, alpha=opacity, linewidth=0)
            if not outer:
                axes.plot(wide, drawn.T, color=colour, linewidth=0.6)
            outer = outer or ends
    return outer


def fan_handles() -> list[Artist]:
    """Legend entries of the bands of a fan, and of its median."""
    inward = [sum(opacity for *_, opacity in FAN[: band + 1]) for band in range(len(FAN))]
    names = ("0.1–99.9 %", "1–99 %", "5–95 %", "25–75 %")
    handles = [
        Patch(color="#444444", alpha=opacity, linewidth=0, label=name)
        for opacity, name in zip(inward, names, strict=True)
    ]
    return [*handles, Line2D([], [], color="#444444", linewidth=1.1, label="median")]


def tail_bar(axes: Axes, ends: Sequence[float | None], height: float, colour: str) -> Floats:
    """Quantiles 0.1, 1, 99 and 99.9 % as a thin and a thick bar; returns them (4,), NaN where one is missing."""
    known = np.array([np.nan if end is None else end for end in ends])
    axes.plot(known[[0, 3]], [height, height], color=colour, linewidth=1.4)
    axes.plot(known[[1, 2]], [height, height], color=colour, linewidth=5, solid_capstyle="butt")
    return known


def envelope_bins(probability: Floats, log_ratio: Floats, bins: int = BINS) -> Floats:
    """Rows (bins, 4): median probability, then P2, median and P98 of the log-ratio, in bins of equal count (to one
    sequence).

    Inputs (sequences,) in any order; equal probabilities stay in the order given. Fewer sequences than bins: one bin
    each.
    """
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if part.size] if len(order) else []
    rows = [[np.median(probability[part]), *np.percentile(log_ratio[part], [2, 50, 98])] for part in parts]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def binned_band(axes: Axes, binned: Floats, colour: str) -> None:
    """An envelope: rows of ``binned`` hold the middle of a bin, then the lower end, median and upper end there."""
    axes.fill_between(binned[:, 0], binned[:, 1], binned[:, 3], color=colour, alpha=0.3, linewidth=0)
    axes.plot(binned[:, 0], binned[:, 2], color=colour, linewidth=1.2, marker="o", markersize=2.2)


def clean_handle(label: str) -> Line2D:
    """Legend entry of what is drawn of the clean policy over a method's own ratio."""
    return Line2D([], [], label=label, **CLEAN)


def binned_band_handles(bins: int) -> list[Artist]:
    """Legend entries of ``binned_band``."""
    line = Line2D(
        [], [], color="#444444", marker="o", markersize=2.5, label=f"median of each of {bins} bins of equal count"
    )
    return [Patch(color="#444444", alpha=0.3, linewidth=0, label="2–98 %"), line]


def fit_scale(axes: Axes, values: Sequence[Floats], *, axis: str = "y") -> None:
    """A logarithmic axis (symmetric where signs differ) when the largest value would flatten the rest; else linear."""
    pooled = np.concatenate([array[np.isfinite(array)].ravel() for array in values]) if values else np.array([])
    sizes = np.abs(pooled[pooled != 0])
    if not sizes.size or sizes.max() < 60 * np.median(sizes):
        return
    change = axes.set_yscale if axis == "y" else axes.set_xscale
    if (pooled > 0).all():
        change("log")
    else:
        change("symlog", linthresh=10.0 ** math.ceil(math.log10(np.median(sizes))), linscale=0.7)
    name_powers(axes.yaxis if axis == "y" else axes.xaxis)


def name_powers(axis: Axis) -> None:
    """Label the powers of ten of a logarithmic axis, and nothing between them, in plain characters: matplotlib parses
    each of its own labels as a formula, at every drawing."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    axis.set_minor_formatter(NullFormatter())


def power(value: float) -> str:
    """10⁻³, −10², 0; another number as it is."""
    exponent = math.log10(abs(value)) if value else 0.0
    if not value or abs(exponent - round(exponent)) > 1e-9:
        return f"{value:g}".replace("-", "−")
    return f"{'−' if value < 0 else ''}10{str(round(exponent)).translate(_RAISED)}"


def empty(axes: Axes, text: str) -> None:
    """Say in the panel why it holds nothing."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#666666")
