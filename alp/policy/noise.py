"""The sum of a hidden state and its noise, as one step of autograd that keeps no noise (specification §2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .streams import normals


class AddNoise(torch.autograd.Function):
    """hidden + exp(log_std) ε, with ε drawn again in the backward: ∂loss/∂s = σ Σ(g ⊙ ε)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, log_std: Tensor, keys: Tensor, valid: Tensor, saw_backward: Callable[[], None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(log_std, keys)
        ctx.saw_backward = saw_backward
        flat = hidden.reshape(-1, hidden.shape[-1])
        whole = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)  # no view: models may write into it
        result, std = whole.view(flat.shape), log_std.exp()
        norms = log_std.new_empty(2, flat.shape[0])
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, drawn in _draws(flat, keys):
                before, noise = flat[rows].to(log_std.dtype), drawn.to(log_std.dtype)
                if result.dtype is log_std.dtype:
                    torch.addcmul(before, noise, std, out=result[rows])
                else:
                    result[rows] = torch.addcmul(before, noise, std)
                torch.sub(result[rows], before, out=noise)  # what was really added, after rounding
                torch.linalg.vector_norm(noise, dim=-1, out=norms[0, rows])
                torch.linalg.vector_norm(before, dim=-1, out=norms[1, rows])
        count = valid.sum().clamp(min=1) * flat.shape[1]
        squares = torch.where(valid, norms.square_(), norms.new_zeros(())).sum(-1) / count
        added, present = squares.unbind()
        ctx.mark_non_differentiable(added, present)
        return whole, added, present

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        log_std, keys = ctx.saved_tensors
        ctx.saw_backward()
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None
        flat = grad.reshape(-1, grad.shape[-1])
        # One sum per token and the rest in float64: the total then hardly depends on how tokens are split into batches.
        dots = torch.empty(flat.shape[0], dtype=torch.float64, device=grad.device)
        with torch.autocast(grad.device.type, enabled=False):
            for rows, drawn in _draws(flat, keys):
                dots[rows] = torch.linalg.vecdot(flat[rows].to(log_std.dtype), drawn.to(log_std.dtype)).double()
        return grad, (dots.sum() * log_std.double().exp()).to(log_std.dtype), None, None, None


def _draws(flat: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows of ``flat`` (rows, channels) with the noise of each; the noise lives until the next."""
    source = normals(flat.shape[1], flat.shape[0], flat.device)
    for start in range(0, flat.shape[0], source.rows):
        rows = slice(start, start + source.rows)
        yield rows, source.draw(keys[rows])
