"""The sum of a hidden state and its noise, as one step of autograd (docs/method.md, Perturbation).

Of size σ, or relative to what it is added to: of size c · RMS of the row, where the RMS counts as a constant.

Noise is a function of its names, so the backward can draw it again. On a GPU it always does: two Triton kernels where
Triton is, elementwise operations of torch where it is not. On a CPU a draw is what the noise costs, so as long as a
fixed 64 MB of a thread last, the noise of the forward is kept for the backward; the numbers are the same either way.
"""

from __future__ import annotations

import functools
import logging
import math
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
    """hidden + σ ε, with the same ε in the backward: the gradient of ``hidden`` is the identity, and ∂loss/∂s =
    Σ_t σ_t (g_t · ε_t). σ_t is exp(log_std), or exp(log_std) · RMS(hidden_t) where it is ``relative``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        log_std: Tensor,
        names: RowNames,
        valid: Tensor,
        saw_backward: Callable[[], None],
        keep: bool,
        relative: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sum; the mean squares over ``valid`` (rows,) of what was really added and of ``hidden``; the mean of σ_t.

        ``hidden`` (batch, tokens, channels); ``log_std`` one number, in the wider of its dtype and float32, or in the
        dtype of a half-precision ``hidden``: then σ_t, ε, their product and the sum are each rounded to that; ``keep``
        says that a backward may follow.
        """
        ctx.names, ctx.saw_backward, ctx.kept = names, saw_backward, None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        ctx.narrow = hidden.dtype if log_std.dtype is not wide else None
        ctx.kernels = device_kernels(hidden.device) if hidden.dtype in _KERNEL_DTYPES else None
        flat = hidden.reshape(-1, hidden.shape[-1])
        whole = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)  # no view: models may write into it
        result, std = whole.view(flat.shape), log_std.exp().to(wide)
        sizes = std.new_empty(flat.shape[0]) if relative else None
        with torch.autocast(hidden.device.type, enabled=False):
            if ctx.kernels is not None:
                ctx.save_for_backward(log_std, sizes)
                squares = ctx.kernels.add(
                    flat.contiguous(), std, names, valid, result, sizes, narrow=ctx.narrow is not None
                )
            else:
                keys = names.keys()
                ctx.save_for_backward(log_std, sizes, keys)
                if keep and ctx.needs_input_grad[1] and hidden.device.type == "cpu":
                    ctx.kept = _room(flat.shape)
                squares = _add(flat, std, keys, result, ctx.kept, sizes, ctx.narrow)
                squares = torch.where(valid, squares, squares.new_zeros(()))
        count = valid.sum().clamp(min=1)
        added, present = (squares.sum(-1) / (count * flat.shape[1])).unbind()
        mean = std if sizes is None else torch.where(valid, sizes, sizes.new_zeros(())).sum() / count
        ctx.mark_non_differentiable(added, present, mean)
        return whole, added, present, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        log_std, sizes, *keys = ctx.saved_tensors
        ctx.saw_backward()
        if not ctx.needs_input_grad[1]:
            return grad, *[None] * 6
        flat = grad.reshape(-1, grad.shape[-1])
        kept, ctx.kept = ctx.kept, None  # a second backward of the same graph draws
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.kernels is not None:
                dots = ctx.kernels.dots(flat.contiguous(), ctx.names, narrow=ctx.narrow is not None)
            else:
                wide = torch.promote_types(log_std.dtype, torch.float32)
                dots = _dots(flat, wide, keys[0], kept, ctx.narrow)
        # One sum per token and the rest in float64: the total then hardly depends on how tokens are split into batches.
        if sizes is not None:
            # A token that the loss does not reach adds nothing, whatever its hidden state (padding may hold NaN).
            total = torch.where(dots == 0, 0.0, dots.double() * sizes.double()).sum()
        else:
            scale = log_std.double().exp() if ctx.narrow is None else log_std.exp().double()
            total = dots.sum(dtype=torch.float64) * scale
        return grad, total.to(log_std.dtype), *[None] * 5


def _add(
    flat: Tensor,
    std: Tensor,
    keys: Tensor,
    result: Tensor,
    kept: Tensor | None,
    sizes: Tensor | None,
    narrow: torch.dtype | None,
) -> Tensor:
    """Writes ``flat`` + ``std`` ε into ``result``, ε into ``kept``; returns the sums of squares (2, rows) of what was
    really added and of ``flat``.

    With ``sizes`` (rows,) the noise is relative, and σ_t is written there. With ``narrow`` each step is rounded to that
    dtype.
    """
    norms = std.new_empty(2, flat.shape[0])
    for rows, drawn in _draws(flat, keys):
        if kept is not None:
            kept[rows] = drawn
        before, noise, size = flat[rows].to(std.dtype), drawn.to(std.dtype), std
        torch.linalg.vector_norm(before, dim=-1, out=norms[1, rows])
        if sizes is not None:
            size = std * (norms[1, rows] / math.sqrt(flat.shape[1]))
            if narrow is not None:
                size = size.to(narrow).to(std.dtype)
            sizes[rows] = size
            size = size.unsqueeze(-1)
        if narrow is not None:
            torch.add(flat[rows], drawn.to(narrow) * size.to(narrow), out=result[rows])
        elif result.dtype is std.dtype:
            torch.addcmul(before, noise, size, out=result[rows])
        else:
            result[rows] = torch.addcmul(before, noise, size)
        torch.sub(result[rows], before, out=noise)  # what was really added, after rounding
        torch.linalg.vector_norm(noise, dim=-1, out=norms[0, rows])
    return norms.square_()


def _dots(
    flat: Tensor, dtype: torch.dtype, keys: Tensor, kept: Tensor | None, narrow: torch.dtype | None = None
) -> Tensor:
    """(rows,) in ``dtype``: the dot products of the rows of ``flat`` with their noise, as ``narrow`` rounded it."""
    dots = torch.empty(flat.shape[0], dtype=dtype, device=flat.device)
    for rows, noise in _draws(flat, keys, kept):
        rounded = noise if narrow is None else noise.to(narrow)
        dots[rows] = torch.linalg.vecdot(flat[rows].to(dtype), rounded.to(dtype))
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
