"""Where in probability the mismatch of sequences comes from."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from alp.rendering import plots
from alp.reporting.looks import looks
from alp.reporting.records import Floats
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=100,
    title="Ratio envelope",
    caption=(
        "Summed log-ratio of a sequence under the method's own numerator and denominator against the sequence's mean "
        "token probability under the rollout policy. This definition is ours, because the binning of the paper's "
        "figure is not known: the sequences of all logged updates and all seeds are pooled, sorted by mean token "
        "probability and cut into 12 bins of equal count; each bin stands at its median probability and shows the "
        "median and the band from the 2nd to the 98th percentile of the log-ratio. Dashed is the clean policy, log π_θ "
        "− log μ without noise, of the same sequences with the same weights: both ends of its band. All "
        "panels share one scale, which is linear around zero and logarithmic beyond where one arm dwarfs the others."
    ),
)

_NARROW = 0.02  # of mean token probability: bins within such a span are one


def silent(loaded: Results) -> str:
    """That the sequences' probabilities all but agree: there is nothing to bin by."""
    logged = [update["mean_probability"] for arm in loaded.arms for run in arm.runs for update in run.updates]
    pooled = np.array([value for of_update in logged for value in of_update], float)
    if not pooled.size:
        return "No update's sequences were logged."
    low, high = np.percentile(pooled, [2, 98])
    if high - low >= _NARROW:
        return ""
    return (
        "Nothing to see on this grid: the mean token probability of 96 % of the sequences lies within"
        f" {low:.3f} and {high:.3f}, so that no bin differs from another."
    )


def make(loaded: Results) -> Figure:
    """Summed log-ratio of sequences against their mean token probability under the rollout policy, one panel per
    arm."""
    arm_looks = looks(loaded)
    columns = plots.columns_for(len(loaded.arms), plots.beside(4, 2))
    figure = plots.canvas(0.95 + 1.4 * -(-len(loaded.arms) // columns))
    drawing = plots.above_legend(figure)
    everything: list[Floats] = []
    axes_of = list(zip(plots.panels(drawing, len(loaded.arms), columns), loaded.arms, strict=True))
    for axes, arm in axes_of:
        updates = [update for run in arm.runs for update in run.updates]
        probability, ratio, clean = (
            np.array([value for update in updates for value in update[key]], float)
            for key in ("mean_probability", "log_ratio", "clean_log_ratio")
        )
        binned, look = plots.envelope_bins(probability, ratio), arm_looks[arm.name]
        if len(binned):
            plots.binned_band(axes, binned, look.colour)
            unperturbed = plots.envelope_bins(probability, clean)
            axes.plot(unperturbed[:, 0], unperturbed[:, [1, 3]], **plots.CLEAN)
            everything += [binned[:, 1:], unperturbed[:, [1, 3]]]
        else:
            plots.empty(axes, "not logged")
        axes.axhline(0, color="#555555", linewidth=0.7, zorder=0.9)
        axes.set_title(plots.name(look.label), fontsize=8)
    for axes, _ in axes_of:
        plots.fit_scale(axes, everything)
    drawing.supxlabel("mean token probability under the rollout policy", fontsize=8.5)
    drawing.supylabel("sequence log-ratio, nats", fontsize=8.5)
    clean_handle = plots.clean_handle("clean: 2 %, 98 %")
    plots.legend_below(figure, [*plots.binned_band_handles(plots.BINS), clean_handle])
    return figure
