"""A finished grid read from disk into typed records (formats: docs/results.md). What tables, figures and report share.

Numpy alone: pandas, plotting and templates are imported by the modules that need them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alp.configuration import compose
from alp.configuration.grid import Arm, Grid, job_of
from alp.configuration.method_schema import Method
from alp.evaluation import statistics
from alp.evaluation.power import Components, difference_components
from alp.evaluation.statistics import Interval
from alp.reporting.arms import BYPASS, REFERENCES, build_command, label, learns_noise, ratio_level
from alp.reporting.records import STEP, UPDATE, Evaluation, Floats, damaged, read_evaluation, read_lines


@dataclass(frozen=True)
class Run:
    """One training job and the evaluation of its last weights."""

    arm: str
    seed: int
    folder: Path
    metrics: tuple[dict[str, Any], ...]
    evaluation: Evaluation
    rebuild: str

    @cached_property
    def updates(self) -> tuple[dict[str, Any], ...]:
        """Lines of ``updates.jsonl``; read on first use, tables never need them."""
        return tuple(read_lines(self.folder / "updates.jsonl", UPDATE, self.rebuild))


@dataclass(frozen=True)
class ArmRuns:
    """The runs of one arm in the order of the grid's seeds; ``engine`` is what sampled them, as people read it."""

    arm: Arm
    method: Method
    engine: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def ratio_level(self) -> str:
        """Level its ratio is logged at: ``token``, or ``sequence`` (summed) for every level that sums or averages
        tokens."""
        return ratio_level(self.method)

    @property
    def learns_noise(self) -> bool:
        return learns_noise(self.method)

    @property
    def accuracy(self) -> Floats:
        """Fraction of right samples (seeds, problems)."""
        return np.stack([run.evaluation.per_problem for run in self.runs])

    def series(self, key: str) -> tuple[Floats, Floats]:
        """Steps (steps,) where any seed has ``key``, and its values (seeds, steps); NaN where a seed has none."""
        return series(self.runs, key)

    def step_mean(self, key: str) -> float | None:
        """Mean of ``key`` over the steps of each seed, then over seeds; None where no seed has it."""
        _, values = self.series(key)
        known = [of_seed[~np.isnan(of_seed)] for of_seed in values]
        means = [float(of_seed.mean()) for of_seed in known if of_seed.size]
        return math.fsum(means) / len(means) if means else None

    def tail_width(self, level: str, of: str = "ratio") -> float | None:
        """Distance between the mean q001 and q999 of the method's own log-ratio at a level (``token`` or ``sequence``),
        or of another one that is logged with the same figures: ``clean``, ``perturbed``."""
        low, high = (self.step_mean(f"{of}/{level}/log_{name}") for name in ("q001", "q999"))
        return None if low is None or high is None else high - low


