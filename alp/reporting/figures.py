"""Figures of a finished grid: results/<grid>/figures/<name>.{svg,png}. What each shows is in
workflow/report/<name>.rst."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from alp.configuration.grid import Grid
from alp.evaluation import passk
from alp.ownership import claimed
from alp.reporting import plots, runs
from alp.reporting.figures_limit import limit
from alp.reporting.figures_mismatch import mismatch
from alp.reporting.figures_sets import sets
from alp.reporting.plots import Look
from alp.reporting.records import Floats
from alp.reporting.runs import ArmRuns, Results

BINS = 12
Looks = dict[str, Look]


def figures(grid: Grid, results: Path, *, replace: bool = False) -> None:
    """Draw every figure of the grid. Raises :class:`alp.errors.UserError` when a run is missing."""
    loaded = runs.load(grid, results)
    root = grid.folder(results)
    with plots.style():
        # All or, for want of a file, none.
        drawn = {name: DRAW[name](loaded, plots.looks(loaded)) for name in runs.figure_names(grid)}
        with claimed(
            root, "figures", grid.origin, outputs=["figures/*"], key="results", beside=True, replace=replace
        ) as claim:
            for name, figure in drawn.items():
                plots.save(figure, root / "figures" / name)
            for name in set(runs.FIGURES) - set(drawn):  # what an earlier form of the grid had and this one has not
                for ending in (".svg", ".png"):
                    claim.forget(root / "figures" / f"{name}{ending}")


# ---- accuracy --------------------------------------------------------------------------------------------------------


def accuracy(loaded: Results, looks: Looks) -> Figure:
    """Accuracy with interval per arm, and the paired difference to GRPO."""
    reference = loaded.find(runs.REFERENCE)
    figure = plots.canvas(0.9 + 0.27 * len(loaded.arms))
    left, *right = figure.subplots(1, 2 if reference else 1, sharey=True, squeeze=False)[0]
    base = loaded.interval(loaded.base.per_problem[None])
    left.axvspan(100 * base.low, 100 * base.high, color="#000000", alpha=0.08, linewidth=0)
    left.axvline(100 * base.mean, color=plots.BASE_COLOUR, linestyle="dashed", linewidth=1)
    for row, arm in enumerate(loaded.arms):
        seeds = [100 * loaded.mean(one) for one in arm.accuracy]
        left.plot(seeds, [row + 0.28] * len(arm.runs), "|", color=looks[arm.name].colour, markersize=4)
        plots.dot(left, loaded.interval(arm.accuracy), row, looks[arm.name])
        if arm is reference:
            right[0].plot(0, row, markersize=5.5, linestyle="none", **looks[arm.name].point())
        elif reference:
            plots.dot(right[0], loaded.difference(arm.accuracy, reference.accuracy), row, looks[arm.name])
    left.set(title="Accuracy on the test set" + "s" * (len(loaded.sets) > 1), xlabel=f"{loaded.average} at T = 1, %")
    left.set_yticks(range(len(loaded.arms)), [looks[arm.name].label for arm in loaded.arms])
    left.set_ylim(len(loaded.arms) - 0.5, -0.5)
    for axes in (left, *right):
        plots.at_least(axes, 1.0)
    for axes in right:
        axes.axvline(0, color="#555555", linewidth=1, zorder=0.9)
        axes.set(title="Paired difference to GRPO", xlabel="percentage points")
        axes.tick_params(left=False)
    plots.legend_below(figure, plots.dot_handles())
    return figure


# ---- curves over training --------------------------------------------------------------------------------------------


def validation(loaded: Results, looks: Looks) -> Figure:
    """Validation accuracy against step."""
    figure, axes_of = _two_levels(loaded)
    for axes, arms in axes_of:
        for arm in arms:
            steps, values = arm.series("validation/accuracy")
            plots.band(axes, steps, 100 * values, looks[arm.name], len(arms), markersize=3.5, **looks[arm.name].point())
        axes.set(xlabel="step (rollout batch)")
        plots.step_ticks(axes)
    axes_of[0][0].set_ylabel("validation accuracy, %")
    plots.legend_below(figure, plots.arm_handles(looks.values(), markers=True))
    return figure


def pass_at_k(loaded: Results, looks: Looks) -> Figure:
    """Unbiased pass@k against k."""
    figure, axes_of = _two_levels(loaded)
    ks = passk.powers_of_two(loaded.base.samples)
    for axes, arms in axes_of:
        base = [100 * passk.pass_at_k(loaded.base.samples, loaded.base.correct, k).mean() for k in ks]
        axes.plot(ks, base, color=plots.BASE_COLOUR, linestyle="dashed", linewidth=1)
        for arm in arms:
            seeds = [
                [passk.pass_at_k(run.evaluation.samples, run.evaluation.correct, k).mean() for k in ks]
                for run in arm.runs
            ]
            look = looks[arm.name]
            plots.band(
                axes, np.array(ks, float), 100 * np.array(seeds), look, len(arms), markersize=3.5, **look.point()
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ks))
        axes.xaxis.set_major_formatter(FixedFormatter([str(k) for k in ks]))
        axes.set(xlabel="k (samples per problem)")
    axes_of[0][0].set_ylabel("pass@k on the test set, %")
    base_handle = Line2D([], [], color=plots.BASE_COLOUR, linestyle="dashed", linewidth=1, label="Base model")
    plots.legend_below(figure, [base_handle, *plots.arm_handles(looks.values(), markers=True)])
    return figure


def _two_levels(loaded: Results) -> tuple[Figure, list[tuple[Axes, list[ArmRuns]]]]:
    """One panel for token-level and one for sequence-level methods, on one scale: a dozen curves would hide each
    other."""
    groups = plots.by_level(loaded)
    figure = plots.canvas(2.7 + 0.17 * -(-len(loaded.arms) // 4))
    axes = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for one, (title, _) in zip(axes, groups, strict=True):
        one.set_title(title)
    return figure, [(one, arms) for one, (_, arms) in zip(axes, groups, strict=True)]


DYNAMICS = (
    ("reward/mean", "Training reward", "mean reward"),
    ("policy/grad_norm", "Gradient norm", "norm before clipping"),
    ("policy/entropy", "Entropy", "nats per token"),
    ("rollout_corr/kl", "Rollout mismatch", "rollout_corr/kl, nats"),
    ("response/length", "Response length", "tokens"),
    ("sharpness", "Sharpness", "mean |Δ log π|, nats"),
)


def dynamics(loaded: Results, looks: Looks) -> Figure:
    """Six training metrics against step."""
    figure = plots.canvas(4.3 + 0.17 * -(-len(loaded.arms) // 4))
    drawing = plots.above_legend(figure)
    for axes, (key, title, unit) in zip(drawing.subplots(2, 3, sharex=True).ravel(), DYNAMICS, strict=True):
        drawn = [_curve(axes, arm, key, looks[arm.name], len(loaded.arms)) for arm in loaded.arms]
        plots.fit_scale(axes, drawn)
        if not any(values.size for values in drawn):
            plots.empty(axes, "not logged")
        axes.set(title=title, ylabel=unit)
        plots.step_ticks(axes, 6)
    drawing.supxlabel("step (rollout batch)", fontsize=8.5)
    plots.legend_below(figure, plots.arm_handles(looks.values()))
    return figure


def _curve(axes: Axes, arm: ArmRuns, key: str, look: Look, arms: int) -> Floats:
    steps, values = arm.series(key)
    plots.band(axes, steps, values, look, arms)
    return values


def length(loaded: Results, looks: Looks) -> Figure:
    """Response length against step, and test accuracy against test length."""
    figure = plots.canvas(2.7 + 0.17 * -(-len(loaded.arms) // 4))
    left, right = figure.subplots(1, 2)
    for arm in loaded.arms:
        look = looks[arm.name]
        _curve(left, arm, "response/length", look, len(loaded.arms))
        pairs = [(run.evaluation.response_length, 100 * loaded.mean(run.evaluation.per_problem)) for run in arm.runs]
        known = np.array([pair for pair in pairs if pair[0] is not None], float).reshape(-1, 2)
        right.plot(*known.T, linestyle="none", markersize=3, alpha=0.55, **look.point())
        if known.size:
            right.plot(*known.mean(axis=0), linestyle="none", markersize=6.5, **look.point())
    if loaded.base.response_length is not None:
        right.plot(
            loaded.base.response_length,
            100 * loaded.mean(loaded.base.per_problem),
            "*",
            color=plots.BASE_COLOUR,
            markersize=9,
        )
    left.set(title="Length of training responses", xlabel="step (rollout batch)", ylabel="mean tokens")
    plots.step_ticks(left)
    right.set(title="Accuracy against length", xlabel="mean tokens on the test set", ylabel=f"{loaded.average}, %")
    plots.at_least(right, 1.0)
    plots.at_least(right, 1.0, axis="y")
    star = Line2D([], [], linestyle="none", marker="*", color=plots.BASE_COLOUR, markersize=8, label="Base model")
    plots.legend_below(figure, [star, *plots.arm_handles(looks.values(), markers=True)])
    return figure


# ---- ratios ----------------------------------------------------------------------------------------------------------


def ratio_quantiles(loaded: Results, looks: Looks) -> Figure:
    """Fan of the method's own log-ratio against step, one panel per arm; token and sequence level each on a scale of
    its own."""
    groups = plots.by_level(loaded)
    columns = max(plots.columns_for(len(arms)) for _, arms in groups)
    rows = [-(-len(arms) // columns) for _, arms in groups]
    figure = plots.canvas(0.6 + sum(0.35 + 1.35 * one for one in rows))
    heights = [0.35 + 1.35 * one for one in rows]
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (title, arms) in zip(parts, groups, strict=True):
        shown = plots.panels(part, len(arms), columns)
        drawn = [values for axes, arm in zip(shown, arms, strict=True) for values in _fan(axes, arm, looks[arm.name])]
        for axes in shown:
            plots.fit_scale(axes, drawn)
        part.supylabel("log-ratio, nats", fontsize=8.5)
        part.suptitle(title if arms[0].ratio_level == "token" else f"{title}, summed over the sequence", fontsize=9)
    parts[-1].supxlabel("step (rollout batch)", fontsize=8.5)
    plots.legend_below(figure, plots.fan_handles(), columns=5)
    return figure


def _fan(axes: Axes, arm: ArmRuns, look: Look) -> list[Floats]:
    """Draw one fan, averaged over seeds; returns the outermost quantiles for the choice of scale."""
    prefix = f"ratio/{arm.ratio_level}/log_"
    axes.set_title(look.label, fontsize=8)
    plots.step_ticks(axes, 4)
    if not arm.series(prefix + "q50")[0].size:
        plots.empty(axes, "not logged")
        return []
    names = ["q50", *(name for low, high, _ in plots.FAN for name in (low, high))]
    found = {name: arm.series(prefix + name) for name in names}
    return plots.fan(axes, {name: (steps, _seed_mean(values)) for name, (steps, values) in found.items()}, look.colour)


def _seed_mean(values: Floats) -> Floats:
    """Mean over seeds (rows), (steps,); of nothing, nothing."""
    return np.nanmean(values, axis=0) if values.size else np.array([])


def tails(loaded: Results, looks: Looks) -> Figure:
    """Extreme log-ratio quantiles per arm, and how much narrower they are than Bypass's."""
    figure = plots.canvas(1.15 + 0.27 * len(loaded.arms))
    titles = {"token": "Log-ratio of a token", "sequence": "Log-ratio of a sequence"}
    for axes, (level, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        reference = loaded.tail_reference(level)
        drawn = [_tail(axes, arm, level, row, looks[arm.name], reference) for row, arm in enumerate(loaded.arms)]
        plots.fit_scale(axes, drawn, axis="x")
        axes.axvline(0, color="#555555", linewidth=0.8, zorder=0.9)
        axes.set(title=title, xlabel="nats, mean over steps and seeds")
        if reference:
            head = "width vs\n" + looks[reference.name].label.replace(" (", "\n(")
            axes.annotate(head, (1.02, 1), xycoords="axes fraction", va="bottom", fontsize=8, color="#333333")
    axes.set_yticks(range(len(loaded.arms)), [looks[arm.name].label for arm in loaded.arms])
    axes.set_ylim(len(loaded.arms) - 0.5, -0.5)
    handles = [
        Line2D([], [], color="#444444", linewidth=5, solid_capstyle="butt", label="1–99 %"),
        Line2D([], [], color="#444444", linewidth=1.4, label="0.1–99.9 %"),
    ]
    plots.legend_below(figure, handles)
    return figure


def _tail(axes: Axes, arm: ArmRuns, level: str, row: int, look: Look, reference: ArmRuns | None) -> Floats:
    ends = [arm.step_mean(f"ratio/{level}/log_{name}") for name in ("q001", "q01", "q99", "q999")]
    known = plots.tail_bar(axes, ends, row, look.colour)
    width, against = arm.tail_width(level), reference.tail_width(level) if reference else None
    if width is not None and against and arm is not reference:
        text = (
            f"{100 * (width / against - 1):+.0f} %".replace("-", "−")
            if width < 10 * against
            else f"× {width / against:.0f}"
        )
        axes.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="#333333")
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


