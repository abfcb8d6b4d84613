"""Low-rank adapters (``model.lora``): a few trained values beside a frozen model.

peft puts them into the model's linear layers: W x becomes W x + (alpha / rank) B A x with A and B trained. Here stands
what the rest of a job needs of that: which layers, the start, the weights of the plain model with the adapter merged in
(what every engine serves and what is saved), and the proof that both compute the same.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from alp.errors import UserError, nearest
from alp.foreign import reason
from alp.reproducibility import install, partial_folder, stream, write_json
from alp.shards import full, is_sharded, put

if TYPE_CHECKING:
    from alp.configuration.model_schema import Lora

_NAME = "default"  # peft's, of a model's only adapter
_LAYERS = "alp_adapted_layers"  # attribute of a model that has one: its adapted layers by name
_STIRRED = 0.3  # size of the adapter that proves itself, relative to the weights it stands beside
_TOKENS = 16  # of the proof's sequence
_ROUNDING = 1e-5  # mean |log-prob difference| of two float32 programs, relative to a mean |log-prob| above 1
_SAME = 0.01  # difference between adapter and merged weights, relative to what the adapter does


def targets_of(model: Any, settings: Lora) -> list[str]:
    """The linear layers of ``model`` that the settings name, by their whole names; its values are not looked at.

    Raises UserError for a target that names none, the head, or layers that share their weights with others.
    """
    kind, head = type(model).__name__, model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    known = sorted({_last(name) for name in linear})
    targets = known if settings.targets == "all-linear" else settings.targets
    chosen = []
    for target in targets:
        named = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not named:
            raise UserError(
                f"model.lora.targets: {kind} has no linear layer '{target}' below its head{nearest(target, known)}"
            )
        chosen += named
    owners = Counter(id(value) for _, value in model.named_parameters(remove_duplicate=False))
    shared = {_last(name) for name in chosen if owners[id(linear[name].weight)] > 1}
    if shared:
        others = sorted(set(known) - shared)
        raise UserError(
            f"model.lora.targets: layers of {kind} share the weights of {', '.join(sorted(shared))}, an adapter of one"
            f" cannot be merged into them; name others: {', '.join(others)}"
        )
    return sorted(set(chosen))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def attach(model: Any, settings: Lora, seed: int) -> None:
    """Put the adapter in, B = 0 and A drawn from ``seed``, and freeze all else. Raises UserError where the merged model
    would be another."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear, LoraLayer

    targets = targets_of(model, settings)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, lora_dropout=0.0)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GPT-2's layers, which hold their weights the other way round
        try:
            inject_adapter_in_model(config, model, _NAME)
        except ValueError as error:
            raise UserError(
                f"model.lora.targets: {type(model).__name__} cannot be adapted there: {reason(error)}; its linear"
                f" layers are {', '.join(sorted(set(map(_last, targets))))}"
            ) from None
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    whole = {_last(name) for name, layer in layers.items() if not isinstance(layer, Linear)}
    if others := sorted(whole - {"base_layer"}):
        raise UserError(  # of a mixture's shared expert peft takes the names for those of all experts
            f"model.lora.targets: peft would adapt {', '.join(others)} of {type(model).__name__} as a whole; name other"
            f" layers: {', '.join(sorted(set(map(_last, targets)) & set(map(_last, layers)) - set(others)))}"
        )
    setattr(model, _LAYERS, layers)
    model.eval()  # peft leaves its parts in training mode
    if next(model.parameters()).is_meta:  # a shape that another rank's values come into
        return
    with torch.no_grad():
        for name, layer in layers.items():
            low: Tensor = layer.lora_A[_NAME].weight  # type: ignore[assignment]
            drawn = stream(f"adapter {name}", seed).uniform(-1.0, 1.0, tuple(low.shape)) / low.shape[1] ** 0.5
            low.copy_(torch.from_numpy(drawn))
    _prove(model, seed)


def layers_of(model: Any) -> dict[str, Any]:
    """The adapted layers by the plain model's names; none of a model without an adapter."""
    return getattr(model, _LAYERS, {})


