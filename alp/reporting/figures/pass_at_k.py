"""pass@k of every arm."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from alp.evaluation import passk
from alp.rendering import plots
from alp.reporting.looks import arm_handles, band, base_handle, label_sides, looks, two_levels
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=40,
    title="pass@k",
    caption=(
        "Chance that at least one of k samples is right, on the test set after the last training step: the unbiased "
        "estimate from all samples of each problem, averaged over all problems and then over seeds. The band runs "
        "from the lowest to the highest seed and the dashed line is the base model."
    ),
)


def make(loaded: Results) -> Figure:
    """Unbiased pass@k against k."""
    arm_looks = looks(loaded)
    figure, axes_of = two_levels(loaded)
    ks = passk.powers_of_two(loaded.base.samples)
    for axes, arms in axes_of:
        base = [100 * passk.pass_at_k(loaded.base.samples, loaded.base.correct, k).mean() for k in ks]
        axes.plot(ks, base, label="Base model", color=plots.BASE_COLOUR, linestyle="dashed", linewidth=1)
        for arm in arms:
            seeds = [
                [passk.pass_at_k(run.evaluation.samples, run.evaluation.correct, k).mean() for k in ks]
                for run in arm.runs
            ]
            look = arm_looks[arm.name]
            band(axes, np.array(ks, float), 100 * np.array(seeds), look, len(arms), markersize=3.5, **look.point())
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ks))
        axes.xaxis.set_major_formatter(FixedFormatter([str(k) for k in ks]))
    label_sides(axes_of, "k (samples per problem)", "pass@k on the test set, %")
    plots.legend_below(figure, [base_handle(), *arm_handles(arm_looks.values(), markers=True)])
    return figure
