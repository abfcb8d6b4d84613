"""Every ALP arm against each of its controls: what remains of the gain when only some of ALP is left out."""

from __future__ import annotations

from dataclasses import replace

from alp.configuration.method_schema import Method
from alp.evaluation.statistics import stay_clear
from alp.rendering.numbers import Cell, percent, points
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.comparisons import interval_cells
from alp.reporting.registry import Declaration
from alp.reporting.runs import ArmRuns, Results

ARTEFACT = Declaration(
    order=40,
    title="Controls",
    caption=(
        "What remains of ALP's gain: every ALP arm against each of its controls in this grid, with the settings in "
        "which the two differ. Only where that is the noise alone can the difference be ascribed to the noise. "
        "Differences are taken seed by seed, with 95 % intervals of their mean over training seeds on these very "
        "problems, each taken singly; one seed gives none. A dagger (†) marks the differences that stay clear of zero "
        "over all comparisons of this table at once (Holm's test)."
    ),
)
# fmt: off
EXPORTED = (
    "method", "control", "changed", "accuracy_mean", "control_mean", "difference", "difference_low", "difference_high",
    "clear", "gain_over_reference", "gain_low", "gain_high",
)
# fmt: on


def make(loaded: Results) -> Table:
    """One row per ALP arm and control; none in a grid without such a pair."""
    compared = [
        (arm, control, loaded.difference(arm.accuracy, control.accuracy))
        for arm in loaded.arms
        if arm.method.perturbation is not None and not arms.is_control(arm.arm)
        for control in _controls_of(arm, loaded)
    ]
    marks = stay_clear([remaining.p_value for *_, remaining in compared])
    rows: list[list[Cell]] = []
    for (arm, control, remaining), mark in zip(compared, marks, strict=True):
        reference = loaded.reference_of(arm)
        gain = loaded.difference(arm.accuracy, reference.accuracy) if reference else None
        means: list[Cell] = [loaded.mean(arm.accuracy), loaded.mean(control.accuracy)]
        changed = changed_settings(arm.method, control.method)
        clear = None if remaining.p_value is None else mark
        rows.append([arm.name, control.name, changed, *means, *interval_cells(remaining), clear, *interval_cells(gain)])
    columns = [
        words("method", "Method", lambda name: arms.label(str(name)), link="arm"),
        words("control", "Control", lambda name: arms.label(str(name)), link="arm"),
        words("changed", "Differs in"),
        Column("accuracy_mean", "Method", percent, "%"),
        Column("control_mean", "Control", percent, "%"),
        Column(
            "difference",
            "Method − control",
            points,
            "points",
            interval=("difference_low", "difference_high"),
            mark="clear",
        ),
        Column(
            "gain_over_reference",
            f"Method − {loaded.reference_label}",
            points,
            "points",
            interval=("gain_low", "gain_high"),
        ),
    ]
    return Table(frame(rows, EXPORTED), columns)


def noise_free(loaded: Results) -> dict[str, ArmRuns]:
    """Of every ALP arm, the first of its controls that differs in the noise alone."""
    found: dict[str, ArmRuns] = {}
    for arm in loaded.arms:
        if arm.method.perturbation is not None and not arms.is_control(arm.arm):
            alone = (one for one in _controls_of(arm, loaded) if changed_settings(arm.method, one.method) == "noise")
            if control := next(alone, None):
                found[arm.name] = control
    return found


def _controls_of(arm: ArmRuns, loaded: Results) -> list[ArmRuns]:
    """Control variants of the same method, with its very noise but that it may be off or fixed; and Bypass (with its
    own control variants) at the same level."""
    bypass = arms.BYPASS[arm.ratio_level]
    variants = [
        other
        for other in loaded.arms
        if other.arm.method == arm.arm.method and arms.is_control(other.arm) and _same_noise(arm.method, other.method)
    ]
    bypasses = [
        other
        for other in loaded.arms
        if other.arm.method == bypass and (other.arm.variant is None or arms.is_control(other.arm))
    ]
    return variants + bypasses


def _same_noise(first: Method, second: Method) -> bool:
    """Whether their noise is one, or off in the second, or learned in one of them alone."""
    noise, other = first.perturbation, second.perturbation
    assert noise is not None
    return other is None or not other.std or replace(other, learnable=noise.learnable) == noise


def changed_settings(first: Method, second: Method) -> str:
    """In words, what an ALP arm and its control differ in. A σ₀ of 0 is off, so its other noise settings do not
    count."""
    noise, other = first.perturbation, second.perturbation
    changed = []
    if (noise is not None and noise.std > 0) != (other is not None and other.std > 0):
        changed.append("noise")
    elif noise is not None and other is not None and noise != other:
        names = {
            "std": "σ₀",
            "scale": "scale of σ",
            "learnable": "learning of σ",
            "lr": "learning rate of σ",
            "weight_decay": "decay of σ",
            "in_global_norm": "clipping of σ's gradient",
            "dtype": "dtype of σ",
        }
        changed += [names.get(key, key) for key in vars(noise) if getattr(noise, key) != getattr(other, key)]
    if (first.clip_low, first.clip_high) != (second.clip_low, second.clip_high):
        changed.append("clip range")
    changed += [
        key.removesuffix("s")
        for key in (
            "denominator",
            "level",
            "loss_form",
            "loss_options",
            "log_square",
            "dual_clip",
            "aggregation",
            "corrections",
        )
        if getattr(first, key) != getattr(second, key)
    ]
    return ", ".join(changed) or "nothing"
