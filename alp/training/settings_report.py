"""What was really active, read from the objects that do the work, and the refusal to run anything else."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from alp.configuration.schema import HFRollout, TrainConfig, VLLMRollout
from alp.rollout.engine import Engine
from alp.training.update import Updater


def describe_active(config: TrainConfig, engine: Engine, model: Any, updater: Updater) -> dict[str, Any]:
    """The content of ``active.json``."""
    noise, settings, method = updater.perturbation, config.method.perturbation, updater.method
    parameter = next(model.parameters())
    return engine.describe() | {
        "method": method.name,
        "variant": config.variant,
        "arm": config.run.arm,
        "numerator": "perturbed" if noise is not None and noise.enabled else "current",
        "denominator": method.denominator,
        "level": method.level,
        "clip_low": method.clip_low,
        "clip_high": method.clip_high,
        "dual_clip": method.dual_clip,
        "aggregation": method.aggregation,
        "correction": method.correction.model_dump(),
        "perturbation": None
        if noise is None or settings is None
        else {
            "layers": noise.layers,
            "hooks": noise.hooks,
            "std": settings.std,
            "learnable": noise.learnable,
            "lr": settings.lr,
        },
        "train_dtype": str(parameter.dtype).removeprefix("torch."),
        "autocast": "bfloat16" if parameter.device.type == "cuda" else None,
        "gradient_checkpointing": sum(
            layer.gradient_checkpointing and layer.training
            for layer in model.modules()
            if isinstance(layer, GradientCheckpointingLayer)
        ),
        "temperature": updater.temperature,
        "threads": torch.get_num_threads(),
        "updates_per_batch": updater.trainer.updates_per_batch,
        "kl": updater.trainer.kl if updater.reference else 0.0,
        "optimizer_groups": [
            {"lr": group["lr"], "weight_decay": group["weight_decay"], "tensors": len(group["params"])}
            for group in updater.optimizer.param_groups
        ],
    }


def check_active(config: TrainConfig, active: dict[str, Any]) -> None:
    """Refuse to run anything but what the configuration says. Raises RuntimeError."""
    settings = config.method.perturbation
    noisy = settings is not None and settings.std > 0
    hooks = active["perturbation"]["hooks"] if active["perturbation"] else 0
    expected = len(active["perturbation"]["layers"]) if noisy else 0
    checks = {
        "numerator": (active["numerator"], "perturbed" if noisy else "current"),
        "hooks": (hooks, expected),
        "noise learns": (len(active["optimizer_groups"]) == 2, noisy and settings is not None and settings.learnable),
        "engine": (active["engine"], config.rollout.engine),
        "rollout dtype": (
            active["rollout_dtype"],
            "bfloat16" if config.rollout.dtype == "int8" else config.rollout.dtype,
        ),
        "quantised": (active["quantised_weights"] > 0, _quantised(config.rollout)),
        "training dtype": (active["train_dtype"], "float32"),
        "gradient checkpointing": (active["gradient_checkpointing"] > 0, config.model.gradient_checkpointing),
        "threads": (active["threads"], config.trainer.threads),
    }
    if isinstance(config.rollout, VLLMRollout):
        checks |= _check_vllm(config.rollout, active)
    for name, (found, wanted) in checks.items():
        if found != wanted:
            raise RuntimeError(f"{name}: {found!r} is active, the configuration says {wanted!r}")


def _quantised(rollout: HFRollout | VLLMRollout) -> bool:
    return rollout.quantization is not None if isinstance(rollout, VLLMRollout) else rollout.dtype == "int8"


def _check_vllm(rollout: VLLMRollout, active: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What vLLM says of itself against the configuration."""
    same = ("seeded", "prefix_cache", "tensor_parallel", "max_sequences", "sleep_level")
    return {
        **{f"rollout.{name}": (active[name], getattr(rollout, name)) for name in same},
        "rollout log-probs": (active["log_prob_mode"], "processed_logprobs"),
        "rollout threads": (active["rollout_threads"], rollout.threads),
    }


def check_perturbed(config: TrainConfig, perturbed: int) -> None:
    """At the end: noise acted in every update of a perturbed method and in none of the others. Raises RuntimeError."""
    trainer, settings = config.trainer, config.method.perturbation
    expected = trainer.steps * trainer.updates_per_batch if settings is not None and settings.std else 0
    if perturbed != expected:
        raise RuntimeError(f"{perturbed} updates were perturbed instead of {expected}")
