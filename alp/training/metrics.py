"""The figures of a step from what its parts returned; names and meanings in docs/results.md."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alp.policy.perturbation import LayerwisePerturbation
from alp.rollout.episodes import Trajectory
from alp.training.batch import Batch
from alp.training.update import UpdateResult


def rollout_metrics(trajectories: list[Trajectory], samples: int) -> dict[str, float]:
    """Rewards and responses of a rollout batch, ``samples`` of a problem side by side."""
    rewards = [item.reward for item in trajectories]
    groups = [rewards[start : start + samples] for start in range(0, len(rewards), samples)]
    return tool_metrics(trajectories) | {
        "reward/mean": sum(rewards) / len(rewards),
        "reward/solve_all": sum(min(group) == 1.0 for group in groups) / len(groups),
        "reward/solve_none": sum(max(group) < 1.0 for group in groups) / len(groups),
        "response/length": sum(item.length for item in trajectories) / len(trajectories),
        "response/truncated": sum(not item.finished for item in trajectories) / len(trajectories),
    }


def tool_metrics(trajectories: list[Trajectory]) -> dict[str, float]:
    """What became of the turns; nothing where the task has no tool."""
    uses = [item.tools for item in trajectories if item.tools is not None]
    if not uses:
        return {}
    programs = sum(use.programs for use in uses)
    return {
        "tools/use_rate": sum(use.programs > 0 for use in uses) / len(uses),
        "tools/valid_rate": sum(use.valid for use in uses) / programs if programs else math.nan,
        "tools/turns": sum(use.turns for use in uses) / len(uses),
        "tools/void_rate": sum(use.void for use in uses) / len(uses),
    }


def update_metrics(results: list[UpdateResult]) -> dict[str, float]:
    """Means over the updates that have the figure, and the count of skipped ones."""
    names = sorted({name for result in results for name in result.metrics})
    means: dict[str, float] = {"policy/skipped": float(sum(result.skipped for result in results))}
    for name in names:
        values = [result.metrics[name] for result in results if name in result.metrics]
        means[name] = sum(values) / len(values)
    return means


def envelope(mini: Batch, raw: Tensor, clean: Tensor) -> dict[str, list[float]]:
    """Per sequence with a valid token: summed log-ratio, that of the clean policy, and mean token probability under
    μ."""
    mask = mini.response_mask
    rows = mask.any(-1)
    probability = torch.where(mask, mini.rollout_log_probs.double().exp(), 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
    values = {
        "log_ratio": raw.double().sum(-1),
        "clean_log_ratio": clean.double().sum(-1),
        "mean_probability": probability,
    }
    for value in values.values():
        rows &= value.isfinite()  # JSON has no word for the others
    return {name: value[rows].tolist() for name, value in values.items()}


def noise_metrics(perturbation: LayerwisePerturbation | None, results: list[UpdateResult]) -> dict[str, float]:
    """Per layer: σ after the step, gradient, realised and hidden RMS as means over the step's updates; of relative
    noise c after the step, and σ as the mean over its updates."""
    if perturbation is None or not perturbation.enabled:
        return {}
    figures: dict[str, float] = {}
    stds, relative = perturbation.std.tolist(), perturbation.scale == "relative"
    for row, layer in enumerate(perturbation.layers):
        figures[f"perturbation/{'relative_' if relative else ''}std/{layer}"] = stds[row]
        for name in ("grad", "realised_rms", "hidden_rms", *(["std"] if relative else [])):
            figures[f"perturbation/{name}/{layer}"] = sum(result.noise[name][row] for result in results) / len(results)
    return figures
