"""What two builds of one grid conclude, compared: on another kind of processor the same commit is another draw of the
seeds, so bytes differ and conclusions need not (docs/intervals.md).

A **conclusion** is a paired difference whose 95 % interval over seeds excludes zero, with its sign: the differences to
GRPO of the main table and those of the controls table, each taken singly. An interval that holds zero concludes
nothing, and so contradicts nothing. A conclusion **differs** where

- both builds conclude, with opposite signs, or
- one alone does, and the two differences lie further apart than noise explains.

Where one alone concludes and the two lie within noise of each other, it *stands on one side alone*: that is said, and
differs from nothing, as a difference whose truth lies near the end of an interval does so in half of all rebuilds.
*Noise*: the two standard errors, combined as of independent builds (equal seeds share data and order, which only brings
them closer), with degrees of freedom after Satterthwaite, and Holm's test over all differences at once: of two builds
of the same code at most one in twenty says that any conclusion differs.

Mean accuracies are told beside, in the same combined standard errors, and decide nothing: every arm starts from one
base model, which is taught anew on every kind of processor, and the seeds do not show the noise of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alp.configuration.fields import Name
from alp.evaluation.statistics import Floats, Interval, of_seeds, sampling_variance, stay_clear, student_quantile
from alp.rendering.numbers import number, percent, points
from alp.reporting import arms
from alp.reporting.runs import Results

_SAME_END = 1e-9  # by how much an end may differ from what mean, error and degrees of freedom make of it


class Estimate(BaseModel):
    """A mean (a fraction, or a difference of two), its standard error and the degrees of freedom of that: both None
    where there is one seed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    mean: Annotated[float, Field(ge=-1, le=1)]
    error: Annotated[float, Field(ge=0)] | None
    df: Annotated[float, Field(gt=0)] | None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Estimate:
        if (self.error is None) != (self.df is None):
            raise ValueError("'error' and 'df' are both numbers or both null")
        return self

    @property
    def interval(self) -> Interval:
        """Student's, of 95 %, its ends cut to what a difference can be."""
        if self.error is None or self.df is None:
            return Interval(self.mean)
        reach = float(student_quantile(self.df)) * self.error
        return Interval(self.mean, self.mean - reach, self.mean + reach).within(-1, 1)


class Arm(Estimate):
    """Mean accuracy of an arm over ``seeds``; of the base model, which has none, with the noise of its samples."""

    seeds: Annotated[int, Field(ge=1)] | None


class Difference(Estimate):
    """``first`` minus ``second``, seed by seed, with its interval."""

    first: Name
    second: Name
    low: float | None
    high: float | None

    @model_validator(mode="after")
    def _ends_follow(self) -> Difference:
        for said, follows in ((self.low, self.interval.low), (self.high, self.interval.high)):
            if (said is None) != (follows is None) or abs((said or 0) - (follows or 0)) > _SAME_END:
                raise ValueError(f"the interval of {self.name} does not follow from its mean, error and df")
        return self

    @property
    def name(self) -> str:
        return f"{self.first} − {self.second}"

    @property
    def sign(self) -> int:
        """1 or -1 where it stays clear of zero, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


class Numbers(BaseModel):
    """What a manifest and a reference keep of a grid's tables."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    arms: dict[Name, Arm]
    differences: list[Difference]

    @model_validator(mode="after")
    def _each_once(self) -> Numbers:
        names = [difference.name for difference in self.differences]
        if len(set(names)) != len(names):
            raise ValueError("a difference stands twice")
        return self


# ---- of one build ----------------------------------------------------------------------------------------------------


def numbers_of(loaded: Results) -> Numbers:
    """The mean accuracy of every arm and every paired difference that the main and the controls table show."""
    base, sizes = loaded.base, [span.stop - span.start for span in loaded.sets.values()]
    drawn = sampling_variance(base.per_problem, samples=base.samples, sizes=sizes)
    given = None if drawn is None else (math.sqrt(drawn), float(base.problems * (base.samples - 1)))
    error, freedom = given or (None, None)
    means = {arms.BASE: Arm(mean=loaded.mean(base.per_problem), error=error, df=freedom, seeds=None)}
    accuracies = {arms.BASE: base.per_problem[None]}
    for arm in loaded.arms:
        accuracies[arm.name] = arm.accuracy
        mean, error, freedom = _of_seeds(of_seeds(arm.accuracy, sizes=sizes))
        means[arm.name] = Arm(mean=mean, error=error, df=freedom, seeds=len(arm.runs))
    differences = []
    for first, second in _pairs(loaded):
        numbers = of_seeds(accuracies[first] - accuracies[second], sizes=sizes)
        mean, error, freedom = _of_seeds(numbers)
        if first == arms.BASE and error is not None and freedom is not None:
            # every difference shares the error of the one given model's answers
            error, freedom = (None, None) if given is None else _combined([(error, freedom), given])
        ends = Estimate(mean=mean, error=error, df=freedom).interval
        differences.append(
            Difference(first=first, second=second, mean=mean, error=error, df=freedom, low=ends.low, high=ends.high)
        )
    return Numbers(arms=means, differences=differences)


def _pairs(loaded: Results) -> list[tuple[str, str]]:
    from alp.reporting.tables import controls  # pandas, which comparing two files needs nowhere

    pairs = [] if loaded.reference is None else [(arms.BASE, loaded.reference.name)]
    pairs += [(arm.name, other.name) for arm in loaded.arms if (other := loaded.reference_of(arm)) is not None]
    rows = controls.make(loaded).frame
    return list(dict.fromkeys([*pairs, *zip(rows["method"], rows["control"], strict=True)]))


