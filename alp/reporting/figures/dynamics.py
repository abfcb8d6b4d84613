"""Six training metrics, to see trouble where it begins."""

from __future__ import annotations

from matplotlib.figure import Figure

from alp.rendering import plots
from alp.reporting.looks import arm_handles, curve, looks
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=50,
    title="Training dynamics",
    caption=(
        "Training metrics against step: mean over seeds, with a band from the lowest to the highest seed. Rollout "
        "mismatch is the mean over tokens of the log-probability under the rollout policy minus that under the "
        "training policy with the same weights. Sharpness is ours: the mean absolute change of the log-probability of "
        "fixed responses under one noise draw of one percent of the hidden RMS in every layer."
    ),
)

DYNAMICS = (
    ("reward/mean", "Training reward", "mean reward"),
    ("policy/grad_norm", "Gradient norm", "norm before clipping"),
    ("policy/entropy", "Entropy", "nats per token"),
    ("rollout_corr/kl", "Rollout mismatch", "rollout_corr/kl, nats"),
    ("response/length", "Response length", "tokens"),
    ("sharpness", "Sharpness", "mean |Δ log π|, nats"),
)


def make(loaded: Results) -> Figure:
    """Six training metrics against step."""
    arm_looks = looks(loaded)
    names = arm_handles(arm_looks.values())
    columns = plots.beside(3)
    figure = plots.canvas((4.3 if columns == 3 else 8.3) + 0.17 * plots.legend_rows(names))
    drawing = plots.above_legend(figure)
    panels = drawing.subplots(6 // columns, columns, sharex=True, squeeze=False).ravel()
    for axes, (key, title, unit) in zip(panels, DYNAMICS, strict=True):
        drawn = [curve(axes, arm, key, arm_looks[arm.name], len(loaded.arms)) for arm in loaded.arms]
        plots.fit_scale(axes, drawn)
        if not any(values.size for values in drawn):
            plots.empty(axes, "not logged")
        plots.head(axes, title, unit)
        plots.step_ticks(axes, 6)
    drawing.supxlabel("step (rollout batch)", fontsize=8.5)
    plots.legend_below(figure, names)
    return figure
