"""How many responses were cut at the length limit: they earn nothing, so a method that writes longer must not be judged
by that alone."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from alp.rendering import plots
from alp.rendering.numbers import percent
from alp.reporting.looks import arm_handles, band, base_handle, looks, name_rows
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=70,
    title="Responses cut at the length limit",
    caption=(
        "First panel: share of the test samples that were cut at the length limit before their end token, after the "
        "last step; markers are means over seeds, ticks single seeds, the dashed line is the base model. A cut sample "
        "counts as wrong. Second: the same share of the sampled training responses against step, with a band from the "
        "lowest to the highest seed."
    ),
)

_SEEN = 0.01  # a share of cut responses that a scale shows


def silent(loaded: Results) -> str:
    """That next to nothing was cut."""
    evaluations = [loaded.base, *(run.evaluation for arm in loaded.arms for run in arm.runs)]
    test = [one.truncated for one in evaluations if one.truncated is not None]
    curves = [arm.series("response/truncated")[1] for arm in loaded.arms]
    trained = [float(np.nanmax(values)) for values in curves if values.size]
    if not test and not trained:
        return "What was cut at the length limit is not logged."
    if max([*test, *trained]) > _SEEN:
        return ""
    if not any([*test, *trained]):
        return "No response was cut at the length limit, neither in training nor on the test set."
    return (
        f"At most {percent(max(test, default=0.0))} % of a seed's test samples and"
        f" {percent(max(trained, default=0.0))} % of a step's training responses were cut at the length limit."
    )


def make(loaded: Results) -> Figure:
    """Share of cut test samples per arm, and of cut training responses against step."""
    arm_looks = looks(loaded)
    names = arm_handles(arm_looks.values(), markers=True)
    if plots.beside(2) == 2:
        figure = plots.canvas(1.6 + 0.24 * len(loaded.arms))
        left, right = figure.subplots(1, 2)
    else:
        heights = [0.7 + 0.27 * len(loaded.arms), 2.2]
        figure = plots.canvas(sum(heights) + 0.17 * (1 + plots.legend_rows(names)))
        left, right = figure.subplots(2, 1, height_ratios=heights)
    if loaded.base.truncated is not None:
        left.axvline(100 * loaded.base.truncated, color=plots.BASE_COLOUR, linestyle="dashed", linewidth=1)
    for row, arm in enumerate(loaded.arms):
        look = arm_looks[arm.name]
        shares = [100 * run.evaluation.truncated for run in arm.runs if run.evaluation.truncated is not None]
        if shares:
            left.plot(shares, [row + 0.28] * len(shares), "|", color=look.colour, markersize=4)
            left.plot(sum(shares) / len(shares), row, markersize=5.5, linestyle="none", **look.point())
        steps, values = arm.series("response/truncated")
        band(right, steps, 100 * values, look, len(loaded.arms))
    per_seed = loaded.base.problems * loaded.base.samples
    left.set(title="Test samples cut at the limit", xlabel=f"% of {per_seed} samples a seed")
    name_rows(left, loaded, arm_looks)
    right.set(title="Training responses cut at the limit", xlabel="step (rollout batch)", ylabel="%")
    plots.step_ticks(right)
    for highest, limit in ((left.dataLim.xmax, left.set_xlim), (right.dataLim.ymax, right.set_ylim)):
        limit(-0.04 * max(highest, 1.0), 1.08 * max(highest, 1.0))  # a grid in which nothing was cut still has a scale
    plots.legend_below(figure, [base_handle(), *names])
    return figure
