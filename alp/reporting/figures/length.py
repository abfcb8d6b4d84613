"""How long responses are, and whether accuracy goes with it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alp.rendering import plots
from alp.reporting.looks import arm_handles, curve, looks
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=60,
    title="Response length",
    caption=(
        "First panel: mean length of the sampled training responses in tokens, end token included, against step, with "
        "a band from the lowest to the highest seed. Second: test accuracy (of several evaluation sets the plain mean) "
        "against the mean length of all test responses after the last step; large markers are means over seeds, small "
        "ones single seeds, the star is the base model."
    ),
)


def make(loaded: Results) -> Figure:
    """Response length against step, and test accuracy against test length."""
    arm_looks = looks(loaded)
    names = arm_handles(arm_looks.values(), markers=True)
    figure = plots.canvas(2.7 * plots.stacked(2) + 0.17 * plots.legend_rows(names))
    left, right = plots.row_of(figure, 2)
    for arm in loaded.arms:
        look = arm_looks[arm.name]
        curve(left, arm, "response/length", look, len(loaded.arms))
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
    plots.legend_below(figure, [star, *names])
    return figure
