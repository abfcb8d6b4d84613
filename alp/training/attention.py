"""Attention on a GPU whose backward gives the same bits twice (``trainer.deterministic_attention``).

In the mode that all jobs run in (``set_deterministic_debug_mode("warn")``) torch only warns of attention:
its choice may fall on cuDNN's, whose backward is not deterministic, and the backward of the flash and the
memory-efficient kernels is their deterministic one in strict mode alone (``check_cudnn_deterministic`` in
aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, and attention_backward.cu beside it).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of scaled_dot_product_attention, as in torch.backends.cuda.
KERNELS = ("flash", "mem_efficient", "math", "cudnn")


def choose(*, deterministic: bool) -> None:
    """Keep cuDNN's kernel out, or let it in as torch does. For the whole process: scoring and updates must take the
    same kernel, or an on-policy ratio is not 1."""
    torch.backends.cuda.enable_cudnn_sdp(not deterministic)


def allowed() -> list[str]:
    """The kernels that attention may take in this process."""
    return [name for name in KERNELS if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]


@contextmanager
def strict(enabled: bool) -> Iterator[None]:
    """Inside, an operation without a deterministic kernel is an error. For a backward: forwards with operations that
    have none (a cumulative sum) give the same bits in practice."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if enabled:
        torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        yield
    finally:
        if enabled:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
