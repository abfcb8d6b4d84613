"""How far the ratios of every arm reach, in numbers."""

from __future__ import annotations

from alp.rendering.numbers import Cell, significant, text, three_decimals
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=50,
    title="Ratio tails",
    caption=(
        "Extreme quantiles, standard deviation and width (0.1 % to 99.9 %) of each method's own log-ratio before "
        "clipping, averaged over steps and seeds. Widths are divided by that of the Bypass arm of the level named in "
        "the second column, or of noise-free ALP where the grid has no such Bypass arm: above 1 is wider. Clean is log "
        "π_θ − log μ without noise, whatever the method's own ratio, on the last mini-batch of each step, where the "
        "weights are the furthest from those that sampled: it compares with the clean figures of other arms (the same "
        "quotient, of it) and with what the method's own noise makes of the very tokens and weights (perturbed), not "
        "with the own ratio, which is over all updates of a step."
    ),
)
QUANTILES = {"q001": "q0.1 %", "q01": "q1 %", "q99": "q99 %", "q999": "q99.9 %"}


def make(loaded: Results) -> Table:
    """Extreme quantiles of the log-ratio, averaged over steps and seeds, and the tail width against the Bypass arm."""
    rows: list[list[Cell]] = []
    for level in ("token", "sequence"):
        reference = loaded.tail_reference(level)
        for arm in loaded.arms:
            row: list[Cell] = [arm.name, level, *_tails(arm, level, "ratio"), reference.name if reference else None]
            row.append(_reduction(arm, reference, level, "ratio"))
            row += [*_tails(arm, level, "clean"), _reduction(arm, reference, level, "clean")]
            rows.append([*row, arm.tail_width(level, "perturbed")])
    columns = [
        words("method", "Method", lambda name: arms.label(str(name)), link="arm"),
        words("level", "Ratio"),
        *(Column(name, header, three_decimals) for name, header in QUANTILES.items()),
        Column("std", "std", three_decimals),
        Column("width", "q0.1–q99.9 width", three_decimals),
        words("reference", "Reference", lambda name: arms.label(str(name)) if name else text(name), link="arm"),
        Column("width_reduction", "Width over the reference's", _times),
        Column("clean_width", "Clean width [q0.1 %, q99.9 %]", three_decimals, interval=("clean_q001", "clean_q999")),
        Column("clean_width_reduction", "Clean width over the reference's", _times),
        Column("perturbed_width", "Perturbed width there", three_decimals),
    ]
    own, clean = ([f"{prefix}{name}" for name in (*QUANTILES, "std", "width")] for prefix in ("", "clean_"))
    names = ["method", "level", *own, "reference", "width_reduction", *clean, "clean_width_reduction"]
    return Table(frame(rows, [*names, "perturbed_width"]), columns)


def _tails(arm: ArmRuns, level: str, of: str) -> list[Cell]:
    """Extreme quantiles, standard deviation and width."""
    figures = [arm.step_mean(f"{of}/{level}/log_{name}") for name in (*QUANTILES, "std")]
    return [*figures, arm.tail_width(level, of)]


def _times(reduction: Cell) -> str:
    """What the width is in the reference's: the file keeps the share by which it is narrower."""
    return "" if reduction is None else significant(1 - float(reduction))


def _reduction(arm: ArmRuns, reference: ArmRuns | None, level: str, of: str) -> float | None:
    """How much narrower than the reference's, as a share of it."""
    width, against = arm.tail_width(level, of), reference.tail_width(level, of) if reference else None
    return 1 - width / against if width is not None and against and arm is not reference else None
