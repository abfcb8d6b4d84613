"""How far the ratios of every arm reach, and how that compares with Bypass."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alp.rendering import plots
from alp.reporting.looks import Look, looks, name_rows
from alp.reporting.records import Floats
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=90,
    title="Ratio tails",
    caption=(
        "Extreme quantiles of each method's own log-ratio, per token and summed over the sequence, averaged over "
        "steps and seeds. The figures on the right compare the distance between the 0.1 % and 99.9 % quantiles with "
        "the Bypass arm of that level, or with noise-free ALP where the grid has no such Bypass arm: negative is a "
        "narrower tail, positive a wider one."
    ),
)


def make(loaded: Results) -> Figure:
    """Extreme log-ratio quantiles per arm, and how much narrower they are than Bypass's."""
    arm_looks = looks(loaded)
    figure = plots.canvas(plots.stacked(2) * (1.15 + 0.27 * len(loaded.arms)))
    titles = {"token": "Log-ratio of a token", "sequence": "Log-ratio of a sequence"}
    for axes, (level, title) in zip(plots.row_of(figure, 2, sharey=True), titles.items(), strict=True):
        reference = loaded.tail_reference(level)
        drawn = [_tail(axes, arm, level, row, arm_looks[arm.name], reference) for row, arm in enumerate(loaded.arms)]
        plots.fit_scale(axes, drawn, axis="x")
        axes.axvline(0, color="#555555", linewidth=0.8, zorder=0.9)
        axes.set(title=title, xlabel="nats, mean over steps and seeds")
        if reference:
            head = "width vs\n" + arm_looks[reference.name].label.replace(" (", "\n(")
            axes.annotate(head, (1.02, 1), xycoords="axes fraction", va="bottom", fontsize=8, color="#333333")
    name_rows(axes, loaded, arm_looks)
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
