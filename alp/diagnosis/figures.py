"""Figures of a dump, in the style of the grids' figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

from alp.diagnosis import measures as measures
from alp.diagnosis.diagnosed import Diagnosed, Parts, against_rollout, has_pairs, has_steps
from alp.diagnosis.dumps import Dump, Floats
from alp.diagnosis.measures import Figures, Pair
from alp.rendering import plots
from alp.rendering.artefact import Artefact
from alp.rendering.plots import BINS

OLD = r"$\pi_{\mathrm{old}}$"
HISTOGRAM_BINS = 80
PROBABILITY_BINS = 60
LABEL = 0.16  # of a phone's width that a tick's label takes with the space beside it
COLOURS = {
    "old_rollout": "token_mis",
    "current_old": "seq_tis",
    "current_rollout": "token_alp",
    "perturbed_rollout": "seq_alp",
}
MARKS = {"q50": "solid", "q01": "dashed", "q99": "dashed", "q001": "dotted", "q999": "dotted"}


def _colour(pair: Pair) -> str:
    return plots.HUES[COLOURS[pair.name]]


def _math(pair: Pair) -> str:
    """Its label with real subscripts."""
    text = pair.label
    for plain, typeset in (("π_θ,δ", r"$\pi_{\theta,\delta}$"), ("π_θ", r"$\pi_{\theta}$"), ("π_old", OLD)):
        text = text.replace(plain, typeset)
    return text


# ---- histograms ------------------------------------------------------------------------------------------------------


def _histograms(dump: Dump, figures: Figures, level: str, reduce: Callable[[Floats], Floats]) -> Figure:
    """One panel per pair on one scale, quantiles marked."""
    pairs = measures.pairs(dump)
    wide = plots.beside(2) == 2
    figure = plots.canvas(0.7 + (1.5 if wide else 2.1) * len(pairs))
    drawing = plots.above_legend(figure)
    panels = drawing.subplots(len(pairs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    values = [reduce(dump.difference(pair.numerator, pair.denominator)) for pair in pairs]
    plots.fit_scale(panels[0], values, axis="x")  # shared by all
    if not wide:
        locator = panels[0].xaxis.get_major_locator()
        locator.set_params(**{"numticks" if isinstance(locator, SymmetricalLogLocator) else "nbins": 4})
    edges = _edges(panels[0], min(array.min() for array in values), max(array.max() for array in values))
    # per nat and not per bin: where the scale changes, the width of the bins does, and counts would show a step that is
    # not there
    densities = [
        np.histogram(array.clip(edges[0], edges[-1]), edges)[0] / (len(array) * np.diff(edges)) for array in values
    ]
    floor = 0.5 * min(density[density > 0].min() for density in densities)
    for axes, pair, density in zip(panels, pairs, densities, strict=True):
        axes.stairs(density, edges, fill=True, color=_colour(pair), alpha=0.75, linewidth=0, baseline=floor)
        for quantile, dashes in MARKS.items():
            value = figures[f"{pair.prefix}ratio/{level}/log_{quantile}"]
            axes.axvline(value, color="#222222", linestyle=dashes, linewidth=0.9)
        axes.set_title(_math(pair))
    panels[0].set_yscale("log")
    panels[0].set_ylim(floor, 3 * max(density.max() for density in densities))
    panels[0].set_xlim(edges[0], edges[-1])
    if not wide:
        _thin_out(panels[0])
    panels[0].yaxis.set_major_locator(LogLocator(numticks=5))
    panels[0].yaxis.set_minor_locator(NullLocator())
    plots.name_powers(panels[0].yaxis)
    panels[-1].set_xlabel("log-ratio, nats" if level == "token" else "log-ratio summed over the sequence, nats")
    drawing.supylabel(f"share of the {level}s per nat", fontsize=8.5)
    labels = {"solid": "median", "dashed": "1 % and 99 %", "dotted": "0.1 % and 99.9 %"}
    handles = [
        Line2D([], [], color="#222222", linestyle=dashes, linewidth=0.9, label=label)
        for dashes, label in labels.items()
    ]
    plots.legend_below(figure, handles)
    return figure


def _thin_out(axes: Axes) -> None:
    """Ticks at a phone's width: zero, then the outermost ones inwards, each with room for its label."""
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.xaxis.get_major_locator().tick_values(low, high) if low <= tick <= high]
    places = axes.xaxis.get_transform().transform(np.array([low, high, *ticks]))
    at = dict(zip(ticks, places[2:], strict=True))
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda tick: (tick != 0, -abs(tick))):
        if all(abs(at[tick] - at[other]) > LABEL * (places[1] - places[0]) for other in kept):
            kept.append(tick)
    axes.xaxis.set_major_locator(FixedLocator(sorted(kept)))