@torch.no_grad()
def served(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the plain model under its names, the adapter merged in; a model without one, as it is. Of a
    model in shards each whole, put together one after the other."""
    layers = layers_of(model)
    for name, value in model.named_parameters():
        layer, _, part = name.partition(".base_layer.")
        if not part or layer not in layers:
            if f".{_NAME}." not in name or not any(name.startswith(f"{layer}.lora_") for layer in layers):
                yield name, full(value)
        elif part == "weight":
            yield f"{layer}.weight", full(_merged(layers[layer]))
        else:
            yield f"{layer}.{part}", full(value)


def _merged(layer: Any) -> Tensor:
    with torch.autocast(layer.weight.device.type, enabled=False):
        merged: Tensor = layer.base_layer.weight + layer.get_delta_weight(_NAME)
    return merged


def plain(model: Any) -> Any:
    """A model of the same names and shapes without adapter: the model itself, or one without values."""
    if not layers_of(model):
        return model
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model.config)


@contextmanager
def base(model: Any) -> Iterator[Any]:
    """The model without what its adapter does: what it was at the start."""
    layers = layers_of(model)
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)


@contextmanager
def stirred(model: Any) -> Iterator[None]:
    """The adapter far from its start, where it changes nothing: whoever leaves it out is seen. Its values come back."""
    kept = {name: layer.lora_B[_NAME].weight.detach().clone() for name, layer in layers_of(model).items()}
    with torch.no_grad():
        for name, layer in layers_of(model).items():
            high = layer.lora_B[_NAME].weight
            drawn = stream(f"stirred adapter {name}", 0).standard_normal(tuple(high.shape))
            put(torch.from_numpy(drawn), high)
            size = float(full(layer.base_layer.weight).norm()) or 1.0
            high.mul_(_STIRRED * size / max(float(full(layer.get_delta_weight(_NAME)).norm()), 1e-30))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, layer in layers_of(model).items():
                layer.lora_B[_NAME].weight.copy_(kept[name])


@torch.no_grad()
def _prove(model: Any, seed: int) -> None:
    """A stirred adapter acts, and as its merged weights do. Raises UserError.

    Layers whose weights a model uses without calling them (fused kernels) would train one model and serve another.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    drawn = stream("adapter proof", seed).integers(rows, size=(1, _TOKENS))
    ids = torch.from_numpy(drawn).to(next(model.parameters()).device)
    called: set[str] = set()
    layers = layers_of(model)
    hooks = [layer.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    with stirred(model):
        try:
            adapted = _log_probs(model, ids)
        except (AttributeError, TypeError, RuntimeError, ValueError) as error:  # a router that answers with a tuple
            raise UserError(
                f"model.lora.targets: {type(model).__name__} cannot be run with an adapter in"
                f" {', '.join(sorted(set(map(_last, layers))))}: {reason(error)}; name other layers"
            ) from None
        for hook in hooks:
            hook.remove()
        swapped = {f"{name}.base_layer.weight": _merged(layer) for name, layer in layers.items()}
        with base(model):
            before = _log_probs(model, ids)
            merged = _log_probs(lambda **inputs: torch.func.functional_call(model, swapped, (), inputs), ids)
    rounding = _ROUNDING * max(1.0, float(adapted.abs().mean()))
    effect = float((adapted - before).abs().mean())
    if not float((adapted - merged).abs().mean()) <= _SAME * effect + rounding:
        missed = sorted(set(map(_last, layers.keys() - called)))
        raise UserError(
            f"model.lora.targets: {type(model).__name__} uses the weights of {', '.join(missed) or 'its layers'}"
            " without calling those layers, so an adapter there does not do what its merged weights would; name other"
            " layers"
        )
    if not effect > rounding:
        raise UserError(f"model.lora: an adapter in {len(layers)} layers changes nothing of {type(model).__name__}")


def _log_probs(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return torch.as_tensor(logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)))


def state(model: Any) -> dict[str, Tensor]:
    """What a checkpoint keeps of a model: all of it, or what is trained of it."""
    whole: dict[str, Tensor] = model.state_dict()
    if not layers_of(model):
        return whole
    return {name: whole[name] for name, value in model.named_parameters() if value.requires_grad}


def load_state(model: Any, kept: dict[str, Tensor]) -> None:
    """The inverse of ``state``. Raises ValueError for the state of another adapter."""
    if layers_of(model) and kept.keys() != state(model).keys():
        raise ValueError(f"adapter: {sorted(kept.keys() ^ state(model).keys())[:4]} stand on one side only")
    if is_sharded(model):
        held = model.state_dict(keep_vars=True)
        if not layers_of(model) and kept.keys() != held.keys():
            raise ValueError(f"model: {sorted(kept.keys() ^ held.keys())[:4]} stand on one side only")
        for key, value in kept.items():
            put(value, held[key])
    else:
        model.load_state_dict(kept, strict=not layers_of(model))


def save(model: Any, folder: Path, name: str, gathered: dict[str, Tensor] | None = None) -> None:
    """The adapter alone, as peft reads it: its values and ``adapter_config.json``; ``name`` says of which model.
    ``gathered``: its state, of a model in shards."""
    from safetensors.torch import save_file

    if not layers_of(model):
        return
    kept = state(model) if gathered is None else gathered
    values = {
        f"base_model.model.{key.replace(f'.{_NAME}.', '.')}": value.detach().cpu().contiguous()
        for key, value in kept.items()
    }
    config = model.peft_config[_NAME]
    content = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    content |= {"base_model_name_or_path": name, "task_type": "CAUSAL_LM", "inference_mode": True}
    with partial_folder(folder) as partial:
        save_file(values, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(partial / "adapter_config.json", content)
        install(partial, folder)


@torch.no_grad()
def merge(model: Any) -> None:
    """Make it the plain model that ``served`` describes, in place: at the end, for saving."""
    for name, layer in layers_of(model).items():
        layer.base_layer.weight.copy_(_merged(layer))
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.base_layer)
    if layers_of(model):
        delattr(model, _LAYERS)
        del model.peft_config
        model.requires_grad_(True)


def describe(model: Any) -> dict[str, Any] | None:
    """What is really adapted, for ``active.json``; None of a model without an adapter."""
    layers = layers_of(model)
    if not layers:
        return None
    config = model.peft_config[_NAME]
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "layers": len(layers),
        "targets": sorted(set(map(_last, layers))),
        "trained_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "frozen_parameters": sum(value.numel() for value in model.parameters() if not value.requires_grad),
    }
