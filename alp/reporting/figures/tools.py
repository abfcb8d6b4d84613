"""How the tool is used as training goes on."""

from __future__ import annotations

from matplotlib.figure import Figure

from alp.rendering import plots
from alp.reporting.looks import arm_handles, curve, looks
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=35,
    title="Tool use during training",
    caption=(
        "Of the trajectories that are trained on, against step: mean reward; the share that asks for the tool at all; "
        "of their programs the share that runs to its end without an error or a limit; mean turns; the share with a "
        "void turn (neither program nor answer), which leaves the loss; mean tokens that the model wrote. Mean over "
        "seeds, with a band from the lowest to the highest seed."
    ),
    condition="has_tools",
)
PANELS = (
    ("reward/mean", "Training reward", "mean reward"),
    ("tools/use_rate", "Tool used", "share of trajectories"),
    ("tools/valid_rate", "Valid programs", "share of programs"),
    ("tools/turns", "Turns", "mean turns"),
    ("tools/void_rate", "Void", "share of trajectories"),
    ("response/length", "Length", "tokens of the model"),
)


def make(loaded: Results) -> Figure:
    """Six figures of tool use against step."""
    arm_looks = looks(loaded)
    names = arm_handles(arm_looks.values())
    columns = plots.beside(3)
    figure = plots.canvas((4.3 if columns == 3 else 8.3) + 0.17 * plots.legend_rows(names))
    drawing = plots.above_legend(figure)
    panels = drawing.subplots(6 // columns, columns, sharex=True, squeeze=False).ravel()
    for axes, (key, title, unit) in zip(panels, PANELS, strict=True):
        drawn = [curve(axes, arm, key, arm_looks[arm.name], len(loaded.arms)) for arm in loaded.arms]
        if not any(values.size for values in drawn):
            plots.empty(axes, "not logged")
        plots.head(axes, title, unit)
        plots.at_least(axes, 0.02, axis="y")
        plots.step_ticks(axes, 6)
    drawing.supxlabel("step (rollout batch)", fontsize=8.5)
    plots.legend_below(figure, names)
    return figure
