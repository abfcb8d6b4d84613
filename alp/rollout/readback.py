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


def places(width: int) -> Tensor:
    """At most SAMPLES indices spread over ``range(width)``, both ends included; int64."""
    return torch.linspace(0, width - 1, min(width, SAMPLES), dtype=torch.float64).round().long()


def layout(model: Any) -> dict[str, str]:
    """How each parameter of a Hugging Face model can be read back: name -> ``columns``, ``rows`` or ``vector``.

    Tied names stand for themselves (an engine may hold two copies of what is one tensor here). Parameters that are
    neither stay out.
    """
    found: dict[str, str] = {}
    for prefix, module in model.named_modules():
        for own, value in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{own}" if prefix else own
            if any(part in name for part in _REARRANGED):
                continue
            if value.dim() == 1:
                found[name] = "vector"
            elif isinstance(module, torch.nn.Linear):
                found[name] = "columns"
            elif isinstance(module, torch.nn.Embedding):
                found[name] = "rows"
    return found


def sample(value: Tensor, kind: str) -> Tensor:
    """What is read back of a parameter: columns (out, k), rows (k, width) or the whole vector."""
    if kind == "columns":
        return value[:, places(value.shape[1])]
    return value[places(value.shape[0])] if kind == "rows" else value


def differing(
    weights: dict[str, Tensor], held: dict[str, Tensor], kinds: dict[str, str], tolerance: float
) -> list[str]:
    """Names whose samples differ: by a bit at tolerance 0, else by that share of the largest element. A name not read
    back is left out."""
    found = []
    for name in sorted(held.keys() & kinds.keys()):
        wanted, got = sample(weights[name], kinds[name]), held[name]
        if wanted.shape != got.shape:
            found.append(name)
        elif tolerance == 0.0:
            found += [] if torch.equal(wanted, got) else [name]
        else:
            gap, size = (wanted.float() - got.float()).abs().max(), wanted.float().abs().max()
            found += [name] if float(gap) > tolerance * float(size) else []
    return found
