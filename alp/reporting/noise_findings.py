"""What the noise of a grid's arms does, in sentences: accuracy, whose noise it is, how large it is beside the mismatch,
and whether tails narrow. Few arms are named one by one; of many, those that stand out, and the range of the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alp.evaluation.statistics import paired_difference
from alp.rendering.numbers import points, significant
from alp.rendering.tables import Row
from alp.reporting.arms import label
from alp.reporting.budget import first_and_last, noisy_arms
from alp.reporting.runs import ArmRuns, Results

FEW = 3  # comparisons that are named one by one


@dataclass(frozen=True)
class Compared:
    """A comparison in words: a mean with the ends of its interval, and where that lies to what means no difference."""

    name: str
    mean: float
    low: float | None
    high: float | None
    nothing: float = 0.0

    @property
    def differs(self) -> bool:
        """Whether the interval, taken singly, excludes no difference."""
        return self.low is not None and self.high is not None and not self.low <= self.nothing <= self.high

    def ends(self, show: Callable[[float], str]) -> str:
        """The interval; nothing where there is none."""
        return "" if self.low is None or self.high is None else f" [{show(self.low)}, {show(self.high)}]"


def pairs(controls: Sequence[Row]) -> list[Row]:
    """One row of the controls table per arm under noise: against what differs in the noise alone, the first of them."""
    first: dict[str, Row] = {}
    for row in controls:
        if row["changed"] == "noise":
            first.setdefault(str(row["method"]), row)
    return list(first.values())


# ---- accuracy --------------------------------------------------------------------------------------------------------


def accuracy(controls: Sequence[Row], perturbed: Sequence[str]) -> list[str]:
    """What can be ascribed to the noise, and for which arms nothing can."""
    rows = pairs(controls)
    comparisons = sum(row["clear"] is not None for row in controls)
    sentences = [_many(rows, comparisons)] if len(rows) > FEW else [_one(row, comparisons) for row in rows]
    if missing := [label(name) for name in perturbed if name not in {row["method"] for row in rows}]:
        sentences.append(
            "No control for the noise alone in this grid: nothing here can be ascribed to the noise of"
            f" {', '.join(missing)}."
        )
    return sentences


def of_row(row: Row, name: str, mean: str = "difference") -> Compared:
    """A row's difference."""
    value, low, high = row[mean], row["difference_low"], row["difference_high"]
    assert isinstance(value, int | float), f"{mean} of {row['method']} is missing"
    return Compared(name, float(value), None if low is None else float(low), None if high is None else float(high))


def _one(row: Row, comparisons: int) -> str:
    name = f"{label(str(row['method']))} minus {label(str(row['control']))}, which differs in the noise alone"
    found = of_row(row, name)
    if found.low is None:
        return f"{name}: {points(found.mean)} points, without an interval."
    verdict = f"the interval {'excludes' if found.differs else 'includes'} zero"
    if found.differs and comparisons > 1:
        does = "stays" if row["clear"] else "does not stay"
        verdict += f", and {does} clear of it over all {comparisons} comparisons of the controls table at once"
    return f"{name}: {points(found.mean)} points{found.ends(points)}; {verdict}."


def _many(rows: Sequence[Row], comparisons: int) -> str:
    found = [of_row(row, label(str(row["method"]))) for row in rows]
    clear = [one for one, row in zip(found, rows, strict=True) if row["clear"]]
    return f"Accuracy with the noise minus without, {len(rows)} arms: {told_apart(found, clear, comparisons)}."


def told_apart(found: Sequence[Compared], clear: Sequence[Compared], comparisons: int) -> str:
    """Those that stay clear of zero over all ``comparisons`` of their table at once, those that do so only singly, and
    the range of the others."""
    if all(one.low is None for one in found):
        return f"{_range(found)}, without intervals"
    singly = [one for one in found if one.differs and one not in clear]
    others = [one for one in found if one not in clear and one not in singly]
    parts = [f"none stays clear of zero over all {comparisons} comparisons of the table at once"]
    if clear:
        parts = [f"clear of zero over all {comparisons} comparisons of the table at once: {_listed(clear)}"]
    if singly:
        parts.append(f"taken singly, {'also ' if clear else ''}{_listed(singly)}")
    if others:
        who = "the others" if clear or singly else "all"
        parts.append(f"{who} at {_range(others)}, with zero inside the interval")
    return "; ".join(parts)


def _listed(found: Sequence[Compared]) -> str:
    return ", ".join(f"{one.name} ({points(one.mean)}{one.ends(points)})" for one in found)


def _range(found: Sequence[Compared]) -> str:
    low, high = (points(pick(one.mean for one in found)) for pick in (min, max))
    return f"{low} points" if low == high else f"{low} to {high} points"


