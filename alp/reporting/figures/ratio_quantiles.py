"""How the method's own ratio spreads during training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alp.rendering import plots
from alp.reporting.looks import Look, by_level, looks
from alp.reporting.records import Floats
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=80,
    title="Ratio quantiles during training",
    caption=(
        "Quantiles of each method's own log-ratio (numerator over denominator, before clipping) against training "
        "step, over all updates of a step and averaged over seeds. Token-level methods show the ratio per token, "
        "sequence-level methods the sum over the sequence; each group shares one scale, which is linear around zero "
        "and logarithmic beyond where one arm dwarfs the others. Dashed is the clean policy: log π_θ − log μ without "
        "noise, the same for every method, on the last mini-batch of a step, whose weights are the furthest from those "
        "that sampled; so dashed lines compare with dashed ones, not with the bands around them."
    ),
)


def make(loaded: Results) -> Figure:
    """Fan of the method's own log-ratio against step, one panel per arm; token and sequence level each on a scale of
    its own."""
    arm_looks = looks(loaded)
    groups = by_level(loaded)
    columns = max(plots.columns_for(len(arms), plots.beside(4, 2)) for _, arms in groups)
    rows = [-(-len(arms) // columns) for _, arms in groups]
    heights = [0.35 + 1.35 * count for count in rows]
    figure = plots.canvas(0.6 + sum(heights))
    parts = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (title, arms) in zip(parts, groups, strict=True):
        shown = plots.panels(part, len(arms), columns)
        fans = [_fan(axes, arm, arm_looks[arm.name]) for axes, arm in zip(shown, arms, strict=True)]
        outermost = [values for fan in fans for values in fan]
        for axes in shown:
            plots.fit_scale(axes, outermost)
        part.supylabel("log-ratio, nats", fontsize=8.5)
        part.suptitle(title if arms[0].ratio_level == "token" else f"{title}, summed over the sequence", fontsize=9)
    parts[-1].supxlabel("step (rollout batch)", fontsize=8.5)
    clean_handle = plots.clean_handle("clean: 0.1 %, 99.9 %")
    plots.legend_below(figure, [*plots.fan_handles(), clean_handle], columns=3)
    return figure


def _fan(axes: Axes, arm: ArmRuns, look: Look) -> list[Floats]:
    """Draw one fan, averaged over seeds, and the clean policy over it; returns the outermost quantiles for the choice
    of scale."""
    prefix = f"ratio/{arm.ratio_level}/log_"
    axes.set_title(plots.name(look.label), fontsize=8)
    plots.step_ticks(axes, 4)
    if not arm.series(prefix + "q50")[0].size:
        plots.empty(axes, "not logged")
        return []
    names = ["q50", *(name for low, high, _ in plots.FAN for name in (low, high))]
    curves = {name: _mean_curve(arm, prefix + name) for name in names}
    outer = plots.fan(axes, curves, look.colour)
    for name in ("q001", "q999"):
        steps, values = _mean_curve(arm, f"clean/{arm.ratio_level}/log_{name}")
        axes.plot(*plots.stretched(steps, values), **plots.CLEAN)
        outer.append(values)
    return outer


def _mean_curve(arm: ArmRuns, key: str) -> tuple[Floats, Floats]:
    steps, values = arm.series(key)
    return steps, _seed_mean(values)


def _seed_mean(values: Floats) -> Floats:
    """Mean over seeds (rows), (steps,); of nothing, nothing."""
    return np.nanmean(values, axis=0) if values.size else np.array([])
