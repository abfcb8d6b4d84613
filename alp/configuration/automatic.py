"""Choices that the machine makes: ``rollout=auto`` (and ``validation=auto``) is vLLM on a GPU where it is installed,
else the HF engine. In training that vLLM lets go of the GPU's memory between rollouts, unless ``sleep_level`` is set.
Composed configurations, and so results, name what was taken."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

GROUPS = ("rollout", "validation")
_DRIVER = Path("/proc/driver/nvidia/version")


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded; no library is asked, which would take seconds or hold the device."""
    return _DRIVER.exists()


def engine_here() -> str:
    """The faster engine of those that this machine has."""
    return "vllm" if has_gpu() and find_spec("vllm") is not None else "hf"


def settled(words: Sequence[str], verb: str) -> list[str]:
    """Override words of ``verb`` with every ``auto`` replaced by what it stands for here."""
    asked = {f"{group}=auto": group for group in GROUPS}
    chosen = [f"{asked[word]}={engine_here()}" if word in asked else word for word in words]
    if verb != "train" or engine_here() != "vllm":
        return chosen
    keys = {word.partition("=")[0] for word in words}
    sleeping = [f"{group}.sleep_level=2" for word, group in asked.items() if word in words]
    return [*chosen, *(word for word in sleeping if word.partition("=")[0] not in keys)]
