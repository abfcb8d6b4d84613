"""Which modules of a decoder-only Hugging Face model are perturbed (specification §2)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import nn

LOGITS = "logits"
NAMED = ("all", "early", "middle", "late")
_BAND = re.compile(r"^(-?\d+):(-?\d+)$")
_BAND_SHARE = 0.2


def resolve_layers(layers: str | Sequence[int], depth: int) -> list[int]:
    """Indices of the layers that a selection means in a model of ``depth`` decoder layers.

    A string is a name or ``start:end``; a tuple of two is the band [start, end); a list holds indices. Raises ValueError
    for the unknown, the empty, the out-of-range and the repeated.
    """
    if isinstance(layers, str) and layers in NAMED:
        count = math.ceil(_BAND_SHARE * depth)
        start = {"all": 0, "early": 0, "middle": (depth - count) // 2, "late": depth - count}[layers]
        return list(range(start, depth if layers == "all" else start + count))
    if isinstance(layers, str):
        match = _BAND.match(layers)
        if match is None:
            raise ValueError(f"layers: unknown '{layers}', choose from {', '.join((*NAMED, LOGITS))}, start:end, or a list")
        layers = (int(match[1]), int(match[2]))
    if isinstance(layers, tuple) and len(layers) == 2:
        start, end = layers
        if not 0 <= start < end <= depth:
            raise ValueError(f"layers: band {start}:{end} is empty or outside the model's {depth} layers (0:{depth})")
        return list(range(start, end))
    if not all(isinstance(index, int) for index in layers):
        raise ValueError(f"layers: a list of indices expected, got {list(layers)}")
    chosen = list(layers)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= index < depth for index in chosen):
        raise ValueError(f"layers: {chosen} must name distinct layers of 0..{depth - 1}, at least one")
    return sorted(chosen)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal language model, in order. Raises ValueError for anything else."""
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        raise ValueError(f"model: {name} is not a Hugging Face model")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model: {name} is an encoder-decoder; only decoder-only causal language models can be perturbed")
    causal = name.endswith(("ForCausalLM", "LMHeadModel"))
    if not causal or (getattr(config, "is_decoder", None) is False and _bidirectional(model)):
        raise ValueError(f"model: {name} is no decoder-only causal language model")
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and "expert" not in path
    ]
    found = [entry for entry in found if entry[0].count(".") == min(path.count(".") for path, _ in found)]
    if len(found) != 1:
        places = ", ".join(path for path, _ in found) or "none"
        raise ValueError(f"model: cannot tell the {depth} decoder layers of {name} (candidates: {places})")
    return found[0][1]


def _bidirectional(model: nn.Module) -> bool:
    """Encoders that carry a causal head (BERT's kin) say in their configuration that they are not decoders."""
    return any(module.__class__.__name__.endswith("Encoder") for module in model.modules())
