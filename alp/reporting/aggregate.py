"""Tables of a finished grid: results/<grid>/tables/{main,sets,pass_at_k,ratio_tails,controls,mismatch}.{csv,md,tex}.

CSV is for machines: fractions of one (the published percentages too), six digits, empty where there is no figure.
Markdown and LaTeX are rounded for people: percent or points with one digit, intervals in brackets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from alp.configuration.grid import Grid
from alp.configuration.schema import Method
from alp.evaluation import passk, statistics
from alp.evaluation.statistics import Interval
from alp.ownership import claimed
from alp.reporting import runs
from alp.reporting.mismatch import mismatch_table
from alp.reporting.records import Evaluation, Floats
from alp.reporting.runs import ArmRuns, Results
from alp.reporting.tables import Cell, Table, number, percent, to_csv, to_latex, to_markdown, with_interval
from alp.reproducibility import write_text

TAIL_QUANTILES = ("q001", "q01", "q99", "q999")
# fmt: off
MAIN_COLUMNS = [
    "method", "accuracy_mean", "accuracy_low", "accuracy_high", "seeds", "published", "difference_to_grpo",
    "difference_low",
    "difference_high", "greedy_mean", "length_mean", "best_step", "best_validation",
]
SETS_COLUMNS = [
    "method", "set", "problems", "accuracy_mean", "accuracy_low", "accuracy_high", "difference_to_grpo",
    "difference_low",
    "difference_high",
]
CONTROL_COLUMNS = [
    "method", "control", "changed", "accuracy_mean", "control_mean", "difference", "difference_low", "difference_high",
    "gain_over_grpo", "gain_low", "gain_high",
]
# fmt: on


def aggregate(grid: Grid, results: Path, *, replace: bool = False) -> None:
    """Build every table of the grid. Raises :class:`alp.errors.UserError` when a run is missing."""
    loaded = runs.load(grid, results)
    built = {name: BUILDERS[name](loaded) for name in runs.table_names(grid)}
    root = grid.folder(results)
    with claimed(
        root, "aggregate", grid.origin, outputs=["tables/*"], key="results", beside=True, replace=replace
    ) as claim:
        for name, table in built.items():
            write_text(root / "tables" / f"{name}.csv", to_csv(table))
            write_text(root / "tables" / f"{name}.md", to_markdown(table))
            write_text(root / "tables" / f"{name}.tex", to_latex(table))
        for name in set(runs.TABLES) - set(built):  # what an earlier form of the grid had and this one has not
            for ending in (".csv", ".md", ".tex"):
                claim.forget(root / "tables" / f"{name}{ending}")


# ---- main ------------------------------------------------------------------------------------------------------------


def main_table(loaded: Results) -> Table:
    """One row per arm, the base model first (docs/results.md)."""
    reference = loaded.find(runs.REFERENCE)
    base_difference = loaded.difference(loaded.base.per_problem[None], reference.accuracy) if reference else None
    base_accuracy, base_greedy = loaded.interval(loaded.base.per_problem[None]), _greedy(loaded, loaded.base)
    rows = [
        _main_row(
            runs.BASE, base_accuracy, None, None, base_difference, base_greedy, loaded.base.response_length, None, None
        )
    ]
    for arm in loaded.arms:
        published = loaded.grid.published.get(arm.arm.method) if arm.arm.variant is None else None
        difference = loaded.difference(arm.accuracy, reference.accuracy) if reference and arm is not reference else None
        step, validation = _best_validation(arm)
        evaluations = [run.evaluation for run in arm.runs]
        rows.append(
            _main_row(
                arm.name,
                loaded.interval(arm.accuracy),
                len(arm.runs),
                None if published is None else published / 100,
                difference,
                _mean([_greedy(loaded, one) for one in evaluations]),
                _mean([one.response_length for one in evaluations]),
                step,
                validation,
            )
        )
    shown, best = _shown_main(rows, loaded)
    return Table(MAIN_COLUMNS, rows, shown[0], shown[1:], best)


def _main_row(
    name: str,
    accuracy: Interval,
    seeds: int | None,
    published: float | None,
    difference: Interval | None,
    greedy: float | None,
    length: float | None,
    best_step: int | None,
    best_validation: float | None,
) -> list[Cell]:
    against = _ends(difference) if difference else [None, None, None]
    return [
        name,
        accuracy.mean,
        accuracy.low,
        accuracy.high,
        seeds,
        published,
        *against,
        greedy,
        length,
        best_step,
        best_validation,
    ]


def _shown_main(rows: list[list[Cell]], loaded: Results) -> tuple[list[list[str]], set[tuple[int, int]]]:
    header = [
        "Method",
        f"{loaded.average}, %",
        "Difference to GRPO, points",
        "Greedy, %",
        "Tokens",
        "Best validation, % (step)",
        "Seeds",
        "Published, %",
    ]
    shown = [header]
    for name, mean, low, high, seeds, published, difference, d_low, d_high, greedy, length, step, validation in rows:
        shown.append(
            [
                runs.label(str(name)),
                with_interval(mean, low, high),
                with_interval(difference, d_low, d_high, signed=True),
                percent(greedy),
                number(length, 1),
                f"{percent(validation)} ({step})" if step is not None else "",
                "" if seeds is None else str(seeds),
                number(None if published is None else 100 * float(published), 2),
            ]
        )
    best: set[tuple[int, int]] = set()
    for column, source in ((1, 1), (3, 9)):  # printed accuracy and greedy, arms alone
        best |= {(row, column) for row in _highest([one[source] for one in rows], start=1)}
    return shown, best


def _best_validation(arm: ArmRuns) -> tuple[int | None, float | None]:
    """Step of the highest validation accuracy averaged over seeds (the first of equals), among steps that every seed
    has."""
    steps, values = arm.series("validation/accuracy")
    complete = ~np.isnan(values).any(axis=0)
    if not complete.any():
        return None, None
    means = values[:, complete].mean(axis=0)
    best = int(np.argmax(means))
    return int(steps[complete][best]), float(means[best])


def _greedy(loaded: Results, evaluation: Evaluation) -> float | None:
    """Accuracy of the greedy answers; None when none were drawn."""
    marks = evaluation.greedy_correct
    return None if marks is None or not marks.size else loaded.mean(marks)


# ---- sets ------------------------------------------------------------------------------------------------------------


def sets_table(loaded: Results) -> Table:
    """Accuracy of every arm on every evaluation set, and the paired difference to GRPO on that set."""
    everyone = {runs.BASE: loaded.base.per_problem[None], **{arm.name: arm.accuracy for arm in loaded.arms}}
    found = {
        part: [statistics.interval(accuracy[:, place]) for accuracy in everyone.values()]
        for part, place in loaded.sets.items()
    }
    rows: list[list[Cell]] = [
        [name, part, place.stop - place.start, *_ends(found[part][number]), *_gap_to_grpo(everyone, name, place)]
        for number, name in enumerate(everyone)
        for part, place in loaded.sets.items()
    ]
    columns = [[loaded.interval(accuracy) for accuracy in everyone.values()], *found.values()]
    lines = zip(everyone, zip(*columns, strict=True), strict=True)
    shown = [[runs.label(name), *(with_interval(*_ends(one)) for one in line)] for name, line in lines]
    best = {
        (row, place)
        for place, column in enumerate(columns, start=1)
        for row in _highest([one.mean for one in column], start=1)
    }
    sizes = [f"{part} ({place.stop - place.start}), %" for part, place in loaded.sets.items()]
    return Table(SETS_COLUMNS, rows, ["Method", "Mean of the sets, %", *sizes], shown, best)


def _gap_to_grpo(everyone: Mapping[str, Floats], name: str, place: slice) -> list[Cell]:
    reference = everyone.get(runs.REFERENCE)
    if reference is None or name == runs.REFERENCE:
        return [None, None, None]
    return _ends(statistics.paired_difference(everyone[name][:, place], reference[:, place]))


def _ends(value: Interval) -> list[Cell]:
    return [value.mean, value.low, value.high]


# ---- pass@k ----------------------------------------------------------------------------------------------------------


def pass_at_k_table(loaded: Results) -> Table:
    """Unbiased pass@k per arm, mean over problems, then over seeds: of all problems and, where there are several sets,
    of each."""
    samples = loaded.base.samples
    ks = passk.powers_of_two(samples)
    several = len(loaded.sets) > 1
    places = {"all": slice(None), **(loaded.sets if several else {})}
    evaluations = [(runs.BASE, [loaded.base])] + [
        (arm.name, [run.evaluation for run in arm.runs]) for arm in loaded.arms
    ]
    rows: list[list[Cell]] = [
        [
            name,
            part,
            *(_mean([float(passk.pass_at_k(samples, one.correct[place], k).mean()) for one in seeds]) for k in ks),
        ]
        for part, place in places.items()
        for name, seeds in evaluations
    ]
    shown = [[runs.label(str(row[0])), *([str(row[1])] if several else []), *map(percent, row[2:])] for row in rows]
    best = set()
    for column in range(2, len(ks) + 2):
        for first in range(0, len(rows), len(evaluations)):
            block = [one[column] for one in rows[first : first + len(evaluations)]]
            best |= {(first + row, column - (not several)) for row in _highest(block, start=1)}
    header = ["Method", *(["Set"] if several else []), *(f"pass@{k}, %" for k in ks)]
    return Table(["method", "set", *(f"pass_at_{k}" for k in ks)], rows, header, shown, best)


# ---- ratio tails -----------------------------------------------------------------------------------------------------


def ratio_tails_table(loaded: Results) -> Table:
    """Extreme quantiles of the log-ratio, averaged over steps and seeds, and the tail width against the Bypass arm."""
    rows: list[list[Cell]] = []
    for level in ("token", "sequence"):
        reference = loaded.tail_reference(level)
        against = reference.tail_width(level) if reference else None
        for arm in loaded.arms:
            width = arm.tail_width(level)
            reduction = 1 - width / against if width is not None and against and arm is not reference else None
            quantiles: list[Cell] = [arm.step_mean(f"ratio/{level}/log_{name}") for name in TAIL_QUANTILES]
            spread = arm.step_mean(f"ratio/{level}/log_std")
            rows.append([arm.name, level, *quantiles, spread, width, reference.name if reference else None, reduction])
    columns = ["method", "level", *TAIL_QUANTILES, "std", "width", "reference", "width_reduction"]
    shown_columns = [
        "Method",
        "Ratio",
        "q0.1 %",
        "q1 %",
        "q99 %",
        "q99.9 %",
        "std",
        "q0.1–q99.9 width",
        "Reference",
        "Width reduction, %",
    ]
    shown = [
        [
            runs.label(str(row[0])),
            str(row[1]),
            *(number(value, 3) for value in row[2:8]),
            runs.label(str(row[8])) if row[8] else "",
            percent(row[9], signed=True),
        ]
        for row in rows
    ]
    return Table(columns, rows, shown_columns, shown)


# ---- controls --------------------------------------------------------------------------------------------------------


def controls_table(loaded: Results) -> Table:
    """Every ALP arm against each of its controls in the grid: what remains of the gain when only some of ALP is left
    out."""
    reference = loaded.find(runs.REFERENCE)
    rows: list[list[Cell]] = []
    for arm in loaded.arms:
        if arm.method.perturbation is None or runs.is_control(arm.arm):
            continue
        gain = loaded.difference(arm.accuracy, reference.accuracy) if reference else None
        for control in _controls_of(arm, loaded):
            left = loaded.difference(arm.accuracy, control.accuracy)
            means: list[Cell] = [loaded.mean(arm.accuracy), loaded.mean(control.accuracy)]
            gains = _ends(gain) if gain else [None, None, None]
            rows.append([arm.name, control.name, _changed(arm.method, control.method), *means, *_ends(left), *gains])
    shown_columns = [
        "Method",
        "Control",
        "Differs in",
        "Method, %",
        "Control, %",
        "Method − control, points",
        "Method − GRPO, points",
    ]
    shown = [
        [
            runs.label(str(row[0])),
            runs.label(str(row[1])),
            str(row[2]),
            percent(row[3]),
            percent(row[4]),
            with_interval(*row[5:8], signed=True),
            with_interval(*row[8:11], signed=True),
        ]
        for row in rows
    ]
    return Table(CONTROL_COLUMNS, rows, shown_columns, shown)


def _controls_of(arm: ArmRuns, loaded: Results) -> list[ArmRuns]:
    """Control variants of the same method, and Bypass (with its own control variants) at the same level."""
    bypass = runs.BYPASS[arm.ratio_level]
    same = [one for one in loaded.arms if one.arm.method == arm.arm.method and runs.is_control(one.arm)]
    without = [
        one for one in loaded.arms if one.arm.method == bypass and (one.arm.variant is None or runs.is_control(one.arm))
    ]
    return same + without


def _changed(first: Method, second: Method) -> str:
    """In words, what an ALP arm and its control differ in. A σ₀ of 0 is off, so its other noise settings do not
    count."""
    noise, other = first.perturbation, second.perturbation
    found = []
    if (noise is not None and noise.std > 0) != (other is not None and other.std > 0):
        found.append("noise")
    elif noise is not None and other is not None and noise != other:
        names = {"std": "σ₀", "learnable": "learning of σ", "lr": "learning rate of σ", "layers": "layers"}
        found += [names.get(key, key) for key in type(noise).model_fields if getattr(noise, key) != getattr(other, key)]
    if (first.clip_low, first.clip_high) != (second.clip_low, second.clip_high):
        found.append("clip range")
    found += [
        key
        for key in ("denominator", "level", "dual_clip", "aggregation", "correction")
        if getattr(first, key) != getattr(second, key)
    ]
    return ", ".join(found) or "nothing"


BUILDERS: dict[str, Callable[[Results], Table]] = {
    "main": main_table,
    "sets": sets_table,
    "pass_at_k": pass_at_k_table,
    "ratio_tails": ratio_tails_table,
    "controls": controls_table,
    "mismatch": mismatch_table,
}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _highest(values: Sequence[Cell], *, start: int) -> list[int]:
    """Positions from ``start`` on whose value prints as the highest, to one digit of a percent."""
    shown = {
        row: round(100 * float(value), 1) for row, value in enumerate(values) if row >= start and value is not None
    }
    return [row for row, value in shown.items() if value == max(shown.values())]
