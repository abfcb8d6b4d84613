"""Where each method fails: its accuracy at every staleness and mismatch of the grid."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alp.rendering import plots
from alp.reporting.arms import label, phase_of
from alp.reporting.figures.drift import COLLAPSED
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=16,
    title="Phase diagram",
    caption=(
        "Accuracy of the last weights on the test set, in per cent (mean over training seeds), one panel per method: "
        "updates on each rollout batch (+ batches sampled ahead of them) to the right, mismatch of the engine "
        "upwards, in the grid's order. All panels share one scale of colour. A cross is a collapse: an accuracy more "
        "than ten points under the base model's. The grid's table of accuracies holds the intervals; a difference of "
        "two cells says nothing where they overlap."
    ),
    condition="is_phase_diagram",
)


def make(loaded: Results) -> Figure:
    """One heat map a method."""
    cells = {arm.name: phase_of(loaded.grid, arm.arm) for arm in loaded.arms}
    methods = list(dict.fromkeys(arm.arm.method for arm in loaded.arms))
    columns, rows = (list(dict.fromkeys(cell[part] for cell in cells.values())) for part in (0, 1))
    base = loaded.base_interval().mean
    across = plots.columns_for(len(methods), plots.beside(3, 2))
    figure = plots.canvas(1.1 + 1.75 * -(-len(methods) // across))
    drawing = plots.above_legend(figure)
    drawn = []
    for axes, method in zip(plots.panels(drawing, len(methods), across), methods, strict=True):
        values = np.full((len(rows), len(columns)), np.nan)
        for arm in loaded.arms:
            if arm.arm.method == method:
                column, row = cells[arm.name]
                values[rows.index(row), columns.index(column)] = 100 * loaded.mean(arm.accuracy)
        drawn.append((axes, axes.imshow(values, origin="lower", aspect="auto", cmap="cividis")))
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                mark = " ×" if value < 100 * (base - COLLAPSED) else ""
                axes.text(column, row, f"{value:.0f}{mark}", ha="center", va="center", fontsize=8, color="white")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(visible=False)
        axes.set_title(label(method), fontsize=8)
    _one_scale([image for _, image in drawn])
    drawing.supxlabel("updates per rollout batch", fontsize=8.5)
    cross = Line2D([], [], color="#444444", marker="x", markersize=5, linestyle="none", label="collapsed")
    plots.legend_below(figure, [cross])
    return figure


def _one_scale(images: list[object]) -> None:
    """The darkest and the lightest colour for the lowest and the highest accuracy of all panels."""
    values = np.concatenate([image.get_array().compressed() for image in images])  # type: ignore[attr-defined]
    for image in images:
        image.set_clim(values.min() - 1, values.max() + 15)  # type: ignore[attr-defined]  # white text stays legible
