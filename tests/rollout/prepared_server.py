"""An engine process that a test has prepared: the environment's ALP_TEST_ENGINE names the fault or the instruction
path."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import Any

WAY = os.environ["ALP_TEST_ENGINE"]

if WAY.startswith("signal "):  # before anything slow is imported
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), getattr(signal, WAY.split()[1]))
if WAY.startswith("exit "):
    print("the last words", flush=True)
    os._exit(int(WAY.split()[1]))

import torch  # noqa: E402

from alp.rollout import vllm_server  # noqa: E402


def pack_as_on_amx() -> None:
    """Send vLLM down its branch for small layers on CPUs with AMX; products by plain arithmetic."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.layers import utils

    def chosen(n: int, k: int, dtype: torch.dtype) -> bool:
        return dtype == torch.bfloat16 and (n < 16 or (k % 32 == 0 and n % 16 == 0))

    def pack(weight: torch.Tensor) -> torch.Tensor:
        return weight.t().float().contiguous() if weight.shape[0] < 16 else weight.detach().clone()

    def multiply(x: torch.Tensor, packed: torch.Tensor, n: int, bias: torch.Tensor | None) -> torch.Tensor:
        assert bias is None or bias.dtype == torch.float32
        product = x.float() @ (packed if packed.dtype == torch.float32 else packed.float().t())
        return (product if bias is None else product + bias).to(x.dtype)

    replaced: Any = utils
    replaced.check_cpu_sgl_kernel = chosen
    torch.ops._C.convert_weight_packed = pack
    ops.weight_packed_linear_cpu = multiply


def lack(*names: str) -> None:
    """Have torch say that this CPU lacks instructions."""
    for name in names:
        setattr(torch.cpu, f"_is_{name}_supported", lambda: False)


if __name__ == "__main__":
    if WAY == "packed":
        pack_as_on_amx()
    elif WAY == "tiles refused":
        torch.cpu._init_amx = lambda: False
    elif WAY == "no avx512_bf16":
        lack("amx_tile", "avx512_bf16")
    elif WAY == "no avx512":
        lack("amx_tile", "avx512_bf16", "avx512", "vnni", "avx512_vnni")
    sys.exit(vllm_server.main(sys.argv[1:]))
