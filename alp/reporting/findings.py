"""The findings of a grid in sentences, straight from its tables: no finding is left out for its sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alp.evaluation.power import pooled, seeds_needed, smallest_difference
from alp.rendering.numbers import points
from alp.rendering.tables import Row
from alp.reporting import arms, mismatch, noise_findings
from alp.reporting.arms import label
from alp.reporting.noise_findings import Compared, of_row, told_apart
from alp.reporting.runs import ArmRuns, Results

_NAMED = 8  # arms of a grid's own that get a sentence each
_ONE_POINT = 0.01  # a fraction


def headline(loaded: Results, tables: Mapping[str, Sequence[Row]]) -> list[str]:
    """The verdict, what it rests on, and what was run, a sentence each. ``tables`` holds the rows of the grid's tables
    by name."""
    main = {str(row["method"]): row for row in tables["main"]}
    first, *rest = verdict(loaded, tables) or [""]
    said = [*filter(None, [first]), *_own(loaded), *rest]
    return [*said, *_more_seeds(loaded), *_setting(loaded, main), _caution(loaded)]


def verdict(loaded: Results, tables: Mapping[str, Sequence[Row]]) -> list[str]:
    """What was found: who differs from GRPO, what the noise does, which engines differ."""
    main = {str(row["method"]): row for row in tables["main"]}
    perturbed = [
        arm.name for arm in loaded.arms if arm.method.perturbation is not None and not arms.is_control(arm.arm)
    ]
    return [
        *_against_reference(loaded.reference_method, main),
        *noise_findings.accuracy(tables["controls"], perturbed),
        *noise_findings.tails(loaded, tables["controls"]),
        *noise_findings.budget(loaded),
        *mismatch.sentences(tables.get("mismatch", [])),
    ]


def _against_reference(method: str | None, main: Mapping[str, Row]) -> list[str]:
    """Every arm against GRPO, or GSPO where the grid has that alone."""
    rows = [row for name, row in main.items() if name != arms.BASE and row["difference_to_reference"] is not None]
    if method is None or not rows:
        return []
    found = [of_row(row, label(str(row["method"])), "difference_to_reference") for row in rows]
    clear = [one for one, row in zip(found, rows, strict=True) if row["clear"]]
    comparisons = sum(row["clear"] is not None for row in main.values())
    arms_ = f"{len(rows)} {'arm' if len(rows) == 1 else 'arms'}"
    return [f"Accuracy minus {label(method)}'s, {arms_}: {told_apart(found, clear, comparisons)}."]


def _own(loaded: Results) -> list[str]:
    """Arms that this grid alone has, each beside the reference, and beside its preset where that is an arm too."""
    own = [arm for arm in loaded.arms if arms.is_own(arm.arm)]
    if len(own) > _NAMED:  # a grid of ablations: its tables have them
        return []
    sentences = []
    for arm in own:
        both = (loaded.reference_of(arm), loaded.find(arm.arm.method))
        beside = {other.name: other for other in both if other is not None and other is not arm}.values()
        parts = [_beside(loaded, arm, other) for other in beside]
        sentences += [f"{label(arm.name)}, of this grid's own: {'; '.join(parts)}."] if parts else []
    return sentences


def _beside(loaded: Results, arm: ArmRuns, other: ArmRuns) -> str:
    gap = loaded.difference(arm.accuracy, other.accuracy)
    found = Compared("", gap.mean, gap.low, gap.high)
    does = "" if found.low is None else f", an interval that {'excludes' if found.differs else 'includes'} zero"
    return f"{points(found.mean)} points{found.ends(points)} to {label(other.name)}{does}"


def _more_seeds(loaded: Results) -> list[str]:
    """What one point would take, by the arithmetic of ``alp power``; nothing where one seed shows no noise."""
    reference, seeds = loaded.reference, len(loaded.grid.seeds)
    others = [arm for arm in loaded.arms if arm is not reference]
    if reference is None or not others or seeds < 2:
        return []
    spread = pooled([loaded.variances(arm.accuracy, reference.accuracy) for arm in others]).deviation()
    told = f"{100 * spread * smallest_difference(seeds):.1f}"
    gap = f"a difference to {label(reference.name)} of {told} points"
    known = f"With {_seeds(loaded)} {gap} is told from zero with a chance of 80 %"
    needed = seeds_needed(_ONE_POINT, spread)
    if needed is None:
        return [f"{known}; one point is out of reach of more seeds (alp power {arms.named(loaded.grid)})."]
    more = max(0, needed - seeds)
    then = f"{more} more seeds an arm would resolve one point" if more else "one point is within its reach"
    return [f"{known}; {then}, on average over the arms and each taken singly (alp power {arms.named(loaded.grid)})."]


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