def _of_seeds(numbers: Floats) -> tuple[float, float | None, float | None]:
    """Mean of the seeds' numbers, its standard error and the degrees of freedom of that; one seed shows neither."""
    count = len(numbers)
    mean = math.fsum(numbers) / count
    return (mean, None, None) if count == 1 else (mean, float(numbers.std(ddof=1)) / math.sqrt(count), count - 1.0)


def _combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The error of a sum of independent parts, each a standard error with its degrees of freedom, and those of the
    whole: as alp/evaluation/statistics.py has it."""
    error = math.hypot(*(part for part, _ in parts))
    shares = [(part / error) ** 2 if error else 1 / len(parts) for part, _ in parts]
    return error, 1 / math.fsum(share**2 / of_part for share, (_, of_part) in zip(shares, parts, strict=True))


# ---- of two ----------------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What became of every difference, in lines and counts."""

    differing: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    both: int = 0
    neither: int = 0
    open: int = 0  # differences without an interval on a side

    @property
    def known(self) -> int:
        """Differences that can be compared."""
        return self.both + self.neither + len(self.alone) + len(self.differing)

    @property
    def summary(self) -> str:
        """The counts, as one sentence's part."""
        if not self.known:
            return "no paired difference has an interval in both builds, so nothing is concluded and nothing compared"
        counts = f"{self.both} clear of zero in both builds, {self.neither} in neither"
        counts += f", {len(self.alone)} in one alone and within noise of the other" if self.alone else ""
        counts += f", {self.open} without an interval" if self.open else ""
        said = {0: "no conclusion differs", 1: "1 conclusion differs"}
        return f"{counts}; {said.get(len(self.differing), f'{len(self.differing)} conclusions differ')}"


@dataclass(frozen=True)
class _Apart:
    """How far two estimates of one thing lie apart."""

    errors: float | None  # combined standard errors; None without any
    p_value: float | None


def _apart(there: Estimate, here: Estimate) -> _Apart:
    if there.error is None or here.error is None or there.df is None or here.df is None:
        return _Apart(None, None)
    from scipy.special import stdtr

    shift = abs(here.mean - there.mean)
    error, freedom = _combined([(there.error, there.df), (here.error, here.df)])
    if not error:  # every seed of both agrees to the last answer
        return _Apart(math.inf if shift else 0.0, float(not shift))
    return _Apart(shift / error, 2 * float(stdtr(freedom, -shift / error)))


def compare(there: Numbers, here: Numbers) -> Comparison:
    """The conclusions of two builds. Raises nothing: numbers are checked where they are read."""
    found = Comparison()
    old = {difference.name: difference for difference in there.differences}
    new = {difference.name: difference for difference in here.differences}
    shared = [name for name in old if name in new]
    found.unmatched = [f"{name} only there" for name in old if name not in new]
    found.unmatched += [f"{name} only here" for name in new if name not in old]
    apart = {name: _apart(old[name], new[name]) for name in shared}
    beyond = _beyond(apart)
    for name in shared:
        _judge(found, old[name], new[name], apart[name], name in beyond)
    means = {name: _apart(arm, here.arms[name]) for name, arm in there.arms.items() if name in here.arms}
    shown = {
        name: f"{percent(there.arms[name].mean)} % there, {percent(here.arms[name].mean)} % here" for name in means
    }
    found.tables = [
        *_furthest("mean accuracies", means, shown),
        *_furthest("paired differences", apart, {name: _both_ends(old[name], new[name]) for name in shared}),
    ]
    return found


def _beyond(apart: dict[str, _Apart]) -> set[str]:
    """Those that lie further apart than noise explains, all of them looked at at once."""
    clear = stay_clear([distance.p_value for distance in apart.values()])
    return {name for name, is_beyond in zip(apart, clear, strict=True) if is_beyond}


def _judge(found: Comparison, old: Difference, new: Difference, distance: _Apart, is_beyond: bool) -> None:
    if distance.errors is None:
        found.open += 1
        return
    if old.sign == new.sign:
        found.both += old.sign != 0
        found.neither += old.sign == 0
        return
    where = f"{old.name}: {_both_ends(old, new)}"
    far = f"{_errors(distance.errors)} apart"
    if old.sign * new.sign < 0:
        found.differing.append(f"{where}: clear of zero in both builds, with opposite signs, {far}")
        return
    side = "there" if old.sign else "here"
    if is_beyond:
        found.differing.append(f"{where}: clear of zero {side} alone, {far}, more than noise explains")
    else:
        found.alone.append(f"{where}: clear of zero {side} alone, {far}, within noise: neither contradicts the other")


def _both_ends(old: Difference, new: Difference) -> str:
    return f"{_shown(old)} there, {_shown(new)} here"


def _shown(difference: Difference) -> str:
    ends = "" if difference.low is None else f" [{points(difference.low)}, {points(difference.high)}]"
    return points(difference.mean) + ends


def _errors(count: float) -> str:
    return "without any noise," if math.isinf(count) else f"{number(count, 1)} combined standard errors"


def _furthest(what: str, apart: dict[str, _Apart], shown: dict[str, str]) -> list[str]:
    """How far the numbers of a table lie apart, and which of them further than noise explains."""
    known = {name: distance.errors for name, distance in apart.items() if distance.errors is not None}
    if not known:
        return []
    worst = max(known, key=lambda name: known[name])
    line = f"{what} lie at most {_errors(known[worst])} apart ({worst}: {shown[worst]})"
    names = [name for name in known if name in _beyond(apart)]
    return [f"{line}; more than noise explains: {', '.join(names) or 'none'}"]
