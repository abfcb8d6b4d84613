"""Which modules of a decoder-only Hugging Face model are perturbed (docs/method.md, Perturbation)."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from .bands import FORM, between, in_band, is_band

LOGITS = "logits"
NAMED = ("all", "early", "middle", "late")
_BAND_SHARE = 5  # a named band is one fifth of the layers, rounded up

# Models whose class generates text one way or another, but not by one causal residual stream; by the type in their
# configuration.
_OTHER_STREAMS = {
    "cpmant": "puts prompt tokens of its own before the batch's and attends to them both ways",
    "flaubert": "has no list of whole decoder layers",
    "prophetnet": "predicts several tokens ahead with streams laid end to end",
    "reformer": "has two reversible residual streams",
    "xlm": "has no list of whole decoder layers",
    "xlnet": "is a permutation language model",
}
# Numbers in a configuration above which the decoder layers do not all run once, in order, on one hidden state a token.
_LIMITS: dict[str, tuple[float, str]] = {
    "altup_num_inputs": (1, "keeps several residual streams a token"),
    "hc_mult": (1, "keeps several residual streams a token"),
    "hc_count": (1, "keeps several residual streams a token"),
    "H_cycles": (0, "runs its layers several times a forward"),
    "loop_num_passes": (1, "runs its layers several times a forward"),
    "n_recurrent_loops": (1, "runs its layers several times a forward"),
    "total_ut_steps": (1, "runs its layers several times a forward"),
    "layerdrop": (0, "skips layers at random"),
    "decoder_layerdrop": (0, "skips layers at random"),
}


def resolve_layers(layers: str | Sequence[int], depth: int) -> list[int]:
    """Indices, ascending, of the layers that a selection means in a model of ``depth`` decoder layers.

    A string is a name or a band (``bands.py``); a tuple of two is the band [start, end), negative numbers counting from
    the end too; any other sequence of integers lists indices. Raises ValueError for the unknown, the empty, the
    out-of-range, the repeated and the wrongly typed.
    """
    if isinstance(layers, str):
        if layers in NAMED:
            return _named_band(layers, depth)
        if not is_band(layers):
            known = ", ".join((*NAMED, LOGITS))
            raise ValueError(f"layers: unknown '{layers}', choose from {known}, {FORM}, or a list")
        return in_band(layers, depth)
    if not isinstance(layers, Sequence) or isinstance(layers, (bytes, bytearray)):
        raise ValueError(
            f"layers: a name, start:end, (start, end) or a list of indices expected, got {type(layers).__name__}"
            f" {layers!r}"
        )
    indices = [_index(value) for value in layers]
    if isinstance(layers, tuple):
        return _band(indices, depth)
    if not indices:
        raise ValueError("layers: the list is empty, nothing would be perturbed")
    if outside := [index for index in indices if not 0 <= index < depth]:
        raise ValueError(f"layers: {outside} lie outside 0..{depth - 1}, the model's {depth} layers")
    if repeated := sorted({index for index in indices if indices.count(index) > 1}):
        raise ValueError(f"layers: {repeated} are named more than once")
    return sorted(indices)


def _named_band(name: str, depth: int) -> list[int]:
    count = -(-depth // _BAND_SHARE)  # rounded up, in integers
    start = {"all": 0, "early": 0, "middle": (depth - count) // 2, "late": depth - count}[name]
    return list(range(start, depth if name == "all" else start + count))


def _band(ends: list[int], depth: int) -> list[int]:
    if len(ends) != 2:
        raise ValueError(f"layers: a tuple is a band (start, end), got {len(ends)} numbers; write indices as a list")
    start, end = ends
    return between(start, end, depth, f"{start}:{end}")


def _index(value: Any) -> int:
    """An integer of any kind (NumPy's too), but no truth value."""
    try:
        if type(value).__name__ in ("bool", "bool_"):  # NumPy's are indices to it before 2.3
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"layers: integers expected, got {type(value).__name__} {value!r}") from None


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal language model, in order.

    They are the one list of the model's decoder, inside no other list, that has as many members as the configuration
    says there are layers, all of them different and composed of other modules. Raises ValueError, naming the model's
    class, where there is no such list, or several, and for models that are not decoder-only causal language models.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None or not callable(getattr(model, "can_generate", None)):
        raise ValueError(f"model: {name} is not a Hugging Face model")
    if reason := _unfit(model, config):
        raise ValueError(f"model: {name} {reason}; only decoder-only causal language models can be perturbed")
    depth = getattr(_text_config(config), "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise ValueError(f"model: the configuration of {name} does not say how many layers it has (num_hidden_layers)")
    stacks = [
        (path, stack) for path, stack in _outermost_lists(_decoder(model)) if len(stack) == depth and _is_stack(stack)
    ]
    if len(stacks) != 1:
        places = ", ".join(path for path, _ in stacks) or "none"
        raise ValueError(f"model: cannot tell the {depth} decoder layers of {name} (candidates: {places})")
    return stacks[0][1]


def _unfit(model: nn.Module, config: Any) -> str | None:
    """Why a model is not a decoder-only causal language model whose layers all run once a forward; None if nothing says
    so."""
    text = _text_config(config)
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        return "is an encoder-decoder"
    if not model.can_generate():  # type: ignore[operator]
        return "is not a causal language model"
    if reason := _OTHER_STREAMS.get(getattr(text, "model_type", "")):
        return reason
    if getattr(text, "is_decoder", None) is False and _has_encoder(model):
        return "is an encoder (its configuration says is_decoder=False)"
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        return "attends both ways (its configuration says use_bidirectional_attention)"
    if getattr(text, "cross_attention_layers", None):
        return "skips its cross-attention layers when there is no image"
    for field, (limit, reason) in _LIMITS.items():
        value = getattr(text, field, None)
        if isinstance(value, (int, float)) and value > limit:
            return f"{reason} (its configuration says {field}={value})"
    return None


def _text_config(config: Any) -> Any:
    """The part of a configuration that describes the text decoder, or all of it."""
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "get_text_config"):
        return config
    return config.get_text_config(decoder=True)


def _has_encoder(model: nn.Module) -> bool:
    """BERT and its kin hold their layers in an encoder even where they carry a causal head."""
    return any(type(module).__name__.endswith("Encoder") for module in model.modules())


def _decoder(model: nn.Module) -> nn.Module:
    """The text decoder inside a model, away from vision or audio towers; the model itself if it tells no decoder with
    lists."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    inside = any(module is decoder for module in model.modules())
    return decoder if inside and any(_outermost_lists(decoder)) else model


def _outermost_lists(root: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Every module list that lies in no other (never experts, nor parts of a layer) and in no part of another model,
    with its path."""
    config = getattr(root, "config", None)
    kind = object if config is None else type(config)
    waiting = [("", root)]
    while waiting:
        path, module = waiting.pop()
        if isinstance(module, nn.ModuleList):
            yield path, module
        elif isinstance(
            getattr(module, "config", None), (kind, type(None))
        ):  # a tower inside has a configuration of another class
            waiting += [(f"{path}.{name}".lstrip("."), child) for name, child in module.named_children()]


def _is_stack(modules: nn.ModuleList) -> bool:
    """Whether a list can hold decoder layers: distinct modules, each made of others (no row of norms or
    projections)."""
    distinct = len({id(module) for module in modules}) == len(modules)
    return distinct and all(any(True for _ in module.children()) for module in modules)
