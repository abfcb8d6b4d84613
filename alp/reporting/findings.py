"""The findings of a grid in sentences, straight from its tables: no finding is left out for its sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alp.rendering.numbers import points
from alp.rendering.tables import Row
from alp.reporting import arms, mismatch
from alp.reporting.arms import label
from alp.reporting.runs import Results


def headline(loaded: Results, tables: Mapping[str, Sequence[Row]]) -> list[str]:
    """What was run and what was measured, one sentence each. ``tables`` holds the rows of the grid's tables by name."""
    main = {str(row["method"]): row for row in tables["main"]}
    perturbed = [
        arm.name for arm in loaded.arms if arm.method.perturbation is not None and not arms.is_control(arm.arm)
    ]
    return [
        *_setting(loaded, main),
        *_gains(perturbed, main),
        *mismatch.sentences(tables.get("mismatch", [])),
        *_noise_alone(perturbed, tables["controls"]),
        *_tails(loaded, perturbed, tables["ratio_tails"]),
        _caution(loaded),
    ]


def _setting(loaded: Results, main: Mapping[str, Row]) -> list[str]:
    """What was run, and how well the best arm and the base model did."""
    grid, base = loaded.grid, main[arms.BASE]
    best = max((row for name, row in main.items() if name != arms.BASE), key=lambda row: _value(row, "accuracy_mean"))
    return [
        (
            f"{len(grid.arms)} arms × {_seeds(loaded)} on the task {grid.task} with the model {grid.model}; every model"
            f" answered the same {loaded.base.problems} test problems {loaded.base.samples} times at"
            f" T = 1.{_averaged(loaded)}"
        ),
        (f"Highest mean accuracy: {label(str(best['method']))}, {_accuracy(best)}; base model {_accuracy(base)}."),
    ]


def _gains(perturbed: Sequence[str], main: Mapping[str, Row]) -> list[str]:
    """Every ALP arm against GRPO, where the grid has it."""
    compared = [row for row in main.values() if row["clear"] is not None]
    return [
        f"{label(name)} minus GRPO: {_gap(main[name], 'difference_to_grpo')}{_at_once(main[name], len(compared))}."
        for name in perturbed
        if main[name]["difference_to_grpo"] is not None
    ]


def _at_once(row: Row, comparisons: int) -> str:
    """Whether an interval that excludes zero does so among all comparisons of the main table."""
    if row["clear"] is None or not _excludes_zero(row) or comparisons == 1:
        return ""
    verdict = "it stays clear of zero" if row["clear"] else "it does not stay clear of zero"
    return f", and {verdict} over all {comparisons} comparisons of the main table at once"


def _noise_alone(perturbed: Sequence[str], controls: Sequence[Row]) -> list[str]:
    """What can be ascribed to the noise, and for which arms nothing can."""
    controlled = [row for row in controls if row["changed"] == "noise"]
    sentences = [
        f"{label(str(row['method']))} minus {label(str(row['control']))}, which differs in the noise alone:"
        f" {_gap(row, 'difference')}."
        for row in controlled
    ]
    missing = [label(name) for name in perturbed if name not in {row["method"] for row in controlled}]
    if missing:
        sentences.append(
            "No control for the noise alone in this grid: nothing here can be ascribed to the noise of"
            f" {', '.join(missing)}."
        )
    return sentences


def _tails(loaded: Results, perturbed: Sequence[str], ratio_tails: Sequence[Row]) -> list[str]:
    """Whether the tails of an ALP arm's own ratio, and of its clean one, are narrower than Bypass's."""
    sentences = []
    for row in ratio_tails:
        arm = loaded.find(str(row["method"]))
        if arm and arm.name in perturbed and arm.ratio_level == row["level"] and row["width_reduction"] is not None:
            comparison = f"{_narrower(row, 'width_reduction')} than {label(str(row['reference']))}'s"
            if row["clean_width_reduction"] is not None:
                comparison += f", of the clean policy {_narrower(row, 'clean_width_reduction')} than its"
            sentences.append(
                f"{label(arm.name)}: log-ratio tails (0.1 % to 99.9 %, {row['level']} level) {comparison}."
            )
    return sentences


def _narrower(row: Row, name: str) -> str:
    change = 100 * _value(row, name)
    return f"{abs(change):.0f} % {'narrower' if change >= 0 else 'wider'}"


def _caution(loaded: Results) -> str:
    if len(loaded.grid.seeds) == 1:
        return (
            "One seed says nothing of the noise between trainings: arms and their differences have no intervals here,"
            " and no difference can be told from chance; the base model's bracket holds the noise of its samples alone."
        )
    return (
        f"Brackets hold 95 % intervals of the mean over training seeds, from {_seeds(loaded)}, on these"
        f" {loaded.base.problems} problems (the base model's: of its samples alone). They say nothing of other"
        " problems, and each is taken singly, not corrected for the number of comparisons."
    )


def _seeds(loaded: Results) -> str:
    count = len(loaded.grid.seeds)
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def _averaged(loaded: Results) -> str:
    """How several evaluation sets count; nothing to say of one."""
    if len(loaded.sets) == 1:
        return ""
    sizes = ", ".join(f"{name} ({span.stop - span.start} problems)" for name, span in loaded.sets.items())
    return f" Accuracies are the plain mean over {len(loaded.sets)} evaluation sets: {sizes}."


def _value(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, (int, float)), f"{name} of {row['method']} is missing"
    return float(value)


def _accuracy(row: Row) -> str:
    mean = f"{100 * _value(row, 'accuracy_mean'):.1f} %"
    if row["accuracy_low"] is None:
        return mean
    low, high = (100 * _value(row, f"accuracy_{part}") for part in ("low", "high"))
    return f"{mean} [{low:.1f}, {high:.1f}]"


def _gap(row: Row, mean: str) -> str:
    if row["difference_low"] is None:
        return f"{points(row[mean])} points, without an interval"
    verdict = "excludes" if _excludes_zero(row) else "includes"
    ends = f"[{points(row['difference_low'])}, {points(row['difference_high'])}]"
    return f"{points(row[mean])} points {ends}; the interval {verdict} zero"


def _excludes_zero(row: Row) -> bool:
    return not _value(row, "difference_low") <= 0 <= _value(row, "difference_high")
