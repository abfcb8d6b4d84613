"""Engines compared: how far each one's log-probs are from the training code's, and what became of training on its
samples."""

from __future__ import annotations

from alp.reporting import runs
from alp.reporting.runs import ArmRuns, Results
from alp.reporting.tables import Cell, Table, exact, percent, significant, with_interval

KL, K3 = "rollout_corr/kl", "rollout_corr/k3_kl"
QUANTILES = ("q001", "q01", "q99", "q999")
COLUMNS = [
    *("engine", "method", "kl", "k3_kl", *(f"{level}_{name}" for level in ("token", "sequence") for name in QUANTILES)),
    *(
        "accuracy_mean",
        "accuracy_low",
        "accuracy_high",
        "difference_to_first_engine",
        "difference_low",
        "difference_high",
    ),
]
_SHOWN = ["Engine", "Method", "KL", "k3", *(f"token {name} %" for name in ("q0.1", "q1", "q99", "q99.9"))]


def quantile(arm: ArmRuns, level: str, name: str) -> float | None:
    """A quantile of log π_old − log μ, averaged over steps and seeds."""
    return arm.step_mean(f"rollout_corr/{level}/log_{name}")


def by_engine(loaded: Results) -> list[ArmRuns]:
    """The arms engine by engine, both engines and arms in the grid's order."""
    engines = list(dict.fromkeys(arm.engine for arm in loaded.arms))
    return sorted(loaded.arms, key=lambda arm: engines.index(arm.engine))


def method_label(arm: ArmRuns, loaded: Results) -> str:
    """The arm without its variant where engine and method say it all."""
    same = [one for one in loaded.arms if (one.engine, one.arm.method) == (arm.engine, arm.arm.method)]
    return runs.label(arm.arm.method if len(same) == 1 else arm.name)


def counterpart(arm: ArmRuns, loaded: Results) -> ArmRuns | None:
    """The same method under the grid's first engine; None for that engine's own arms, and where it has no one such
    arm."""
    first = loaded.arms[0].engine
    found = [one for one in loaded.arms if one.engine == first and one.arm.method == arm.arm.method]
    return found[0] if len(found) == 1 and arm.engine != first else None


def mismatch_table(loaded: Results) -> Table:
    """One row per engine and method: divergences and log-ratio quantiles of π_old to μ, accuracy, difference to the
    first engine."""
    rows: list[list[Cell]] = []
    shown: list[list[str]] = []
    for arm in by_engine(loaded):
        against = counterpart(arm, loaded)
        difference = loaded.difference(arm.accuracy, against.accuracy) if against else None
        accuracy = loaded.interval(arm.accuracy)
        divergences = [arm.step_mean(KL), arm.step_mean(K3)]
        ends = {level: [quantile(arm, level, name) for name in QUANTILES] for level in ("token", "sequence")}
        gap: list[Cell] = [difference.mean, difference.low, difference.high] if difference else [None, None, None]
        measured = [exact(value) for value in (*divergences, *ends["token"], *ends["sequence"])]
        rows.append([arm.engine, arm.name, *measured, accuracy.mean, accuracy.low, accuracy.high, *gap])
        shown.append(
            [
                arm.engine,
                method_label(arm, loaded),
                *(significant(value) for value in (*divergences, *ends["token"])),
                with_interval(accuracy.mean, accuracy.low, accuracy.high),
                with_interval(*gap, signed=True),
            ]
        )
    header = [*_SHOWN, f"{loaded.average}, %", f"Difference to {loaded.arms[0].engine}, points"]
    return Table(COLUMNS, rows, header, shown)


def sentences(rows: list[dict[str, str]]) -> list[str]:
    """What the table says, engine by engine: the divergence and the accuracy of its methods."""
    found = []
    for engine in dict.fromkeys(row["engine"] for row in rows):
        mine = [row for row in rows if row["engine"] == engine]
        parts = [
            f"{runs.label(row['method'].partition('-')[0])} {percent(float(row['accuracy_mean']))} % at a k3"
            " divergence of " + (significant(float(row["k3_kl"])) if row["k3_kl"] else "unknown size")
            for row in mine
        ]
        found.append(f"Rollouts by {engine}: {'; '.join(parts)}.")
    return found
