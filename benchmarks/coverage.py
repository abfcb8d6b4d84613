"""Do the intervals of the tables hold? Grids simulated with the variances of a real one, and how often an interval of
95 % covers the truth, by the number of seeds (``python -m benchmarks.coverage``, two minutes on one core).

    python -m benchmarks.coverage [grid=<folder of a built grid>] [extract=true] [grids=20000] [out=results/coverage]

Writes report.md and report.json. ``grid`` takes the components from that grid instead of coverage.yaml; ``extract``
prints them and simulates nothing. Every simulated grid draws seeds and problems anew. The truth of an arm is the
expectation over seeds of its accuracy on the drawn problems (fixed problems, what the tables are about); that over
problems too is in the report for comparison.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from alp.evaluation import statistics
from alp.reproducibility import write_json, write_text
from benchmarks import interval_methods as methods
from benchmarks.grid_components import components, read_fractions

Floats = NDArray[np.float64]
CHUNK = 25  # grids at a time: a few MiB, so that the cache holds them
FALL = 3.0  # probit units that a failing seed loses: 71 % become 4 %
RESAMPLED = 1000  # grids that the bootstrap is tried on
# A case of the table: the arm, the arm it is compared with, and whether the problems are several sets.
CASES = {
    "mean": ("alike", None, False),
    "paired difference": ("alike", "reference", False),
    "unequal variances, mean": ("unsteady", None, False),
    "unequal variances, difference": ("unsteady", "reference", False),
    "several sets, mean": ("alike", None, True),
    "several sets, difference": ("alike", "reference", True),
    "one seed in five fails, mean": ("failing", None, False),
    "one seed in five fails, difference": ("failing", "reference", False),
    "saturated, mean": ("saturated", None, False),
    "saturated, difference": ("saturated", "saturated_reference", False),
}


class Simulation:
    """Grids with the given components: arms (arms,) by name, at most ``seeds`` seeds each."""

    def __init__(self, settings: dict[str, Any], deviations: dict[str, float], stream: int = 18) -> None:
        self.arms = list(settings["arms"])
        self.problems, self.samples = int(settings["problems"]), int(settings["samples"])
        self.sizes, self.seeds = tuple(settings["sizes"]), list(settings["seeds"])
        self.deviations, self.rng = deviations, np.random.default_rng(stream)
        accuracies, factors, self.failures = np.array(list(settings["arms"].values()), dtype=float).T
        self.own = deviations["seed_of_arm"] * factors
        inner = 1 + deviations["seed"] ** 2 + self.own**2 + deviations["seed_by_problem"] ** 2
        outer = inner + deviations["problem"] ** 2 + deviations["problem_of_arm"] ** 2
        self.levels = ndtri(accuracies) * np.sqrt(outer)
        self.inner = np.sqrt(inner)
        self.population = self._expected(self.levels, np.sqrt(outer), self.failures)

    def draw(self, grids: int) -> tuple[NDArray[np.float32], Floats]:
        """Fractions of right samples (grids, arms, seeds, problems), and what each problem's is over all seeds (grids,
        arms, problems)."""
        arms, seeds, sd = len(self.arms), max(self.seeds), self.deviations
        normal = self.rng.standard_normal
        shared, own = normal((grids, 1, self.problems)), normal((grids, arms, self.problems))
        levels = self.levels[None, :, None] + sd["problem"] * shared + sd["problem_of_arm"] * own
        by_seed = sd["seed"] * normal((grids, 1, seeds)) + self.own[:, None] * normal((grids, arms, seeds))
        by_seed -= FALL * (self.rng.random((grids, arms, seeds)) < self.failures[:, None])
        chances = normal((grids, arms, seeds, self.problems), dtype=np.float32)
        chances *= np.float32(sd["seed_by_problem"])
        chances += levels[:, :, None].astype(np.float32)
        chances += by_seed[..., None].astype(np.float32)
        ndtr(chances, out=chances)
        right = np.zeros(chances.shape, dtype=np.uint8)
        for _ in range(self.samples):  # a binomial draw, five times as fast as numpy's with a chance per cell
            right += self.rng.random(chances.shape, dtype=np.float32) < chances
        expected = self._expected(levels, self.inner[None, :, None], self.failures[None, :, None])
        return right / np.float32(self.samples), expected

    @staticmethod
    def _expected(levels: Floats, spread: Floats, failures: Floats) -> Floats:
        """The mean over everything that is normal with that deviation, and over seeds that fail."""
        return np.asarray((1 - failures) * ndtr(levels / spread) + failures * ndtr((levels - FALL) / spread))


class Tally:
    """Hits and widths by case, method, target and number of seeds."""

    def __init__(self) -> None:
        self.hits: dict[tuple[str, str, str, int], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(self, case: str, method: str, seeds: int, ends: methods.Interval, truths: dict[str, Floats]) -> None:
        low, high = ends
        for target, truth in truths.items():
            entry = self.hits[case, method, target, seeds]
            entry[0] += float(((low <= truth) & (truth <= high)).sum())
            entry[1] += float((high - low).sum())
            entry[2] += len(low)

    def rows(self) -> Iterator[dict[str, Any]]:
        for (case, method, target, seeds), (hits, width, count) in self.hits.items():
            coverage = hits / count
            error = (coverage * (1 - coverage) / count) ** 0.5
            yield {
                "case": case, "method": method, "problems": target, "seeds": seeds, "grids": int(count),
                "coverage": coverage, "standard_error": error, "width_points": 100 * width / count,
            }  # fmt: skip


def measure(simulation: Simulation, grids: int) -> Tally:
    """Coverage and width of every method in every case."""
    tally, numbers, truths = Tally(), [], []
    weights = {
        several: statistics.weights(simulation.problems, simulation.sizes if several else None)
        for several in (False, True)
    }
    for start in range(0, grids, CHUNK):
        fractions, expected = simulation.draw(min(CHUNK, grids - start))
        both = np.stack([weights[False], weights[True]], axis=1)
        numbers.append(fractions.astype(np.float64) @ both)
        truths.append(expected @ both)
        _measure_tables(tally, simulation, fractions, expected, weights, resampled=start < RESAMPLED)
    _measure_numbers(tally, simulation, np.concatenate(numbers), np.concatenate(truths))
    return tally


def _measure_tables(
    tally: Tally,
    simulation: Simulation,
    fractions: NDArray[np.float32],
    expected: Floats,
    weights: dict[bool, Floats],
    *,
    resampled: bool,
) -> None:
    """The methods that need problems and seeds: the bootstrap, and problems as a sample."""
    for case, (name, against, several) in CASES.items():
        values, truth, population = _contrast(simulation, name, against, fractions, expected)
        targets = {"fixed": truth @ weights[several], "sampled": np.full(len(truth), population)}
        sizes = simulation.sizes if several else (simulation.problems,)
        for seeds in simulation.seeds:
            table = values[:, :seeds].astype(np.float64)
            if case in ("mean", "paired difference"):
                tally.add(case, "crossed", seeds, methods.crossed(table), targets)
            if resampled:
                ends = methods.bootstrap(table, weights[several], sizes)
                tally.add(case, "bootstrap", seeds, ends, targets)


def _contrast(
    simulation: Simulation, name: str, against: str | None, values: NDArray[Any], truths: Floats
) -> tuple[NDArray[Any], Floats, float]:
    """An arm, or its difference to another: values (grids, seeds, …), truths (grids, …), and that of all problems."""
    first = simulation.arms.index(name)
    if against is None:
        return values[:, first], truths[:, first], float(simulation.population[first])
    second = simulation.arms.index(against)
    population = float(simulation.population[first] - simulation.population[second])
    return values[:, first] - values[:, second], truths[:, first] - truths[:, second], population


def _measure_numbers(tally: Tally, simulation: Simulation, numbers: Floats, truths: Floats) -> None:
    """The methods that need a number a seed: (grids, arms, seeds, 2), the last for one set and several."""
    for case, (name, against, several) in CASES.items():
        every = numbers[..., int(several)]
        values, truth, population = _contrast(simulation, name, against, every, truths[..., int(several)])
        targets = {"fixed": truth, "sampled": np.full(len(truth), population)}
        for seeds in simulation.seeds:
            of_seeds, arms = values[:, :seeds], every[:, :, :seeds]
            _check_ours(of_seeds)
            tally.add(case, "student", seeds, methods.student(of_seeds), targets)
            if against is not None:
                first, second = (arms[:, simulation.arms.index(arm)] for arm in (name, against))
                tally.add(case, "welch", seeds, methods.welch(first, second), {"fixed": truth})
                reference = simulation.arms.index(against)
                arms = np.delete(arms - arms[:, [reference]], reference, axis=1)
            borrowing: dict[str, Callable[[Floats, Floats], methods.Interval]]
            borrowing = {"pooled": methods.pooled, "moderated": methods.moderated}
            for method, call in borrowing.items():
                tally.add(case, method, seeds, call(of_seeds, arms), {"fixed": truth})


def _check_ours(numbers: Floats) -> None:
    """What is measured is what the tables call."""
    low, high = methods.student(numbers[:1])
    ours = statistics.interval(numbers[0][:, None])
    assert np.allclose([low[0], high[0]], [ours.low, ours.high], atol=1e-9)


LABELS = {
    "student": "Student over seeds (the tables)",
    "bootstrap": "bootstrap over seeds and problems (before)",
    "welch": "Welch, arms unpaired",
    "pooled": "one variance for all arms",
    "moderated": "moderated variances",
    "crossed": "crossed, Satterthwaite",
}


def markdown(rows: list[dict[str, Any]], seeds: list[int], target: str) -> str:
    """Case and method against seeds: coverage in per cent, mean width in points in parentheses."""
    cells = {(row["case"], row["method"], row["seeds"]): row for row in rows if row["problems"] == target}
    lines = ["| Case | Method | " + " | ".join(f"{count} seeds" for count in seeds) + " |"]
    lines.append("| :--- | :--- |" + " ---: |" * len(seeds))
    for case in CASES:
        for method, label in LABELS.items():
            shown = [cells.get((case, method, count)) for count in seeds]
            if all(shown):
                texts = [f"{100 * cell['coverage']:.1f} ({cell['width_points']:.1f})" for cell in shown if cell]
                lines.append(f"| {case} | {label} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> None:
    options = dict(word.partition("=")[::2] for word in words)
    if unknown := sorted(set(options) - {"grid", "extract", "grids", "out"}):
        sys.exit(f"unknown option {unknown[0]}; choose from grid, extract, grids, out")
    settings = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    used = settings["components"]
    if "grid" in options:
        used = components(*read_fractions(Path(options["grid"])))
    if options.get("extract") == "true":
        print(yaml.safe_dump({"components": used}, sort_keys=False), end="")
        return
    began, grids = time.monotonic(), int(options.get("grids", settings["grids"]))
    out = Path(options.get("out", "results/coverage"))
    rows = list(measure(Simulation(settings, used["standard_deviations"]), grids).rows())
    text = "# Coverage of 95 % intervals\n\nCoverage in per cent, mean width in points in parentheses.\n"
    for target, meaning in (("fixed", "these problems, other seeds"), ("sampled", "other problems and seeds")):
        text += f"\n## The truth of {meaning}\n\n{markdown(rows, settings['seeds'], target)}"
    write_text(out / "report.md", text)
    write_json(out / "report.json", {"settings": settings | {"components": used, "grids": grids}, "rows": rows})
    print(text)
    print(f"{out}/report.md; {grids} grids in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
