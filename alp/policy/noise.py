"""The sum of a hidden state and its noise, as one step of autograd (specification §2).

Noise is a function of its names, so the backward can draw it again. On a GPU it always does: two Triton kernels where
Triton is, elementwise operations of torch where it is not. On a CPU a draw is what the noise costs, so as long as a
fixed 64 MB of a thread last, the noise of the forward is kept for the backward; the numbers are the same either way.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .streams import RowNames, normals

KEPT_BYTES = 1 << 26  # of noise that a thread on a CPU may keep from forward to backward, all layers together
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_logger = logging.getLogger(__name__)
_local = threading.local()


@functools.cache
def device_kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels if they run on ``device``; None, with a warning where it is a GPU, if torch has to do it."""
    if device.type != "cuda":
        return None
    try:
        from . import kernels

        kernels.trial(device)
    except Exception as error:  # of Triton's own kinds, of the compilers that it starts, of the driver
        _logger.warning("noise on %s without Triton, as a dozen slow kernels a layer: %s", device, error)
        return None
    return kernels


class AddNoise(torch.autograd.Function):
    """hidden + exp(log_std) ε, with the same ε in the backward: ∂loss/∂s = σ Σ(g ⊙ ε)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        log_std: Tensor,
        names: RowNames,
        valid: Tensor,
        saw_backward: Callable[[], None],
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum, and the mean squares over ``valid`` (rows,) of what was really added and of ``hidden``.

        ``hidden`` (batch, tokens, channels); ``log_std`` one number, in the wider of its dtype and float32; ``keep``
        says that a backward may follow.
        """
        ctx.names, ctx.saw_backward, ctx.kept = names, saw_backward, None
        ctx.kernels = device_kernels(hidden.device) if hidden.dtype in _KERNEL_DTYPES else None
        flat = hidden.reshape(-1, hidden.shape[-1])
        whole = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)  # no view: models may write into it
        result, std = whole.view(flat.shape), log_std.exp()
        with torch.autocast(hidden.device.type, enabled=False):
            if ctx.kernels is not None:
                ctx.save_for_backward(log_std)
                squares = ctx.kernels.add(flat.contiguous(), std, names, valid, result)
            else:
                keys = names.keys()
                ctx.save_for_backward(log_std, keys)
                if keep and ctx.needs_input_grad[1] and hidden.device.type == "cpu":
                    ctx.kept = _room(flat.shape)
                squares = _add(flat, std, keys, result, ctx.kept)
                squares = torch.where(valid, squares, squares.new_zeros(()))
        count = valid.sum().clamp(min=1) * flat.shape[1]
        added, present = (squares.sum(-1) / count).unbind()
        ctx.mark_non_differentiable(added, present)
        return whole, added, present

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        log_std, *keys = ctx.saved_tensors
        ctx.saw_backward()
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None, None
        flat = grad.reshape(-1, grad.shape[-1])
        kept, ctx.kept = ctx.kept, None  # a second backward of the same graph draws
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.kernels is not None:
                dots = ctx.kernels.dots(flat.contiguous(), ctx.names)
            else:
                dots = _dots(flat, log_std.dtype, keys[0], kept)
        # One sum per token and the rest in float64: the total then hardly depends on how tokens are split into batches.
        total = dots.sum(dtype=torch.float64) * log_std.double().exp()
        return grad, total.to(log_std.dtype), None, None, None, None


def _add(flat: Tensor, std: Tensor, keys: Tensor, result: Tensor, kept: Tensor | None) -> Tensor:
    """Writes ``flat`` + ``std`` ε into ``result``, ε into ``kept``; returns the sums of squares (2, rows) of what was
    really added and of ``flat``."""
    norms = std.new_empty(2, flat.shape[0])
    for rows, drawn in _draws(flat, keys):
        if kept is not None:
            kept[rows] = drawn
        before, noise = flat[rows].to(std.dtype), drawn.to(std.dtype)
        if result.dtype is std.dtype:
            torch.addcmul(before, noise, std, out=result[rows])
        else:
            result[rows] = torch.addcmul(before, noise, std)
        torch.sub(result[rows], before, out=noise)  # what was really added, after rounding
        torch.linalg.vector_norm(noise, dim=-1, out=norms[0, rows])
        torch.linalg.vector_norm(before, dim=-1, out=norms[1, rows])
    return norms.square_()


def _dots(flat: Tensor, dtype: torch.dtype, keys: Tensor, kept: Tensor | None) -> Tensor:
    """(rows,) in ``dtype``: the dot products of the rows of ``flat`` with their noise."""
    dots = torch.empty(flat.shape[0], dtype=dtype, device=flat.device)
    for rows, noise in _draws(flat, keys, kept):
        dots[rows] = torch.linalg.vecdot(flat[rows].to(dtype), noise.to(dtype))
    return dots


def _draws(flat: Tensor, keys: Tensor, kept: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows of ``flat`` (rows, channels) with the noise of each, which is drawn, and then lives until the
    next, or is in ``kept``."""
    source = normals(flat.shape[1], flat.shape[0], flat.device)
    for start in range(0, flat.shape[0], source.rows):
        rows = slice(start, start + source.rows)
        yield rows, source.draw(keys[rows]) if kept is None else kept[rows]


def _room(shape: torch.Size) -> Tensor | None:
    """Memory (rows, channels) for noise to keep, unless what the thread keeps would exceed ``KEPT_BYTES``."""
    alive = [tensor for reference in getattr(_local, "kept", []) if (tensor := reference()) is not None]
    if 4 * shape.numel() + sum(tensor.nbytes for tensor in alive) > KEPT_BYTES:
        return None
    kept = torch.empty(shape, dtype=torch.float32)
    _local.kept = [weakref.ref(tensor) for tensor in (*alive, kept)]
    return kept
