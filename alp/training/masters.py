"""Training in bfloat16 (``trainer.precision: bfloat16``): the model holds and computes in it, and float32 copies of its
weights are what the optimizer steps.

An update is far smaller than bfloat16's spacing (2^-8 of a weight) and would be lost in it; so would small
micro-batches in a sum of gradients. Both are kept in float32 here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def round_weights(model: Any) -> None:
    """Parameters to bfloat16 in place, tied ones still tied. Buffers stay: rotary frequencies need float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


class Masters:
    """The float32 weights of ``model``, which is rounded to bfloat16 here; made while it is still float32."""

    def __init__(self, model: Any) -> None:
        self._rounded = dict(model.named_parameters())  # a tied weight once
        self.weights = {
            name: nn.Parameter(value.detach().clone().float(), requires_grad=value.requires_grad)
            for name, value in self._rounded.items()
        }
        round_weights(model)

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Add the model's gradients to the masters', and leave none in the model; after each backward."""
        for name, parameter in self._rounded.items():
            if parameter.grad is None:
                continue
            master, gradient = self.weights[name], parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    @torch.no_grad()
    def copy_back(self) -> None:
        """The masters, rounded, into the model; after each step of the optimizer."""
        for name, parameter in self._rounded.items():
            parameter.copy_(self.weights[name])

    def state(self) -> dict[str, Tensor]:
        """The masters under the model's names."""
        return {name: weight.detach() for name, weight in self.weights.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``, whatever else stands there; the model follows."""
        for name, weight in self.weights.items():
            weight.copy_(state[name])
        self.copy_back()

    @torch.no_grad()
    def widen(self) -> None:
        """Give the model the masters themselves, in float32: at the end, for saving."""
        for name, parameter in self._rounded.items():
            parameter.data = self.weights[name].data