# ---- whose noise, and how large --------------------------------------------------------------------------------------


def budget(loaded: Results) -> list[str]:
    """Which layer's noise it is, and its size beside the mismatch, after the last probed step."""
    shares: dict[str, dict[str, float]] = {}
    sizes: dict[str, float] = {}
    for arm in noisy_arms(loaded):
        if not (probed := first_and_last(arm)):
            continue
        profile = probed[-1].profiles["token"]
        known = {name: part for name, part in zip(profile.names, profile.shares, strict=True) if not math.isnan(part)}
        if known:
            layer = max(known, key=lambda name: known[name])
            shares.setdefault(layer, {})[arm.name] = known[layer]
        if profile.shown_mismatch and not math.isnan(profile.together):
            sizes[arm.name] = math.sqrt(profile.together / profile.shown_mismatch)
    return [*_whose(shares), *_size(sizes)]


def _whose(shares: dict[str, dict[str, float]]) -> list[str]:
    """Grouped by the layer that makes the largest part."""
    if not shares:
        return []
    parts = [f"{_place(layer)} makes {_in_arms(arms, _percents)}" for layer, arms in shares.items()]
    return [f"Whose noise (share of the variance of a token's log π, last probe): {'; '.join(parts)}."]


def _place(name: str) -> str:
    return "the logits'" if name == "logits" else f"{'layers' if '-' in name else 'layer'} {name}"


def _size(sizes: dict[str, float]) -> list[str]:
    """All layers together, in standard deviations of a token's log π."""
    if not sizes:
        return []
    return [
        "All layers' noise beside the mismatch of engine and training code (standard deviations of a token's log π,"
        f" last probe): {_in_arms(sizes, _times)}."
    ]


def _in_arms(values: dict[str, float], show: Callable[[float, float], str]) -> str:
    if len(values) <= FEW:
        return ", ".join(f"{show(value, value)} in {label(name)}" for name, value in values.items())
    least, most = (pick(values, key=lambda name: values[name]) for pick in (min, max))
    shown = f"{show(values[least], values[most])} in {len(values)} arms"
    return f"{shown} (least {label(least)}, most {label(most)})" if " to " in shown else shown


def _percents(low: float, high: float) -> str:
    ends = [f"{100 * value:.0f}" for value in (low, high)]
    return f"{ends[0]} %" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} %"


def _times(low: float, high: float) -> str:
    ends = [significant(value, 2) for value in (low, high)]
    return f"{ends[0]} times" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} times"


# ---- tails -----------------------------------------------------------------------------------------------------------


def tails(loaded: Results, controls: Sequence[Row]) -> list[str]:
    """How wide the tails of an arm's own ratio, and of its clean policy's, are beside those of the same without noise,
    seed by seed."""
    sentences = []
    compared = [(loaded.find(str(row["method"])), loaded.find(str(row["control"]))) for row in pairs(controls)]
    for of, name in (("ratio", "own log-ratio, which the loss sees"), ("clean", "log-ratio of the clean policy")):
        widths = [_wider(arm, control, of) for arm, control in compared if arm and control]
        known = [width for width in widths if width is not None]
        if known:
            sentences.append(f"Width of the {name} (0.1 % to 99.9 %), with the noise over without: {_widths(known)}.")
    return sentences


def _wider(arm: ArmRuns, control: ArmRuns, of: str) -> Compared | None:
    """Geometric mean over seeds of the two widths' ratio, at the level of the arm's own ratio."""
    widths = [[replace(one, runs=(run,)).tail_width(arm.ratio_level, of) for run in one.runs] for one in (arm, control)]
    if any(width is None or width <= 0 for of_arm in widths for width in of_arm):
        return None
    first, second = (np.log(np.array(of_arm, dtype=np.float64))[:, None] for of_arm in widths)
    found = paired_difference(first, second)
    low, high = (None if end is None else math.exp(min(end, 700.0)) for end in (found.low, found.high))
    return Compared(f"{label(arm.name)}", math.exp(found.mean), low, high, 1.0)


def _widths(found: Sequence[Compared]) -> str:
    def show(value: float) -> str:
        return significant(value, 3)

    if len(found) <= FEW:
        return ", ".join(f"{show(one.mean)}{one.ends(show)} times in {one.name}" for one in found)
    groups = {
        "wider": [one for one in found if one.differs and one.mean > 1],
        "narrower": [one for one in found if one.differs and one.mean < 1],
        "not told apart": [one for one in found if not one.differs],
    }
    parts = [
        f"{name} in {len(some)} arms ({_times(min(one.mean for one in some), max(one.mean for one in some))})"
        for name, some in groups.items()
        if some
    ]
    return "; ".join([*parts, *([] if groups["narrower"] else ["narrower in none"])])