@dataclass(frozen=True)
class Results:
    """A whole grid: base model and arms, all evaluated on the same problems with the same number of samples.

    ``sets`` maps the name of each evaluation set to its span among the problems: one set, or several that count
    equally.
    """

    grid: Grid
    base: Evaluation
    arms: tuple[ArmRuns, ...]
    sets: dict[str, slice]

    @property
    def _sizes(self) -> list[int]:
        return [span.stop - span.start for span in self.sets.values()]

    def _part(self, name: str | None) -> tuple[slice, list[int]]:
        """Where the problems of a set stand, and the sizes of the sets there; all of them without a name."""
        if name is None:
            return slice(None), self._sizes
        span = self.sets[name]
        return span, [span.stop - span.start]

    def interval(self, values: Floats, part: str | None = None) -> Interval:
        """Mean accuracy over the sets of ``values`` (seeds, problems), or on one of them, with its interval over seeds;
        none of a single seed."""
        span, sizes = self._part(part)
        return statistics.interval(values[:, span], sizes=sizes).within(0, 1)

    def base_interval(self, part: str | None = None) -> Interval:
        """The base model's likewise: one given model, so that its interval holds the noise of its samples alone."""
        span, sizes = self._part(part)
        fractions = self.base.per_problem[span]
        return statistics.model_interval(fractions, samples=self.base.samples, sizes=sizes).within(0, 1)

    def difference(self, first: Floats, second: Floats, part: str | None = None) -> Interval:
        """The same of the difference of two tables, seed by seed; a single row beside several is the base model."""
        span, sizes = self._part(part)
        return statistics.paired_difference(
            first[:, span], second[:, span], sizes=sizes, samples=self.base.samples
        ).within(-1, 1)

    def variances(self, first: Floats, second: Floats) -> Components:
        """What the differences of equal seeds vary by."""
        return difference_components(first, second, samples=self.base.samples, sizes=self._sizes)

    def mean(self, values: NDArray[np.generic]) -> float:
        """Plain mean of the sets' means of ``values`` (problems,) or (seeds, problems)."""
        return statistics.mean(np.atleast_2d(values), sizes=self._sizes)

    @property
    def average(self) -> str:
        """What an accuracy is, for people: ``avg@64``, or ``avg@32, mean of 5 sets``."""
        return f"avg@{self.base.samples}" + (f", mean of {len(self.sets)} sets" if len(self.sets) > 1 else "")

    def find(self, name: str) -> ArmRuns | None:
        """The arm of that name, or None when the grid has no such arm."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def reference(self) -> ArmRuns | None:
        """The arm that differences are taken to, as its preset is; None in a grid that has it under variants alone."""
        return None if self.reference_method is None else self.find(self.reference_method)

    @property
    def reference_method(self) -> str | None:
        """Whose accuracy the others' is compared with: GRPO, in a grid without it GSPO, else nobody's."""
        methods = {arm.arm.method for arm in self.arms}
        return next((method for method in REFERENCES if method in methods), None)

    @property
    def reference_label(self) -> str:
        """That method for people, in the headings of columns that a grid without any leaves empty too."""
        return label(self.reference_method or REFERENCES[0])

    def reference_of(self, arm: ArmRuns) -> ArmRuns | None:
        """What an arm is compared with: :attr:`reference`, else that method under the arm's own variant (as many
        updates on a batch, the same engine); None for the reference itself and where there is none."""
        found = self.reference
        if found is None and self.reference_method is not None and arm.arm.variant is not None:
            found = self.find(f"{self.reference_method}-{arm.arm.variant}")
        return None if found is arm else found

    def tail_reference(self, level: str) -> ArmRuns | None:
        """The Bypass arm of a level; without it the noise-free ALP arm, which is Bypass at ALP's clip range
        (docs/method.md, Presets)."""
        bypass = BYPASS[level]
        return self.find(bypass) or self.find(bypass.replace("bypass", "alp") + "-sigma0")


def series(runs: Iterable[Run], key: str) -> tuple[Floats, Floats]:
    """Steps (steps,) where any of the runs has a number for ``key``, and the values (runs, steps) with NaN for gaps."""
    curves = [{line["step"]: float(line[key]) for line in run.metrics if line.get(key) is not None} for run in runs]
    steps = sorted(set().union(*curves)) if curves else []
    values = np.array([[curve.get(step, math.nan) for step in steps] for curve in curves], dtype=np.float64)
    return np.array(steps, dtype=np.float64), values.reshape(len(curves), len(steps))


def evaluation_set(grid: Grid) -> str:
    """The set that the grid evaluates on."""
    return str(compose.load("evaluate", grid.overrides("evaluate", "results")).evaluation.set)


def _read_run(grid: Grid, results: Path, arm: str, seed: int, name: str) -> Run:
    folder, command = grid.run_dir(results, arm, seed), build_command(grid)
    metrics = read_lines(folder / "metrics.jsonl", STEP, command)
    if not metrics or not all(isinstance(line.get("step"), int) for line in metrics):
        raise damaged(folder / "metrics.jsonl", "is empty or has lines without a step", command)
    evaluation = read_evaluation(folder / "evaluation" / f"{name}.json", command)
    return Run(arm, seed, folder, tuple(metrics), evaluation, command)


def load(grid: Grid, results: str | Path) -> Results:
    """Read a finished grid. Raises :class:`UserError` for a missing or damaged file, or evaluations that cannot be
    compared."""
    root, name, command = Path(results), evaluation_set(grid), build_command(grid)
    base = read_evaluation(grid.base_dir(root) / "evaluation" / f"{name}.json", command)
    arms = []
    for arm in grid.arms:
        job = job_of(grid, arm)
        seeds = tuple(_read_run(grid, root, arm.name, seed, name) for seed in grid.seeds)
        arms.append(ArmRuns(arm, job.method, job.rollout.label, seeds))
    for run in (run for arm in arms for run in arm.runs):
        if (run.evaluation.problem_ids, run.evaluation.samples) != (base.problem_ids, base.samples):
            path = run.folder / "evaluation" / f"{name}.json"
            raise damaged(path, "has other problems or samples than the base model's evaluation", command)
    sets = _sets(grid.parts, base)
    if sets is None:
        path = grid.base_dir(root) / "evaluation" / f"{name}.json"
        raise damaged(path, f"does not hold the sets {', '.join(grid.parts)}, each in one piece", command)
    return Results(grid, base, tuple(arms), sets)


def _sets(parts: list[str], base: Evaluation) -> dict[str, slice] | None:
    """Where each of several evaluation sets stands among the problems, in their order there; None when one is missing
    or in pieces."""
    if not parts:
        return {base.set: slice(0, base.problems)}
    blocks = [(part, len(list(ids))) for part, ids in groupby(base.problem_ids, key=_set_of)]
    if sorted(part for part, _ in blocks) != sorted(parts):
        return None
    ends = np.cumsum([0, *(size for _, size in blocks)]).tolist()
    return {part: slice(start, end) for (part, _), (start, end) in zip(blocks, pairwise(ends), strict=True)}


def _set_of(problem_id: str) -> str:
    return problem_id.partition(":")[0]
