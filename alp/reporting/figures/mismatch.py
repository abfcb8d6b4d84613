"""How far each engine is from the training code, and what became of training on its samples."""

from __future__ import annotations

import itertools

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alp.rendering import plots
from alp.reporting import mismatch as measures
from alp.reporting.looks import looks
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=110,
    title="Engines compared",
    caption=(
        "How far each inference engine is from the training code, per method. First panel: the KL divergence of the "
        "rollout policy to the policy that the trainer recomputes, as a mean of log differences (bar) and by the k3 "
        "estimator (dot); an estimate that came out negative or zero is not drawn. Second: quantiles of the difference "
        "of log-probabilities per sampled token. Both are means over steps and seeds. Third: accuracy of the last "
        "weights (of several evaluation sets the plain mean) with a single 95 % interval of the mean over training "
        "seeds on these very problems; one seed gives none."
    ),
    condition="compares_engines",
)

_GAP = 0.6  # rows between two engines


def make(loaded: Results) -> Figure:
    """Divergence, log-ratio quantiles and final accuracy, one row per engine and method."""
    arm_looks = looks(loaded)
    arms = measures.by_engine(loaded)
    heights = _heights(arms)
    wide = plots.beside(3) == 3
    figure = plots.canvas(plots.stacked(3) * (1.2 + (0.21 if wide else 0.27) * (heights[-1] + 1)))
    divergence, ratio, accuracy = plots.row_of(figure, 3, sharey=True)
    tails = []
    for height, arm in zip(heights, arms, strict=True):
        colour = arm_looks[arm.name].colour
        for key, marker in ((measures.KL, "|"), (measures.K3, "o")):
            value = arm.step_mean(key)
            if value is not None and value > 0:
                divergence.plot(value, height, marker=marker, color=colour, markersize=5, linestyle="none")
        ends = [measures.quantile(arm, "token", name) for name in measures.QUANTILES]
        tails.append(plots.tail_bar(ratio, ends, height, colour))
        _accuracy(accuracy, loaded, arm, height, colour)
    divergence.set_xscale("log")
    divergence.set(title="Divergence", xlabel="nats per token")
    plots.fit_scale(ratio, tails, axis="x")
    ratio.axvline(0, color="#555555", linewidth=0.8, zorder=0.9)
    ratio.set(title="Log-ratio of a token", xlabel="nats")
    accuracy.set(title="Accuracy on the test set", xlabel=f"{loaded.average} at T = 1, %")
    _name_rows(divergence, loaded, arms, heights)
    dark = "#444444"
    handles = [
        Line2D([], [], color=dark, marker="|", markersize=5, linestyle="none", label="KL"),
        Line2D([], [], color=dark, marker="o", markersize=4.5, linestyle="none", label="k3"),
        Line2D([], [], color=dark, linewidth=5, solid_capstyle="butt", label="1–99 %"),
        Line2D([], [], color=dark, linewidth=1.4, label="0.1–99.9 %, 95 % interval"),
    ]
    plots.legend_below(figure, handles)
    return figure


def _heights(arms: list[ArmRuns]) -> list[float]:
    """Of the rows, engines a little apart."""
    gaps = (1 + _GAP * (before.engine != arm.engine) for before, arm in itertools.pairwise(arms))
    return list(itertools.accumulate(gaps, initial=0.0))


def _name_rows(axes: Axes, loaded: Results, arms: list[ArmRuns], heights: list[float]) -> None:
    labels = [plots.name(f"{arm.engine} · {measures.method_label(arm, loaded)}") for arm in arms]
    axes.set_yticks(heights, labels)
    axes.set_ylim(heights[-1] + 0.6, -0.6)


def _accuracy(axes: Axes, loaded: Results, arm: ArmRuns, height: float, colour: str) -> None:
    value = loaded.interval(arm.accuracy)
    if value.low is not None and value.high is not None:
        axes.plot([100 * value.low, 100 * value.high], [height, height], color=colour, linewidth=1.4)
    axes.plot(100 * value.mean, height, "o", color=colour, markersize=4.5)
