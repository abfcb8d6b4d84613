"""Variance components of a built grid, on the scale on which ``benchmarks/coverage.py`` simulates.

A chance of a right answer is Φ(level of the arm + seed + seed of the arm + problem + problem of the arm + seed by
problem of the arm), each term but the first normal. Products of two answers' fractions that share a seed, a problem, an
arm, or none, have expectations that tell the terms apart; on this scale a mean over any of them has a closed form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]


def read_fractions(folder: Path) -> tuple[Floats, int]:
    """Fractions of right samples (arms, seeds, problems) of the arms below ``<grid>/<task>/<model>``, and the samples a
    problem. Raises ValueError where there are no two arms with the same seeds and problems."""
    files: dict[Path, list[Path]] = {}
    for path in sorted(folder.glob("*/*/*/seed*/evaluation/test.json")):
        files.setdefault(path.parents[2], []).append(path)
    plain = [[json.loads(path.read_text(encoding="utf-8")) for path in paths] for paths in files.values()]
    shapes = {(len(arm), seed["problems"], seed["samples"]) for arm in plain for seed in arm}
    if len(plain) < 2 or len(shapes) != 1:
        raise ValueError(f"{folder}: two arms with the same seeds, problems and samples expected, got {shapes or '{}'}")
    samples = int(plain[0][0]["samples"])
    return np.array([[seed["correct"] for seed in arm] for arm in plain]) / samples, samples


def components(fractions: Floats, samples: int) -> dict[str, Any]:
    """Standard deviations of the terms (probit units), and what they come from in points."""
    arms, seeds, problems = fractions.shape
    level = float(ndtri(fractions.mean()))
    share = {name: _correlation(covariance, level) for name, covariance in covariances(fractions, samples).items()}
    total = share["cell"] / (1 - share["cell"])  # of variances beside the unit one of the answer itself
    scale = 1 + total
    seed, problem = share["seed of other arm"] * scale, share["problem of other arm"] * scale
    own_seed, own_problem = share["seed"] * scale - seed, share["problem"] * scale - problem
    parts = {
        "seed": seed,
        "seed_of_arm": own_seed,
        "problem": problem,
        "problem_of_arm": own_problem,
        "seed_by_problem": total - seed - own_seed - problem - own_problem,
    }
    means = fractions.mean(2)
    return {
        "standard_deviations": {name: round(max(part, 0.0) ** 0.5, 4) for name, part in parts.items()},
        "from": {
            "arms": arms,
            "seeds": seeds,
            "problems": problems,
            "samples": samples,
            "accuracy": round(float(fractions.mean()), 4),
            "seed_points": round(100 * float(means.var(1, ddof=1).mean() ** 0.5), 3),
            "difference_points": round(100 * float((means[1:] - means[:1]).var(1, ddof=1).mean() ** 0.5), 3),
        },
    }


def covariances(fractions: Floats, samples: int) -> dict[str, float]:
    """Of two chances that share the named and nothing else, without the bias of samples that both would share."""
    arms, seeds, problems = fractions.shape
    of_seed, of_problem, whole = fractions.sum(2), fractions.sum(1), fractions.sum((1, 2))

    def unequal(values: Floats) -> float:  # sum of products of different arms
        return float((values.sum(0) ** 2 - (values**2).sum(0)).sum())

    found = {"cell": float((fractions * (samples * fractions - 1) / (samples - 1)).mean())}
    for suffix, square, pairs in (
        ("", lambda values: float((values**2).sum()), arms),
        (" of other arm", unequal, arms * (arms - 1)),
    ):
        cells, rows, columns = square(fractions), square(of_seed), square(of_problem)
        nothing = (square(whole) - rows - columns + cells) / (pairs * seeds * problems * (seeds - 1) * (problems - 1))
        found[f"seed{suffix}"] = (rows - cells) / (pairs * seeds * problems * (problems - 1)) - nothing
        found[f"problem{suffix}"] = (columns - cells) / (pairs * seeds * problems * (seeds - 1)) - nothing
        found["cell"] -= 0.0 if suffix else nothing
    return found


def _correlation(covariance: float, level: float) -> float:
    """Of two normal variables that both lie below ``level`` with a chance of Φ(level)² + ``covariance``; 0 for none."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)

    def excess(correlation: float) -> float:
        chance = ndtr((level - np.sqrt(correlation) * nodes) / np.sqrt(1 - correlation))
        return float((weights * chance**2).sum() / weights.sum() - ndtr(level) ** 2)

    low, high = 0.0, 0.999
    if covariance <= 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < covariance else (low, middle)
    return (low + high) / 2