def _edges(axes: Axes, low: float, high: float) -> Floats:
    """Edges of bins that look equally wide on the axis, whatever its scale, with zero in the middle of one.

    Equal log-probs give exactly 0 for many tokens; an edge there would put them on one side.
    """
    scale = axes.xaxis.get_transform()
    span = 1e-3 if low == high == 0 else 0.0
    start, end, zero = scale.transform(np.array([min(low, -span), max(high, span), 0.0]))
    width = (end - start) / HISTOGRAM_BINS
    below, above = np.ceil((zero - start) / width + 0.5), np.ceil((end - zero) / width + 0.5)
    middles = zero + width * (np.arange(1 - below, above + 1) - 0.5)
    edges: Floats = scale.inverted().transform(middles)
    return edges


# ---- probabilities ---------------------------------------------------------------------------------------------------


def _token_probability(dump: Dump) -> Figure:
    """Two-dimensional histogram over the unit square, and the same in log-probs, where rare tokens live."""
    pair = measures.against_rollout(dump)[0]
    rollout, old = dump.tokens[pair.denominator], dump.tokens[pair.numerator]
    above = _math(replace(pair, label=pair.label.partition(" /")[0]))
    columns = plots.beside(2)
    figure = plots.canvas(3.0 * 2 / columns)
    left, right = figure.subplots(2 // columns, columns, squeeze=False).ravel()
    unit = np.linspace(0, 1, PROBABILITY_BINS + 1)
    lowest = float(np.floor(min(rollout.min(), old.min(), -1.0)))
    logs = np.linspace(lowest, 0, PROBABILITY_BINS + 1)
    grids = [np.zeros((PROBABILITY_BINS, PROBABILITY_BINS)) for _ in range(2)]
    for start in range(0, len(old), measures.CELLS):  # the histogram takes some copies of what it counts
        # rounding may lift a log-prob a little over 0: the last bin holds it
        x, y = (np.minimum(policy[start : start + measures.CELLS], 0) for policy in (rollout, old))
        grids[0] += np.histogram2d(np.exp(x), np.exp(y), (unit, unit))[0]
        grids[1] += np.histogram2d(x, y, (logs, logs))[0]
    norm = LogNorm(1, max(2, *(grid.max() for grid in grids)))
    for axes, edges, grid in ((left, unit, grids[0]), (right, logs, grids[1])):
        shown = np.ma.masked_equal(grid.T, 0)
        mesh = axes.pcolormesh(edges, edges, shown, norm=norm, cmap="viridis", rasterized=True)
        axes.plot([edges[0], edges[-1]], [edges[0], edges[-1]], color="#b53d5a", linewidth=0.8)
        axes.set_aspect("equal")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(edges[0], edges[-1])
    left.set(title="Probability", xlabel="under μ", ylabel=f"under {above}")
    right.set(title="Log-probability", xlabel="under μ, nats", ylabel=f"under {above}, nats")
    left.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    left.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.yaxis.set_major_locator(MaxNLocator(5))
    figure.colorbar(mesh, ax=[left, right], label="tokens per bin", fraction=0.04, pad=0.02)
    return figure


# ---- envelope --------------------------------------------------------------------------------------------------------


def _envelope(dump: Dump) -> Figure:
    """One panel per pair with the rollout policy below, on one scale."""
    pairs = measures.against_rollout(dump)
    columns = plots.beside(len(pairs))
    figure = plots.canvas(2.6 * len(pairs) / columns, width=min(plots.WIDTH, 2.2 + 2.4 * len(pairs)))
    drawing = plots.above_legend(figure)
    probability = dump.means(np.exp(dump.tokens["rollout_log_probs"]))
    binned = [
        plots.envelope_bins(probability, dump.sums(dump.difference(pair.numerator, pair.denominator))) for pair in pairs
    ]
    for axes, pair, bins in zip(plots.panels(drawing, len(pairs), columns), pairs, binned, strict=True):
        plots.binned_band(axes, bins, _colour(pair))
        axes.axhline(0, color="#555555", linewidth=0.7, zorder=0.9)
        axes.set_title(_math(pair))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        plots.fit_scale(axes, [of_pair[:, 1:] for of_pair in binned])
    drawing.supxlabel("mean token probability under the rollout policy", fontsize=8.5)
    drawing.supylabel("sequence log-ratio, nats", fontsize=8.5)
    plots.legend_below(figure, plots.binned_band_handles(len(binned[0])))
    return figure


# ---- over training ---------------------------------------------------------------------------------------------------


def _steps(parts: Parts) -> Figure:
    """Mismatch against step, then a fan of quantiles per level: of the mismatch, or with log-probs of the update of the
    whole ratio."""
    pairs = list(dict.fromkeys(pair for _, _, pair, _ in parts))
    count, columns = 1 + len(pairs), plots.beside(2)
    figure = plots.canvas(0.4 + 1.75 * count * 2 / columns)
    drawing = plots.above_legend(figure)
    grid = drawing.subplots(count * 2 // columns, columns, sharex=True, squeeze=False)
    rows = grid.reshape(count, 2)
    for axes, name in zip(rows[0], ("kl", "k3_kl"), strict=True):
        drawn = []
        for pair in pairs:
            steps, values = _series(parts, pair, f"rollout_corr/{name}")
            axes.plot(steps, values, color=_colour(pair), marker="o" if len(steps) < 30 else "", markersize=2.5)
            drawn.append(values)
        plots.fit_scale(axes, drawn)
        axes.set(title=name, ylabel="nats per token")
    for line, pair in zip(rows[1:], pairs, strict=True):
        for axes, level in zip(line, ("token", "sequence"), strict=True):
            keys = [name for low, high, _ in plots.FAN for name in (low, high)]
            curves = {name: _series(parts, pair, f"ratio/{level}/log_{name}") for name in (*keys, "q50")}
            plots.fit_scale(axes, plots.fan(axes, curves, _colour(pair)))
            axes.set(title=f"{_math(pair)}, per {level}", ylabel="log-ratio, nats")
    for axes in grid[-1]:
        plots.step_ticks(axes)
        axes.set_xlabel("step")
    lines = [Line2D([], [], color=_colour(pair), label=_math(pair)) for pair in pairs]
    plots.legend_below(figure, [*lines, *plots.fan_handles()], columns=6 if len(pairs) == 1 else 4)
    return figure


def _series(parts: Parts, pair: Pair, key: str) -> tuple[Floats, Floats]:
    """Steps and the values of one figure of a pair."""
    points = [(step, figures[key]) for step, _, other, figures in parts if other is pair]
    steps, values = zip(*points, strict=True)
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)


FIGURES: tuple[Artefact[Dump, Diagnosed, Figure], ...] = (
    Artefact(
        name="token_log_ratio",
        healthy="one narrow peak around 0 with thin, symmetric tails, in a bfloat16 run hundredths of a nat wide.",
        title="Log-ratio of a token",
        caption=(
            "Density of the log-ratio over valid tokens (share of the tokens per nat, on a logarithmic scale), per "
            "pair of policies; the log-ratio is linear around zero and logarithmic beyond where a few tokens dwarf "
            "the others. Lines mark quantiles. A second peak or a long tail on one side is a bug or a policy that has "
            "moved."
        ),
        make=lambda diagnosed: _histograms(diagnosed.dump, diagnosed.figures, "token", lambda values: values),
        condition=has_pairs,
    ),
    Artefact(
        name="sequence_log_ratio",
        healthy="a narrow peak around 0: ±0.2 is a weight of 0.8 to 1.2 already.",
        title="Log-ratio of a sequence",
        caption=(
            "The same of log-ratios summed over each sequence: the weight that a sequence-level correction would use, "
            "as a logarithm. It grows with the length of the sequence, so a mismatch that looks harmless per token "
            "can be far from zero here."
        ),
        make=lambda diagnosed: _histograms(diagnosed.dump, diagnosed.figures, "sequence", diagnosed.dump.sums),
        condition=has_pairs,
    ),
    Artefact(
        name="token_probability",
        healthy="a thin line on the diagonal, in both panels.",
        title="Token probability, trainer against engine",
        caption=(
            "Probability of each sampled token under the training code (π_old, or π_θ without it) against that under "
            "the rollout policy (μ); colour counts tokens. The same weights computed twice lie on the diagonal; what "
            "lies off it is the training-inference mismatch."
        ),
        make=lambda diagnosed: _token_probability(diagnosed.dump),
        condition=against_rollout,
    ),
    Artefact(
        name="envelope",
        healthy="a thin band along 0 from left to right.",
        title="Ratio envelope",
        caption=(
            "Summed log-ratio of a sequence against its mean token probability under the rollout policy: sequences "
            f"sorted by that probability and cut into {BINS} bins of equal count (fewer with fewer sequences); each "
            "bin stands at its median probability and shows the median and the band from the 2nd to the 98th "
            "percentile. A band that opens to the left: unlikely sequences carry the mismatch."
        ),
        make=lambda diagnosed: _envelope(diagnosed.dump),
        condition=against_rollout,
    ),
    Artefact(
        name="steps",
        healthy="flat lines near 0 and bands of the same width at every step.",
        title="Over training",
        caption=(
            "Mismatch (mean of −log ratio, and the never negative mean of r − log r − 1) and quantiles of the "
            "log-ratio per token and per sequence, against step. Growth over training announces trouble before the "
            "reward does."
        ),
        make=lambda diagnosed: _steps(diagnosed.parts),
        condition=has_steps,
    ),
)
