"""What a job of the workflow needs, from its configuration: threads, memory, minutes, GPUs.

Estimates for the scheduler of a cluster; nothing that is computed depends on them. No torch.
"""

from __future__ import annotations

import math
from typing import Any

from alp.cluster import machines
from alp.configuration.model_schema import Model

_MINUTES = {"prepare": 60, "fetch": 120, "pretrain": 60, "train": 240, "evaluate": 120}  # of a first attempt
_ANALYSIS_MINUTES = 30
_MARGIN = 1.5  # times what a plan expects
_PROCESS_MB = 2000  # Python, torch and the data of a job
_ANALYSIS_MB = 2000
_FLOAT32_MB = 4 / 2**20  # MiB a parameter
_VOCABULARY = 152_000  # tokens of the larger language models; the embedded model has a few characters
_EMBEDDED = 10_000_000  # parameters; what is taught here has fewer
_COPIES = {  # float32 models held at the same time
    "prepare": 0,
    "fetch": 3,
    "pretrain": 4,  # weights, gradients, two moments of AdamW
    "train": 8,  # the same, the reference, and copies of the engine, the validation and a checkpoint being written
    "evaluate": 3,
}
_OF_A_RANK = 2  # float32 models beyond its share, of each rank but the first


def nodes(config: Any, each: int | None) -> int:
    """Machines of a training job, where one has ``each`` devices. Raises UserError where that does not divide."""
    return machines(config.trainer.devices, each)


def threads(verb: str, config: Any, nodes: int = 1) -> int:
    """Threads that the configuration fixes, of all ranks on one of the ``nodes``; a rollout engine of its own computes
    while the trainer waits."""
    if verb == "train":
        return int(config.trainer.devices // nodes * max(config.trainer.threads, getattr(config.rollout, "threads", 1)))
    section = {"pretrain": "pretrain", "evaluate": "evaluation"}.get(verb)
    return int(getattr(config, section).threads) if section else 1


def memory_mb(verb: str, config: Any, attempt: int = 1, nodes: int = 1) -> int:
    """MiB of main memory on each of the ``nodes``; half as much again with every further attempt."""
    if verb not in _COPIES:
        return _ANALYSIS_MB * attempt
    copies, ranks = _COPIES[verb], int(config.trainer.devices) // nodes if verb == "train" else 1
    # Each rank has an engine's copy, and reads the initial model for a probe; the rest is there once.
    copies += (ranks - 1) * _OF_A_RANK
    weights = copies * _parameters(config.model) * _FLOAT32_MB if copies else 0.0
    return int((ranks * _PROCESS_MB + weights) * (1 + (attempt - 1) / 2))


def minutes(verb: str, attempt: int = 1, planned: float = 0.0) -> int:
    """Minutes until a scheduler may end the job, more where ``planned`` minutes do not fit into them; a training job
    that was ended goes on from its checkpoint, other work is lost."""
    return max(_MINUTES.get(verb, _ANALYSIS_MINUTES), math.ceil(_MARGIN * planned)) * attempt


def gpus(verb: str, config: Any) -> int:
    """GPUs that the job asks for: one for each of its devices, or of an engine that runs on a GPU alone.

    ``device: auto`` asks for one where a language model is loaded; the embedded model is as fast on a CPU.
    """
    if verb not in ("train", "evaluate"):
        return 0
    device = (config.trainer if verb == "train" else config.evaluation).device
    engine = getattr(config, "rollout", None)
    of_engine = int(getattr(engine, "tensor_parallel", 1))
    needs_one = getattr(engine, "quantization", None) is not None or getattr(engine, "sleep_level", 0) > 0
    if device == "cuda" or needs_one or (device == "auto" and _is_language_model(config.model)):
        return of_engine * (int(config.trainer.devices) if verb == "train" else 1)
    return 0


def _is_language_model(model: Model) -> bool:
    return model.source is not None or _in_blocks(model) > _EMBEDDED


def _in_blocks(model: Model) -> int:
    """Parameters of the layers, without the vocabulary's."""
    return model.layers * (4 * model.hidden**2 + 3 * model.hidden * model.intermediate)


def _parameters(model: Model) -> int:
    """About how many parameters a transformer of these sizes has."""
    return _in_blocks(model) + (2 * _VOCABULARY * model.hidden if _is_language_model(model) else 0)
