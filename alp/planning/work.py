"""What one job of a grid does: samples, tokens, updates, FLOPs, memory and disk, from its configuration alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alp.configuration.evaluate_schema import EvaluateConfig
from alp.configuration.train_schema import TrainConfig
from alp.errors import UserError
from alp.foreign import read_json
from alp.planning.size import BFLOAT16, FLOAT32, GIB, Size

_DTYPE_BYTES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": BFLOAT16}
_LOGIT_COPIES = 3  # float32, of a chunk of tokens: logits, their softmax, their gradient


@dataclass(frozen=True)
class Work:
    """``flops`` by kind of work: ``sample``, ``score``, ``update``. Bytes: ``memory`` at its largest, ``disk`` what
    stays, ``checkpoint`` what is there besides while it runs."""

    samples: int
    tokens: float  # sampled
    updates: int = 0
    flops: Mapping[str, float] = field(default_factory=dict)
    memory: float = 0.0
    disk: float = 0.0
    checkpoint: float = 0.0
    devices: int = 1  # that share the work; memory is of each

    @property
    def all_flops(self) -> float:
        return sum(self.flops.values())


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt, and what share a response takes of ``max_new_tokens``, or all turns together of what they
    may."""

    prompt: int
    fill: float


def training(config: TrainConfig, size: Size, lengths: Lengths) -> Work:
    """A whole training job: rollouts, scoring, updates and validation."""
    trainer = config.trainer
    batch = trainer.prompts * trainer.samples
    response = lengths.fill * config.task.longest_response(config.rollout.max_new_tokens)
    length = lengths.prompt + response
    forward = size.forward_flops(length)
    passes = int(trainer.old_log_probs) + int(trainer.kl > 0) + int(config.method.surveys_policy)
    again = 1 if config.model.gradient_checkpointing else 0
    sampled = forward * (trainer.prompts * lengths.prompt + batch * response)
    flops = {
        "sample": trainer.steps * sampled,
        "score": trainer.steps * passes * batch * length * forward,
        "update": trainer.steps * (3 + again) * batch * length * forward,
    }
    checks = validations(trainer.steps, trainer.validate_every)
    asked = checks * int(getattr(config.task, "validation", 0) or 0)
    validated = asked * trainer.validation_samples
    checked = lengths.fill * config.task.longest_response(config.validation.max_new_tokens)
    flops["sample"] += (asked * lengths.prompt + validated * checked) * size.forward_flops(lengths.prompt + checked)
    trained = _trained(config, size)
    return Work(
        samples=trainer.steps * batch + validated,
        tokens=trainer.steps * batch * response + validated * checked,
        updates=trainer.steps * trainer.updates_per_batch,
        flops=flops,
        memory=_training_memory(config, size, length),
        disk=FLOAT32 * size.parameters,
        checkpoint=3.0 * FLOAT32 * trained if 0 < trainer.checkpoint_every < trainer.steps else 0.0,
        devices=trainer.devices,
    )


def validations(steps: int, every: int) -> int:
    """How often a job of ``steps`` validates: every so many steps, and at the end."""
    return 0 if not every else steps // every + (steps % every > 0)


def evaluation(config: EvaluateConfig, size: Size, lengths: Lengths, problems: int) -> Work:
    """One model on all problems of the set."""
    answers = problems * (config.evaluation.samples + config.evaluation.greedy)
    response = lengths.fill * config.task.longest_response(config.evaluation.max_new_tokens)
    tokens = problems * lengths.prompt + answers * response
    weights = size.parameters * (FLOAT32 + _copy_bytes(config.rollout))
    at_once = min(answers, config.evaluation.batch_size)
    cache = _cache(config.rollout, size, at_once * (lengths.prompt + response))
    return Work(
        samples=answers,
        tokens=answers * response,
        flops={"sample": tokens * size.forward_flops(lengths.prompt + response)},
        memory=weights + cache,
    )


