"""How validation accuracy went during training."""

from __future__ import annotations

from matplotlib.figure import Figure

from alp.rendering import plots
from alp.reporting.looks import arm_handles, band, label_sides, looks, two_levels
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=30,
    title="Validation accuracy during training",
    caption=(
        "Accuracy on the validation set at temperature 1 against training step: mean over seeds, with a band from the "
        "lowest to the highest seed. Token-level and sequence-level methods stand apart for legibility; hue is the "
        "method, dashes and hollow markers are its variants."
    ),
)


def make(loaded: Results) -> Figure:
    """Validation accuracy against step."""
    arm_looks = looks(loaded)
    figure, axes_of = two_levels(loaded)
    measured: set[float] = set()
    for axes, arms in axes_of:
        for arm in arms:
            steps, values = arm.series("validation/accuracy")
            look = arm_looks[arm.name]
            measured |= set(steps.tolist())
            band(axes, steps, 100 * values, look, len(arms), markersize=3.5, **look.point())
    plots.ticks_at(axes_of[0][0], sorted(measured))  # of both: they share the axis
    label_sides(axes_of, "step (rollout batch)", "validation accuracy, %")
    plots.legend_below(figure, arm_handles(arm_looks.values(), markers=True))
    return figure
