"""The kind of processor that numbers come from, by what decides how sums are rounded: whose it is and which
instructions torch takes. Neither model nor host."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

_VENDORS = {  # of /proc/cpuinfo: x86's vendor_id, ARM's implementer
    "AuthenticAMD": "amd",
    "GenuineIntel": "intel",
    "HygonGenuine": "hygon",
    "0x41": "arm",
    "0x48": "huawei",
    "0x61": "apple",
    "0xc0": "ampere",
}
# What kernels of matrices choose by, in torch's words (torch.cpu.get_capabilities).
_DECIDING = (
    *("avx2", "fma3", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "neon", "fp16_arith", "bf16", "i8mm", "sve", "sve2"),
)


def processor() -> dict[str, Any]:
    """``kind`` names it, as in ``amd-avx512-bf16`` or ``intel-avx2``: the vendor, the instructions that torch's own
    kernels take (``ATEN_CPU_CAPABILITY`` may hold them down), and whether its libraries have matrix products of bf16
    for that (``amx``, else ``bf16``). ``vendor``, ``capability`` and ``instructions`` are what it follows from."""
    import torch  # seconds, which nobody else here waits for

    capability = torch.backends.cpu.get_cpu_capability()
    present = torch.cpu.get_capabilities()
    instructions = sorted(name for name in _DECIDING if present.get(name))
    vendor = _vendor(Path("/proc/cpuinfo"))
    return {
        "kind": kind_of(vendor, capability, instructions),
        "vendor": vendor,
        "capability": capability,
        "instructions": instructions,
    }


def kind_of(vendor: str, capability: str, instructions: list[str]) -> str:
    """The name that a reference's file carries."""
    parts = [vendor, capability.lower().replace(" ", "_")]
    if capability == "AVX512":
        parts += ["amx"] if "amx_tile" in instructions else ["bf16"] if "avx512_bf16" in instructions else []
    return "-".join(parts)


def _vendor(cpuinfo: Path) -> str:
    """Of the first processor that Linux lists; elsewhere the architecture."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    for name, _, value in (line.partition(":") for line in lines):
        if name.strip() in ("vendor_id", "CPU implementer"):
            said = value.strip()
            return _VENDORS.get(said) or "".join(char for char in said.lower() if char.isalnum()) or "unknown"
    return platform.machine().lower() or "unknown"
