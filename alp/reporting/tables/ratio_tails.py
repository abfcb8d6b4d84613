"""How far the ratios of every arm reach, in numbers."""

from __future__ import annotations

from alp.rendering.numbers import Cell, points, text, three_decimals
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=50,
    title="Ratio tails",
    caption=(
        "Extreme quantiles, standard deviation and width (0.1 % to 99.9 %) of each method's own log-ratio before "
        "clipping, averaged over steps and seeds. The width reduction is taken against the Bypass arm of the level "
        "named in the second column, or against noise-free ALP where the grid has no such Bypass arm; a negative "
        "reduction means wider tails."
    ),
)
QUANTILES = {"q001": "q0.1 %", "q01": "q1 %", "q99": "q99 %", "q999": "q99.9 %"}


def make(loaded: Results) -> Table:
    """Extreme quantiles of the log-ratio, averaged over steps and seeds, and the tail width against the Bypass arm."""
    rows: list[list[Cell]] = []
    for level in ("token", "sequence"):
        reference = loaded.tail_reference(level)
        against = reference.tail_width(level) if reference else None
        for arm in loaded.arms:
            width = arm.tail_width(level)
            reduction = 1 - width / against if width is not None and against and arm is not reference else None
            quantiles: list[Cell] = [arm.step_mean(f"ratio/{level}/log_{name}") for name in QUANTILES]
            spread = arm.step_mean(f"ratio/{level}/log_std")
            rows.append([arm.name, level, *quantiles, spread, width, reference.name if reference else None, reduction])
    columns = [
        words("method", "Method", lambda name: arms.label(str(name))),
        words("level", "Ratio"),
        *(Column(name, header, three_decimals) for name, header in QUANTILES.items()),
        Column("std", "std", three_decimals),
        Column("width", "q0.1–q99.9 width", three_decimals),
        words("reference", "Reference", lambda name: arms.label(str(name)) if name else text(name)),
        Column("width_reduction", "Width reduction", points, "%"),
    ]
    names = ["method", "level", *QUANTILES, "std", "width", "reference", "width_reduction"]
    return Table(frame(rows, names), columns)