def envelope(loaded: Results, looks: Looks) -> Figure:
    """Summed log-ratio of sequences against their mean token probability under the rollout policy, one panel per
    arm."""
    columns = plots.columns_for(len(loaded.arms))
    figure = plots.canvas(0.95 + 1.4 * -(-len(loaded.arms) // columns))
    drawing = plots.above_legend(figure)
    everything: list[Floats] = []
    axes_of = list(zip(plots.panels(drawing, len(loaded.arms), columns), loaded.arms, strict=True))
    for axes, arm in axes_of:
        updates = [update for run in arm.runs for update in run.updates]
        probability, ratio = (
            np.array([x for one in updates for x in one[key]], float) for key in ("mean_probability", "log_ratio")
        )
        binned, look = envelope_bins(probability, ratio), looks[arm.name]
        if len(binned):
            plots.binned_band(axes, binned, look.colour)
            everything.append(binned[:, 1:])
        else:
            plots.empty(axes, "not logged")
        axes.axhline(0, color="#555555", linewidth=0.7, zorder=0.9)
        axes.set_title(look.label, fontsize=8)
    for axes, _ in axes_of:
        plots.fit_scale(axes, everything)
    drawing.supxlabel("mean token probability under the rollout policy", fontsize=8.5)
    drawing.supylabel("sequence log-ratio, nats", fontsize=8.5)
    plots.legend_below(figure, plots.binned_band_handles(BINS))
    return figure


# ---- noise -----------------------------------------------------------------------------------------------------------


def sigma(loaded: Results, looks: Looks) -> Figure:
    """Heat map of σ per layer against step, one panel per arm that learns its noise."""
    arms = [arm for arm in loaded.arms if arm.learns_noise]
    maps = [_noise_map(arm) for arm in arms]
    layers = max(len(names) for names, _, _ in maps)
    columns = plots.columns_for(len(arms), most=2)
    rows = -(-len(arms) // columns)
    figure = plots.canvas(0.6 + rows * (0.75 + min(0.28 * layers, 2.2)))
    known = np.concatenate([values[values > 0] for _, _, values in maps])
    low, high = (known.min(), known.max()) if known.size else (1e-3, 1e-2)
    middle = (low * high) ** 0.5
    low, high = min(low, middle / 1.1), max(high, middle * 1.1)  # a noise that hardly moved shall not look as if it had
    scale = LogNorm(low, high)
    shown = plots.panels(figure, len(arms), columns, share_y=False)
    for axes, arm, (names, steps, values) in zip(shown, arms, maps, strict=True):
        axes.grid(visible=False)
        axes.set_title(looks[arm.name].label)
        if not names:
            plots.empty(axes, "not logged")
            continue
        edges = np.concatenate([[steps[0] - 0.5], (steps[1:] + steps[:-1]) / 2, [steps[-1] + 0.5]])
        mesh = axes.pcolormesh(
            edges, np.arange(len(names) + 1) - 0.5, values, norm=scale, cmap="viridis", rasterized=True
        )
        every = -(-len(names) // 12)
        axes.set_yticks(range(0, len(names), every), names[::every])
        plots.step_ticks(axes)
        axes.set_ylabel("layer")
    figure.supxlabel("step (rollout batch)", fontsize=8.5)
    if known.size:
        bar = figure.colorbar(mesh, ax=shown, label="σ, mean over seeds", fraction=0.05, pad=0.02)
        _few_ticks(bar.ax, low, high)
    return figure


def _noise_map(arm: ArmRuns) -> tuple[list[str], Floats, Floats]:
    """Layer names (layers,) in order of depth, steps (steps,), and σ averaged over seeds (layers, steps)."""
    prefix = "perturbation/std/"
    found = {
        key.removeprefix(prefix) for run in arm.runs for line in run.metrics for key in line if key.startswith(prefix)
    }
    names = sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    curves = [
        dict(zip(steps, values.mean(axis=0), strict=True))
        for steps, values in (arm.series(prefix + name) for name in names)
    ]
    steps = sorted(set().union(*curves)) if curves else []
    table = [[curve.get(step, np.nan) for step in steps] for curve in curves]
    return names, np.array(steps, float), np.array(table, float).reshape(len(names), len(steps))


def _few_ticks(axes: Axes, low: float, high: float) -> None:
    """Round σ values between the ends of the colour bar: within one decade the default marks at most one."""
    candidates = [digit * 10.0**power for power in range(-9, 2) for digit in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    inside = [value for value in candidates if low <= value <= high]
    chosen = inside[:: max(1, len(inside) // 6)] if len(inside) > 1 else [low, high]
    axes.yaxis.set_major_locator(FixedLocator(chosen))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{value:.3g}" for value in chosen]))
    axes.yaxis.set_minor_locator(NullLocator())


DRAW: dict[str, Callable[[Results, Looks], Figure]] = {
    "accuracy": accuracy,
    "sets": sets,
    "validation": validation,
    "pass_at_k": pass_at_k,
    "dynamics": dynamics,
    "length": length,
    "limit": limit,
    "ratio_quantiles": ratio_quantiles,
    "tails": tails,
    "envelope": envelope,
    "mismatch": mismatch,
    "sigma": sigma,
}
