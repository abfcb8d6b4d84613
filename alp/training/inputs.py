"""What a training job is given, checked before its weights are read, and what its results follow from."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alp import models
from alp.configuration.compose import identity
from alp.configuration.schema import TrainConfig, VLLMRollout
from alp.errors import UserError
from alp.reproducibility import code_hash, json_line, provenance
from alp.rollout import contract
from alp.tasks.task import Problem, Task, check_disjoint


def origin(config: TrainConfig, model: Path, problems: list[Problem]) -> dict[str, str]:
    """Hashes of everything a job's results follow from, and ``identity`` over all of them: what may continue a
    checkpoint."""
    versions = {
        name: version for name, version in provenance()["versions"].items() if name not in ("mlflow", "snakemake")
    }
    parts = {
        "environment_hash": hashlib.sha256(json_line(versions).encode()).hexdigest(),
        "config_hash": identity(config),
        "code_hash": code_hash("alp.training.trainer"),
        "model_hash": models.content_hash(model),
        "data_hash": hashlib.sha256("".join(json_line(asdict(problem)) for problem in problems).encode()).hexdigest(),
    }
    return parts | {"identity": hashlib.sha256(json_line(parts).encode()).hexdigest()}


def check_layers(config: TrainConfig, folder: Path) -> None:
    """Refuse a band outside the model before its weights are read."""
    if config.method.perturbation is None:
        return
    try:
        config.method.perturbation.check_depth(models.depth_of(folder))
    except ValueError as error:
        raise UserError(f"train: {error}") from None


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
    trainer, rollout = config.trainer, config.rollout
    most = rollout.max_length if isinstance(rollout, VLLMRollout) else None
    limits = contract.limits_of(folder, tokenizer, most)
    sets = {"train": training}
    if validation or trainer.validate_every or trainer.probe_every or isinstance(rollout, VLLMRollout):
        sets["validation"] = validation
    contract.check_prompts(
        tokenizer, task, sets, model=config.model, limits=limits, max_new_tokens=rollout.max_new_tokens
    )
    return limits
