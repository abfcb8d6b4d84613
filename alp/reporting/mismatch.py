"""Engines compared: what the table, the figure and the sentences of the page share."""

from __future__ import annotations

from collections.abc import Sequence

from alp.rendering.numbers import percent, significant
from alp.rendering.tables import Row
from alp.reporting import arms
from alp.reporting.runs import ArmRuns, Results

KL, K3 = "rollout_corr/kl", "rollout_corr/k3_kl"
QUANTILES = {"q001": "q0.1", "q01": "q1", "q99": "q99", "q999": "q99.9"}


def quantile(arm: ArmRuns, level: str, name: str) -> float | None:
    """A quantile of log π_old − log μ, averaged over steps and seeds."""
    return arm.step_mean(f"rollout_corr/{level}/log_{name}")


def by_engine(loaded: Results) -> list[ArmRuns]:
    """The arms engine by engine, both engines and arms in the grid's order."""
    engines = list(dict.fromkeys(arm.engine for arm in loaded.arms))
    return sorted(loaded.arms, key=lambda arm: engines.index(arm.engine))


def method_label(arm: ArmRuns, loaded: Results) -> str:
    """The arm without its variant where engine and method say it all."""
    alike = [other for other in loaded.arms if (other.engine, other.arm.method) == (arm.engine, arm.arm.method)]
    return arms.label(arm.arm.method if len(alike) == 1 else arm.name)


def counterpart(arm: ArmRuns, loaded: Results) -> ArmRuns | None:
    """The same method under the grid's first engine; None for that engine's own arms, and where it has no one such
    arm."""
    first = loaded.arms[0].engine
    candidates = [other for other in loaded.arms if other.engine == first and other.arm.method == arm.arm.method]
    return candidates[0] if len(candidates) == 1 and arm.engine != first else None


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the table says, engine by engine: the divergence and the accuracy of its methods."""
    lines = []
    for engine in dict.fromkeys(row["engine"] for row in rows):
        parts = [
            f"{arms.label(str(row['method']).partition('-')[0])} {percent(row['accuracy_mean'])} % at a k3 divergence"
            f" of {'unknown size' if row['k3_kl'] is None else significant(row['k3_kl'])}"
            for row in rows
            if row["engine"] == engine
        ]
        lines.append(f"Rollouts by {engine}: {'; '.join(parts)}.")
    return lines
