"""What a training job is given, checked before its weights are read, and what its results follow from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from alp import adapters, models
from alp.configuration.compose import code_of, identity
from alp.configuration.train_schema import TrainConfig
from alp.errors import UserError
from alp.reproducibility import json_line
from alp.rollout import contract
from alp.rollout.episodes import check_environment, longest_of
from alp.tasks.task import Problem, Task, check_disjoint, content_hash


def origin(config: TrainConfig, model: Path, problems: list[Problem], device: torch.device) -> dict[str, str]:
    """Hashes of everything a job's results follow from, its kind of device, and ``identity`` over all of them: what may
    continue a checkpoint."""
    parts = {
        "config_hash": identity(config),
        "code_hash": code_of("train", config),
        "model_hash": models.content_hash(model),
        "data_hash": content_hash(problems),
        "device": device.type,  # not in the configuration: ``auto`` is another one on another machine
    }
    return parts | {"identity": hashlib.sha256(json_line(parts).encode()).hexdigest()}


def check_method(config: TrainConfig, folder: Path) -> None:
    """Refuse a band outside the model, before its weights are read."""
    try:
        if config.method.perturbation is not None:
            config.method.perturbation.check_depth(models.depth_of(folder))
    except ValueError as error:
        raise UserError(f"train: {error}") from None


def check_adapter(config: TrainConfig, folder: Path) -> None:
    """Refuse an adapter for layers that the model has not, before its weights are read."""
    if config.model.lora is not None:
        adapters.targets_of(models.skeleton(folder), config.model.lora)


def check_problems(training: list[Problem], validation: list[Problem]) -> None:
    """Refuse data in which a validation problem is trained on."""
    try:
        check_disjoint({"train": training, "validation": validation})
    except ValueError as error:
        raise UserError(f"task.data: {error}") from None


def check_prompts(
    config: TrainConfig,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    training: list[Problem],
    validation: list[Problem],
) -> contract.Limits:
    """Refuse problems that this model cannot be asked; a validation set that nothing reads may be empty."""
    trainer, engines = config.trainer, (config.rollout, config.validation)
    longest = min((settings.longest for settings in engines if settings.longest is not None), default=None)
    check_environment(task, tokenizer, contract.limits_of(folder, tokenizer, longest))
    limits = contract.limits_of(folder, tokenizer, longest_of(task, longest))
    sets = {"train": training}
    if validation or trainer.validate_every or trainer.probe_every:
        sets["validation"] = validation
    most_new = max(settings.max_new_tokens for settings in engines)
    contract.check_prompts(tokenizer, task, sets, model=config.model, limits=limits, max_new_tokens=most_new)
    return limits
