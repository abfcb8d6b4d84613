"""Whose noise it is: variance of Δ log π by layer beside the mismatch, at the first probe and at the last."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alp.rendering import budget as shapes
from alp.rendering import plots
from alp.reporting.budget import first_and_last, noisy_arms
from alp.reporting.looks import looks
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=125,
    title="Noise budget",
    caption=(
        "Variance of the change of a token's log-probability under the noise of one layer alone (or of a band of "
        "them), and of all layers together, on fixed responses after the first probed step (hollow) and the last "
        "(filled), with the noise levels of that step; means over seeds. Percentages are a layer's part of the sum "
        "over layers at the last probe. Lines: the variance of the mismatch between training code and inference "
        "engine over the responses of the same steps, dotted at the first, dashed at the last; none where it is "
        "rounding alone."
    ),
    condition="has_noise_budget",
)
_COLOUR = "#444444"
_APART = 0.14  # half the distance of the two probes, of that between two layers


def make(loaded: Results) -> Figure:
    """One panel per arm that trains under noise."""
    arms, arm_looks = noisy_arms(loaded), looks(loaded)
    columns = plots.columns_for(len(arms), plots.beside(2))
    figure = plots.canvas(0.9 + 2.1 * -(-len(arms) // columns))
    drawing = plots.above_legend(figure)
    for axes, arm in zip(plots.panels(drawing, len(arms), columns, share_y=False), arms, strict=True):
        axes.set_title(arm_looks[arm.name].label)
        probed = first_and_last(arm)
        if not probed:
            plots.empty(axes, "not logged")
        for probe in probed:
            last = probe is probed[-1]
            profile = probe.profiles["token"]
            shift = (_APART if last else -_APART) if len(probed) > 1 else 0.0
            shapes.draw(axes, profile, arm_looks[arm.name].colour, hollow=not last, shares=last, shift=shift)
        shapes.fit(axes, [probe.profiles["token"] for probe in probed])
    drawing.supxlabel("layer that receives noise", fontsize=8.5)
    drawing.supylabel("variance of Δ log π of a token, nats²", fontsize=8.5)
    hollow = Line2D([], [], marker="o", linestyle="", color=_COLOUR, markerfacecolor="white", label="first probe")
    plots.legend_below(figure, [*shapes.handles(_COLOUR, "the rollout engine"), hollow], columns=2)
    return figure
