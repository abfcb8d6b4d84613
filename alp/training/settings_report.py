"""What was really active, read from the objects that do the work, and the refusal to run anything else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from alp import adapters, shards
from alp.configuration.train_schema import TrainConfig
from alp.policy.method import Perturbation
from alp.policy.perturbation import LayerwisePerturbation
from alp.rollout.engine import Engine
from alp.training import attention
from alp.training.ahead import overlaps
from alp.training.scoring import FIGURES_OF_OLD
from alp.training.update import Updater


def describe_active(config: TrainConfig, engine: Engine, model: Any, updater: Updater) -> dict[str, Any]:
    """The content of ``active.json``."""
    noise, settings, method = updater.perturbation, config.method.perturbation, updater.method
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
        "loss_form": method.loss_form,
        "loss_options": method.loss_options,
        "log_square": method.log_square,
        "corrections": [asdict(correction) for correction in method.corrections],
        "perturbation": None
        if noise is None or settings is None
        else {
            "layers": noise.layers,
            "hooks": noise.hooks,
            "kernel": noise.kernel,
            "scale": noise.scale,
            "std": settings.std,
            "learnable": noise.learnable,
            "lr": settings.lr,
            **_held_and_trained(noise, updater),
        },
        "lora": adapters.describe(model),
        **_arithmetic(model, updater),
        "log_probs": "whole" if updater.head is None else "chunked",
        "logits_chunk": None if updater.head is None else updater.head.chunk,
        "old_log_probs": updater.trainer.old_log_probs,
        "missing_figures": [] if updater.trainer.old_log_probs else list(FIGURES_OF_OLD),
        "temperature": updater.temperature,
        "threads": torch.get_num_threads(),
        "micro_batch": updater.trainer.micro_batch,
        "micro_tokens": updater.trainer.micro_tokens,
        "updates_per_batch": updater.trainer.updates_per_batch,
        "lag": updater.trainer.lag,
        "sampling_overlaps_updates": overlaps(config),
        "kl": updater.trainer.kl if updater.reference else 0.0,
        "optimizer_groups": [
            {"lr": group["lr"], "weight_decay": group["weight_decay"], "tensors": len(group["params"])}
            for group in updater.optimizer.param_groups
        ],
    }


def _held_and_trained(noise: LayerwisePerturbation, updater: Updater) -> dict[str, Any]:
    """What log σ is held in and how it is trained; null where there is none, or it is fixed."""
    logs, groups = next(noise.parameters(), None), updater.optimizer.param_groups
    return {
        "dtype": noise.dtype,
        "log_std_dtype": None if logs is None else _dtypes([logs]),
        "weight_decay": None if logs is None else groups[1]["weight_decay"],
        "in_global_norm": None if logs is None else any(weight is logs for weight in updater.clipped),
    }


def _arithmetic(model: Any, updater: Updater) -> dict[str, Any]:
    """In which numbers and by which kernels the model is trained."""
    rounded = shards.computes_in(model)
    return {
        "train_dtype": _dtypes(model.parameters()) if rounded is None else str(rounded).removeprefix("torch."),
        "optimizer_dtype": _dtypes(updater.optimizer.param_groups[0]["params"]),
        "autocast": "bfloat16" if next(model.parameters()).device.type == "cuda" else None,
        "compiled_layers": 0 if updater.compiled is None else len(updater.compiled),
        "attention_kernels": attention.allowed(),
        "attention_backward": "strict" if updater.trainer.deterministic_attention else "not strict",
        "gradient_checkpointing": sum(
            layer.gradient_checkpointing and layer.training
            for layer in model.modules()
            if isinstance(layer, GradientCheckpointingLayer)
        ),
    }


def _dtypes(tensors: Iterable[Tensor]) -> str:
    """``float32``, or all that there are."""
    return "+".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))


def check_active(config: TrainConfig, active: dict[str, Any]) -> None:
    """Refuse to run anything but what the configuration says. Raises RuntimeError."""
    settings = config.method.perturbation
    noisy = settings is not None and settings.std > 0
    hooks = active["perturbation"]["hooks"] if active["perturbation"] else 0
    expected = len(active["perturbation"]["layers"]) if noisy else 0
    adapter, wanted = active["lora"], config.model.lora
    trained = active["optimizer_groups"][0]["tensors"]
    checks = {
        "lora": (adapter and (adapter["rank"], adapter["alpha"]), wanted and (wanted.rank, wanted.alpha)),
        "adapter trained alone": (adapter is None or trained == 2 * adapter["layers"], True),
        "numerator": (active["numerator"], "perturbed" if noisy else "current"),
        "hooks": (hooks, expected),
        "noise learns": (len(active["optimizer_groups"]) == 2, noisy and settings is not None and settings.learnable),
        "training dtype": (
            active["train_dtype"],
            "bfloat16" if config.trainer.precision == "bfloat16" else "float32",
        ),
        "optimizer's dtype": (active["optimizer_dtype"], "float32"),
        "gradient checkpointing": (active["gradient_checkpointing"] > 0, config.model.gradient_checkpointing),
        "old log-probs": (active["old_log_probs"], config.trainer.old_log_probs),
        "compiled layers": (active["compiled_layers"] > 0, config.trainer.compile),
        "attention without cuDNN's": (
            "cudnn" not in active["attention_kernels"] or not config.trainer.deterministic_attention,
            True,
        ),
        "threads": (active["threads"], config.trainer.threads),
        "tokens a chunk of logits": (
            active["logits_chunk"],
            None if "log_probs_whole_because" in active else config.trainer.logits_chunk,
        ),
    }
    if active["perturbation"] and settings is not None:
        checks |= _of_noise(settings, active["perturbation"])
    checks |= {f"rollout: {name}": (active.get(name), value) for name, value in config.rollout.active.items()}
    if config.rollout.quantised is not None:
        checks["quantised"] = (active["quantised_weights"] > 0, config.rollout.quantised)
    for name, (running, configured) in checks.items():
        if running != configured:
            raise RuntimeError(f"{name}: {running!r} is active, the configuration says {configured!r}")


def _of_noise(settings: Perturbation, active: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What the noise is and what it was configured to be; of training only where log σ is trained."""
    checks = {name: (active[name], getattr(settings, name)) for name in ("scale", "dtype")}
    if active["log_std_dtype"] is not None:
        names = ("weight_decay", "in_global_norm")
        checks |= {name: (active[name], getattr(settings, name)) for name in names}
        checks["wide log σ"] = (active["log_std_dtype"] == "float32" or settings.dtype == "hidden", True)
    return {f"perturbation: {name}": pair for name, pair in checks.items()}


def check_perturbed(config: TrainConfig, perturbed: int) -> None:
    """At the end: noise acted in every update of a perturbed method and in none of the others. Raises RuntimeError."""
    trainer, settings = config.trainer, config.method.perturbation
    expected = trainer.steps * trainer.updates_per_batch if settings is not None and settings.std else 0
    if perturbed != expected:
        raise RuntimeError(f"{perturbed} updates were perturbed instead of {expected}")
