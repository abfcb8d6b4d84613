"""The noise budgets that a grid's runs logged, first probe and last: what the table and the figure share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from alp.rendering.budget import Profile
from alp.reporting.arms import adds_noise
from alp.reporting.runs import ArmRuns, Results


def noisy_arms(loaded: Results) -> list[ArmRuns]:
    """The arms that train under noise, in the grid's order."""
    return [arm for arm in loaded.arms if adds_noise(arm.method)]


@dataclass(frozen=True)
class Probed:
    """The budget of an arm after ``step``: means over the seeds that have it, at each level."""

    step: int
    profiles: dict[str, Profile]


def first_and_last(arm: ArmRuns) -> list[Probed]:
    """The budgets of the first and of the last probe; one where they are the same, none where none was logged."""
    steps = arm.series("budget/token_variance/all")[0]
    return [_probed(arm, int(step)) for step in dict.fromkeys([*steps[:1], *steps[-1:]])]


def _probed(arm: ArmRuns, step: int) -> Probed:
    return Probed(step, {level: _profile(arm, level, step) for level in ("token", "sequence")})


def _profile(arm: ArmRuns, level: str, step: int) -> Profile:
    prefix = f"budget/{level}_variance/"
    names = {
        key.removeprefix(prefix) for run in arm.runs for line in run.metrics for key in line if key.startswith(prefix)
    }
    layers = sorted(names - {"all"}, key=_depth)
    deviation = _at(arm, f"rollout_corr/{level}/log_std", step)
    return Profile(
        layers,
        [_at(arm, prefix + name, step) for name in layers],
        _at(arm, f"{prefix}all", step),
        None if math.isnan(deviation) else deviation**2,
    )


def _depth(name: str) -> int:
    """Of a layer, or the first of a band; the logits come last."""
    first = name.partition("-")[0]
    return int(first) if first.isdigit() else 1 << 30


def _at(arm: ArmRuns, key: str, step: int) -> float:
    """Mean over the seeds that have the figure; NaN where none has."""
    steps, values = arm.series(key)
    known = values[:, steps == step]
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else math.nan
