"""``alp power``: what a finished grid's variances say of the next one, before its hours are spent. Reads alone."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from alp.configuration import grid as grids
from alp.configuration.power_schema import PowerConfig
from alp.errors import UserError
from alp.evaluation.power import Components, pooled, problems_needed, seeds_needed, smallest_difference
from alp.rendering.numbers import Cell, number
from alp.rendering.tables import Column, Table, frame, to_markdown, words
from alp.reporting import runs
from alp.reporting.arms import label
from alp.reporting.runs import ArmRuns, Results

SEEDS = (3, 5, 8, 16, 32)
NEEDED = ("seeds_here", "seeds_at_best", "problems_here")
AVERAGE = "on average"


def power(config: PowerConfig) -> str:
    """The table as text. Raises :class:`UserError` for a grid without two arms of two seeds."""
    folder = Path(config.grid)
    name, results = (folder.name, folder.parent) if folder.is_dir() else (config.grid, Path(config.results))
    grids.check_results(str(results))
    loaded = runs.load(grids.load(name), results)
    reference = loaded.reference or loaded.arms[0]
    others = [arm for arm in loaded.arms if arm is not reference]
    if not others or len(loaded.grid.seeds) < 2:
        raise UserError(
            f"power: {name} has arms: {len(loaded.arms)}, seeds: {len(loaded.grid.seeds)}; the noise between seeds"
            " shows from two of both"
        )
    table = make(loaded, reference, others, config)
    return f"{_head(loaded, reference, config)}\n\n{to_markdown(table)}\n{_caution(loaded)}"


def make(loaded: Results, reference: ArmRuns, others: list[ArmRuns], config: PowerConfig) -> Table:
    """One row per arm against the reference, and what they come to on average: standard deviation of a seed's
    difference, what it is made of, what numbers of seeds resolve, what the effect needs. Points."""
    parts = {arm.name: loaded.variances(arm.accuracy, reference.accuracy) for arm in others}
    parts[AVERAGE] = pooled(list(parts.values()))
    rows = [_row(name, part, loaded, config) for name, part in parts.items()]
    shares, resolved = ("seeds", "problems", "samples"), [f"resolved_{count}" for count in SEEDS]
    columns = [
        words("method", "Method", lambda name: AVERAGE if name == AVERAGE else label(str(name))),
        Column("deviation", "SD", partial(number, digits=2)),
        *(Column(name, f"of {name}, %", partial(number, digits=0)) for name in shares),
        *(
            Column(name, f"{count} seeds", partial(number, digits=1))
            for name, count in zip(resolved, SEEDS, strict=True)
        ),
        Column("seeds_here", "Seeds, these problems", _count),
        Column("seeds_at_best", "Seeds, endless problems", _count),
        Column("problems_here", "Problems, these seeds", _count),
    ]
    return Table(frame(rows, ["method", "deviation", *shares, *resolved, *NEEDED]), columns)


def _row(name: str, part: Components, loaded: Results, config: PowerConfig) -> list[Cell]:
    deviation, seeds = part.deviation(), len(loaded.grid.seeds)
    effect = config.effect / 100
    growth = problems_needed(part, effect / smallest_difference(seeds, power=config.power))
    return [
        name,
        100 * deviation,
        *(100 * share / deviation**2 if deviation else None for share in (part.seeds, part.problems, part.samples)),
        *(100 * deviation * smallest_difference(count, power=config.power) for count in SEEDS),
        *(seeds_needed(effect, spread, power=config.power) for spread in (deviation, part.deviation(math.inf))),
        None if growth is None else max(1, math.ceil(growth * loaded.base.problems)),
    ]


def _head(loaded: Results, reference: ArmRuns, config: PowerConfig) -> str:
    base = loaded.base
    return (
        f"Differences to {label(reference.name)} in points, taken seed by seed: {len(loaded.grid.seeds)} seeds,"
        f" {base.problems} problems, {base.samples} samples each. SD: of one seed's difference, and what its variance"
        " is made of. N seeds: the difference whose 95 % interval excludes zero with a chance of"
        f" {100 * config.power:g} %. Last: what a difference of {config.effect:g} needs."
    )


def _caution(loaded: Results) -> str:
    from scipy.special import chdtri

    freedom = len(loaded.grid.seeds) - 1
    low, high = (math.sqrt(freedom / float(chdtri(freedom, tail))) for tail in (0.025, 0.975))
    return (
        "Seeds: how far seeds differ whatever the problems. Problems: seed by problem, less with more problems."
        " Samples: the draw of answers, less with more of either. From these seeds a standard deviation is known to a"
        f" factor of {low:.2g} to {high:.2g} (95 %). A mark over a whole table (†) needs more seeds."
    )


def _count(value: Cell) -> str:
    return "out of reach" if value is None else str(value)