def _trained(config: TrainConfig, size: Size) -> int:
    """Parameters with gradients."""
    lora = config.model.lora
    return size.parameters if lora is None else size.adapter(lora.rank)


def _training_memory(config: TrainConfig, size: Size, length: float) -> float:
    """Of one device: the largest of an update's, a rollout's, and of several devices that of a probe, for which each
    reads the initial model. All hold its share of the weights and of the optimizer's moments."""
    trainer, rollout, devices = config.trainer, config.rollout, config.trainer.devices
    trained, narrow = _trained(config, size), trainer.precision == "bfloat16"
    whole = size.parameters * (BFLOAT16 if narrow and devices == 1 else FLOAT32)
    masters = FLOAT32 * trained if narrow and devices == 1 else 0
    held: float = whole + masters + 2 * FLOAT32 * trained
    if trainer.kl > 0 and config.model.lora is None:
        held += whole
    held /= devices
    sequences = trainer.prompts * trainer.samples // trainer.updates_per_batch
    tokens = trainer.micro_tokens or min(trainer.micro_batch or sequences, math.ceil(sequences / devices)) * length
    chunk = min(trainer.logits_chunk or tokens, tokens)
    update = held + FLOAT32 * trained / devices
    update += size.activation_bytes(tokens, checkpointing=config.model.gradient_checkpointing)
    update += _LOGIT_COPIES * FLOAT32 * chunk * size.vocabulary
    if devices > 1:
        update += size.put_together * 2 * (BFLOAT16 if narrow else FLOAT32)  # with their gradients
    engine = size.parameters * _copy_bytes(rollout, borrows=devices == 1)
    at_once = min(math.ceil(trainer.prompts * trainer.samples / devices), rollout.local_batch)
    sampling = held + engine + _cache(rollout, size, at_once * length)
    asleep = getattr(rollout, "sleep_level", 0) > 0
    awake = 0 if asleep else engine + float(getattr(rollout, "kv_cache_gib", 0) or 0) * GIB
    probe = held + FLOAT32 * size.parameters if devices > 1 and trainer.probe_every else 0.0
    return max(sampling, update + awake, probe + awake)


def _copy_bytes(rollout: Any, *, borrows: bool = True) -> int:
    """A parameter's, in the engine's own copy; the HF engine ``borrows`` float32 weights as they are, of a model that
    is not in shards."""
    borrowed = borrows and rollout.engine == "hf" and rollout.dtype == "float32" and not rollout.weight_noise
    return 0 if borrowed else _DTYPE_BYTES.get(rollout.dtype, BFLOAT16)


def _cache(rollout: Any, size: Size, tokens: float) -> float:
    """Keys and values while sampling: what the engine was given, or what all sequences of a batch need."""
    given = getattr(rollout, "kv_cache_gib", None)
    return float(given) * GIB if given else size.cache_bytes(tokens)


def problems_of(config: EvaluateConfig, known: Mapping[str, int], data: Path) -> int:
    """Problems of the evaluation set: of the prepared data where it is there, of the configuration, or as ``known``.

    Raises UserError for a set whose size nothing says.
    """
    name, task = config.evaluation.set, config.task
    summary = data / "summary.json"
    if summary.is_file():
        return _prepared(summary, name)
    own = getattr(task, name, None)
    if isinstance(own, int):
        return own
    parts = list(own) if name == "test" and isinstance(own, dict) else [name]
    missing = [part for part in parts if part not in known]
    if missing:
        raise UserError(
            f"plan: nothing says how many problems the set '{missing[0]}' has: prepare the data first, or give"
            f" 'problems={{{missing[0]}: …}}'"
        )
    return sum(known[part] for part in parts)


def _prepared(summary: Path, name: str) -> int:
    """What `alp prepare` counted. Raises UserError for a file that does not say."""
    plain = read_json("plan", summary)
    try:
        return int(plain[name]["problems"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"plan: {summary} does not say how many problems the set '{name}' has") from None
