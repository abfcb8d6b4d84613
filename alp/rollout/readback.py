"""What an engine holds after a weight sync, against what the training model holds: exact samples of every parameter, by
name.

A linear weight is read back as some of its columns, W e_j: one product with unit vectors, exact in the engine's dtype
even where the engine has packed the matrix and thrown the original away. An embedding is read as some of its rows, a
vector whole. An optimizer step changes nearly every element, a lost or mixed-up tensor all of them, so a sample of each
is enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SAMPLES = 16  # columns or rows of each matrix
# Fused projections that engines store in an order of their own: their columns cannot be compared name by name.
_REARRANGED = ("query_key_value", "c_attn", "Wqkv")


def sampled_indices(width: int) -> Tensor:
    """At most SAMPLES indices spread over ``range(width)``, both ends included; int64."""
    return torch.linspace(0, width - 1, min(width, SAMPLES), dtype=torch.float64).round().long()


def layout(model: Any) -> dict[str, str]:
    """How each parameter of a Hugging Face model can be read back: name -> ``columns``, ``rows`` or ``vector``.

    Tied names stand for themselves (an engine may hold two copies of what is one tensor here). Parameters that are
    neither stay out.
    """
    kinds: dict[str, str] = {}
    for prefix, module in model.named_modules():
        for attribute, value in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            if any(part in name for part in _REARRANGED):
                continue
            if value.dim() == 1:
                kinds[name] = "vector"
            elif isinstance(module, torch.nn.Linear):
                kinds[name] = "columns"
            elif isinstance(module, torch.nn.Embedding):
                kinds[name] = "rows"
    return kinds


def aliases(model: Any) -> dict[str, str]:
    """Names under which a parameter stands a second time (tied embeddings) -> its first name."""
    first_names: dict[int, str] = {}
    second_names = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if id(value) in first_names:
            second_names[name] = first_names[id(value)]
        first_names.setdefault(id(value), name)
    return second_names


def sample(value: Tensor, kind: str) -> Tensor:
    """What is read back of a parameter: columns (out, k), rows (k, width) or the whole vector."""
    if kind == "columns":
        return value[:, sampled_indices(value.shape[1])]
    return value[sampled_indices(value.shape[0])] if kind == "rows" else value


def differing(
    weights: dict[str, Tensor], held: dict[str, Tensor], kinds: dict[str, str], tolerance: float
) -> list[str]:
    """Names whose samples differ: by a bit at tolerance 0, else by that share of the largest element. A name not read
    back is left out."""
    names = []
    for name in sorted(held.keys() & kinds.keys()):
        sent, served = sample(weights[name], kinds[name]), held[name]
        if sent.shape != served.shape:
            names.append(name)
        elif tolerance == 0.0:
            names += [] if torch.equal(sent, served) else [name]
        else:
            gap, size = (sent.float() - served.float()).abs().max(), sent.float().abs().max()
            names += [name] if float(gap) > tolerance * float(size) else []
    return names
