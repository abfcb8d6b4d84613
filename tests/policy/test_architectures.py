"""`LayerwisePerturbation` on every architecture of `architectures.py`, and the refusal of models that it does not
fit."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from alp.policy import LayerwisePerturbation
from alp.policy.layers import decoder_layers

from .architectures import ARCHITECTURES, DEPTH, REFUSED, Refused, build, build_refused, tables
from .models import Batch, active, collate, flat, nudge, relative_gap, scales

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
# One of each way to build a decoder (attention, normalisation, experts, recurrence, positions); the others are `long`.
CORE = (
    "falcon",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "llama",
    "mamba",
    "mixtral",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "zamba2",
)
every_architecture = pytest.mark.parametrize(
    "name",
    [name if name in CORE else pytest.param(name, marks=pytest.mark.long) for name in sorted(ARCHITECTURES)],
)
ATTENTION = (
    "falcon",
    "gemma2",
    "gemma3_text",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi3",
    "qwen3",
    "smollm3",
    "stablelm",
)
WHICH = [0, 2, 3]  # sequences of 3, 5 and 10 tokens, in one batch 10 wide


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Logits, with as many of mask, positions and `use_cache` as the model's forward names."""
    known = inspect.signature(model.forward).parameters
    given = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids, "use_cache": False}
    logits: Tensor = model(input_ids=batch.ids, **{k: v for k, v in given.items() if k in known}).logits
    return logits


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Weighted sum of the log-probs of all real tokens but each sequence's first."""
    chosen = logits_of(model, batch)[:, :-1].log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    real = (batch.attention_mask[:, 1:] * batch.attention_mask[:, :-1]).bool()
    return (chosen * batch.coefficients[:, 1:].to(chosen.dtype)).masked_fill(~real, 0.0).sum()


def gradients(model: nn.Module, perturbation: LayerwisePerturbation, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gradients of the perturbed loss in all weights and in all s_l."""
    model.zero_grad()
    for parameter in scales(perturbation):
        parameter.grad = None
    with active(perturbation, batch):
        loss_of(model, batch).backward()
    weights, trained = (
        [p.grad for p in group if p.grad is not None] for group in (model.parameters(), scales(perturbation))
    )
    return flat(weights), flat(trained)


def layers_of(name: str, model: nn.Module) -> list[nn.Module]:
    """The decoder layers, found by the path that the table states."""
    return list(model.get_submodule(ARCHITECTURES[name].layers).children())


def hidden_of(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """A layer's `hidden_states`, however they were passed."""
    hidden: Tensor = arguments[0] if arguments else keywords["hidden_states"]
    return hidden


def output_of(output: Any) -> Tensor:
    """A layer's new hidden state, alone or first in a tuple."""
    hidden: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return hidden


@contextmanager
def removed(handles: list[Any]) -> Iterator[None]:
    """Removes hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_hidden(change: Callable[[int, Tensor], Tensor], layer: int) -> Any:
    """A pre-hook that changes a layer's hidden state."""

    def hook(
        module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = change(layer, hidden_of(arguments, keywords))
        if arguments:
            return (hidden, *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": hidden}

    return hook


def pre_hooks(layers: list[nn.Module], change: Callable[[int, Tensor], Tensor]) -> list[Any]:
    """One pre-hook on every layer."""
    return [
        module.register_forward_pre_hook(with_hidden(change, layer), with_kwargs=True)
        for layer, module in enumerate(layers)
    ]


def exact_noise(name: str, model: nn.Module, batch: Batch) -> list[Tensor]:
    """sigma * epsilon of every layer, bit for bit: what the hooks add to hidden states that the test set to zero."""
    layers, noise = layers_of(name, model), {}

    def keep(layer: int, hidden: Tensor) -> Tensor:
        noise[layer] = hidden.clone()
        return hidden

    zeros = pre_hooks(layers, lambda layer, hidden: torch.zeros_like(hidden))
    perturbation = LayerwisePerturbation(model, std=1.0)  # so that sigma * epsilon needs no rounding
    with torch.no_grad(), removed([*zeros, *pre_hooks(layers, keep)]), active(perturbation, batch):
        logits_of(model, batch)
    perturbation.detach()
    return [noise[layer] for layer in range(len(layers))]


@every_architecture
def test_layers_are_found_and_run_once_in_order(name: str) -> None:
    """A wrong module list (experts, a vision tower, parts of a layer), a layer without its hook, run twice, skipped or
    out of order."""
    model, batch, calls = build(name), collate(WHICH), []
    layers = layers_of(name, model)
    assert type(model).__name__ == ARCHITECTURES[name].model_class
    assert list(decoder_layers(model)) == layers
    assert len(layers) >= DEPTH
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    perturbation = LayerwisePerturbation(model, std=0.1)
    assert [len(layer._forward_pre_hooks) for layer in layers] == [1] * len(layers)
    assert (
        perturbation.hooks
        == len(layers)
        == sum(len(module._forward_pre_hooks) for module in model.modules()) - sum(before)
    )

    def called(layer: int, hidden: Tensor) -> Tensor:
        calls.append((layer, *hidden.shape[:2]))
        return hidden

    with torch.no_grad(), removed(pre_hooks(layers, called)), active(perturbation, batch):
        logits_of(model, batch)
    assert calls == [(layer, *batch.ids.shape) for layer in range(len(layers))]
    perturbation.detach()
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before


@every_architecture
def test_noise_enters_the_residual_stream(name: str) -> None:
    """Noise on a copy of the stream: each layer's input is the output of the layer before it, and noise added there by
    hand is the same."""
    model, batch = build(name), collate(WHICH)
    layers, inputs, outputs = layers_of(name, model), {}, {}
    noise = exact_noise(name, model, batch)

    def arrive(layer: int, hidden: Tensor) -> Tensor:
        inputs[layer] = hidden.clone()
        return hidden

    def leave(layer: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            outputs[layer] = output_of(output).clone()

        return hook

    def add_after(layer: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            hidden = output_of(output) + noise[layer + 1]
            return type(output)((hidden, *output[1:])) if isinstance(output, (tuple, list)) else hidden

        return hook

    watching = [
        *pre_hooks(layers, arrive),
        *(module.register_forward_hook(leave(layer)) for layer, module in enumerate(layers)),
    ]
    with torch.no_grad(), removed(watching):
        logits_of(model, batch)
    for layer in range(1, len(layers)):
        assert torch.equal(inputs[layer], outputs[layer - 1]), layer
    first = layers[0].register_forward_pre_hook(
        with_hidden(lambda layer, hidden: hidden + noise[0], 0), with_kwargs=True
    )
    rest = [module.register_forward_hook(add_after(layer)) for layer, module in enumerate(layers[:-1])]
    with torch.no_grad(), removed([first, *rest]):
        by_hand = logits_of(model, batch)
    perturbation = LayerwisePerturbation(model, std=1.0)
    with torch.no_grad(), active(perturbation, batch):
        assert torch.equal(logits_of(model, batch), by_hand)


@every_architecture
def test_size_and_off(name: str) -> None:
    """Noise of another size than sigma, hooks that change nothing, an off switch or a detachment that leaves some of it
    on."""
    model, batch = build(name), collate(range(8))
    real = batch.attention_mask.bool()
    with torch.no_grad():
        plain = logits_of(model, batch)
    off = LayerwisePerturbation(model, std=0.0)
    with torch.no_grad(), active(off, batch):
        assert torch.equal(logits_of(model, batch), plain)
    perturbation = LayerwisePerturbation(model, std=0.25)
    with torch.no_grad(), active(perturbation, batch):
        changed = logits_of(model, batch)
    assert changed.isfinite().all()
    assert (changed - plain).abs().amax(-1)[real].gt(0).all()
    # 48 tokens of 32 channels or more: the RMS has a standard error of 2 %.
    assert torch.allclose(perturbation.realised_rms, torch.full((len(perturbation.std),), 0.25), rtol=0.08)
    with torch.no_grad():
        assert torch.equal(logits_of(model, batch), plain)
    perturbation.detach()
    with torch.no_grad():
        assert torch.equal(logits_of(model, batch), plain)


@every_architecture
def test_noise_does_not_see_the_padding(name: str) -> None:
    """Noise keyed by a token's column: the same on the left, on the right, and in a wider batch, bit for bit."""
    model, batch = build(name), collate(WHICH)
    real = batch.attention_mask.bool()
    expected = [noise[real] for noise in exact_noise(name, model, batch)]
    for other in (collate(WHICH, side="left"), collate(WHICH, side="left", width=13), collate(WHICH, width=12)):
        found = [noise[other.attention_mask.bool()] for noise in exact_noise(name, model, other)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(noise.std() > 0.5 for noise in expected)


class Float64Throughout(TorchFunctionMode):
    """Models that take norms, softmaxes or decays in float32 do so in float64: casts of float64 values to float32
    become no casts."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replaces float32 by float64 among the arguments of functions of a float64 tensor."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if function is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return function(*args, **kwargs)


@contextmanager
def precise(name: str) -> Iterator[None]:
    """Float64 everywhere, of itself or by the mode above (and in the tensors that a model makes without naming a
    type)."""
    if ARCHITECTURES[name].float64:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64Throughout():
            yield
    finally:
        torch.set_default_dtype(before)


@every_architecture
def test_gradient_of_the_scales_is_the_finite_difference(name: str) -> None:
    """A hook that cuts or doubles the graph, one layer's gradient in another's place, a layer whose input takes a
    second path."""
    model, batch = build(name, torch.float64), collate(WHICH)
    perturbation = LayerwisePerturbation(model, std=0.1)
    step, slopes = 1e-5, []
    with precise(name):
        _, trained = gradients(model, perturbation, batch)
        for index in range(trained.numel()):
            values = []
            for delta in (step, -2 * step):
                nudge(perturbation, index, delta)
                with torch.no_grad(), active(perturbation, batch):
                    values.append(float(loss_of(model, batch)))
            nudge(perturbation, index, step)
            slopes.append((values[0] - values[1]) / (2 * step))
    assert relative_gap(trained, torch.tensor(slopes, dtype=torch.float64)) < 1e-6
    assert (trained != 0).all()


@every_architecture
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_bit(name: str, reentrant: bool) -> None:
    """Recomputed layers that draw other noise or none: silently wrong gradients of weights and scales."""
    expected = ARCHITECTURES[name]
    model, batch = build(name), collate(WHICH)
    if not expected.checkpointing:
        with pytest.raises(ValueError, match="does not support"):
            model.gradient_checkpointing_enable()
        return
    perturbation = LayerwisePerturbation(model, std=0.2)
    weights, trained = gradients(model, perturbation, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    try:
        w, s = gradients(model, perturbation, batch)
    except RuntimeError:
        if reentrant and not expected.reentrant:
            return
        raise
    assert torch.equal(w, weights)
    assert torch.equal(s, trained)


def relative_by_hand(
    name: str, model: nn.Module, logs: Tensor, noise: list[Tensor], seen: dict[int, Tensor]
) -> list[Any]:
    """h + exp(s_l) · sg[RMS(h_t)] · ε by plain autograd in front of every layer; ``seen`` gets what is added."""

    def change(layer: int, hidden: Tensor) -> Tensor:
        size = hidden.detach().square().mean(-1, keepdim=True).sqrt()
        added = logs[layer].exp() * size * noise[layer]
        seen[layer] = added.detach()
        return hidden + added

    return pre_hooks(layers_of(name, model), change)


@every_architecture
def test_relative_noise_is_the_definition(name: str) -> None:
    """A hidden state whose last axis is not its channels, an RMS that lets the gradient through, a recomputation with
    another RMS; and σ = 0."""
    model, batch = build(name), collate(WHICH)
    real = batch.attention_mask.bool()
    noise = exact_noise(name, model, batch)
    with torch.no_grad():
        plain = logits_of(model, batch)
    off = LayerwisePerturbation(model, scale="relative", std=0.0)
    with torch.no_grad(), active(off, batch):
        assert torch.equal(logits_of(model, batch), plain)
    logs, seen = torch.full((len(noise),), 0.05).log().requires_grad_(), dict[int, Tensor]()
    with removed(relative_by_hand(name, model, logs, noise, seen)):
        with torch.no_grad():
            by_hand = logits_of(model, batch)
        model.zero_grad()
        loss_of(model, batch).backward()
    assert logs.grad is not None
    expected = flat([p.grad for p in model.parameters() if p.grad is not None]), logs.grad.clone()
    perturbation = LayerwisePerturbation(model, scale="relative", std=0.05)
    with torch.no_grad(), active(perturbation, batch):
        assert relative_gap(logits_of(model, batch)[real], by_hand[real]) < 1e-4
    sizes = [float(seen[layer][real].square().mean().sqrt()) for layer in range(len(noise))]
    assert perturbation.realised_rms.tolist() == pytest.approx(sizes, rel=1e-3)
    weights, trained = gradients(model, perturbation, batch)
    assert relative_gap(weights, expected[0]) < 1e-3
    assert relative_gap(trained, expected[1]) < 1e-3
    if ARCHITECTURES[name].checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        again = gradients(model, perturbation, batch)
        assert torch.equal(again[0], weights)
        assert torch.equal(again[1], trained)


@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_do_not_depend_on_the_batching(name: str) -> None:
    """Noise that follows a row, a column or a micro-batch instead of the token, where the model itself does not."""
    model = build(name)
    perturbation = LayerwisePerturbation(model, std=0.1)
    whole = gradients(model, perturbation, collate([0, 1, 2, 3]))
    halves = [
        gradients(model, perturbation, batch) for batch in (collate([0, 2], side="left"), collate([3, 1], width=12))
    ]
    for found, expected in zip(map(sum, zip(*halves, strict=True)), whole, strict=True):
        assert relative_gap(found, expected) < 1e-4


def hook_count(model: nn.Module) -> int:
    """Hooks of every kind on a model and its parts."""
    return sum(
        len(value)
        for module in model.modules()
        for key, value in vars(module).items()
        if key.endswith("_hooks") and value
    )


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.model_class)
def test_other_models_are_refused_by_name(refused: Refused) -> None:
    """A model perturbed where its layers are not, or not all run: the error names its class and why, and leaves no
    hook."""
    model = build_refused(refused)
    before = hook_count(model)
    with pytest.raises(ValueError, match=rf"model: .*{refused.model_class}.*") as caught:
        LayerwisePerturbation(model)
    assert refused.says in str(caught.value)
    assert hook_count(model) == before


class Plain(nn.Module):
    """A module that is no Hugging Face model."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])
        for name, value in attributes.items():
            setattr(self, name, value)


class Sized(SimpleNamespace):
    """A configuration that states a depth."""

    num_hidden_layers = 2


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Linear(4, 4)), "not a Hugging Face model"),
        (Plain(), "not a Hugging Face model"),
        (Plain(config=Sized()), "not a Hugging Face model"),
        (Plain(config=Sized(), can_generate=lambda: False), "not a causal language model"),
        (Plain(config=Sized(num_hidden_layers=3), can_generate=lambda: True), "cannot tell the 3 decoder layers"),
        (Plain(config=SimpleNamespace(), can_generate=lambda: True), "does not say how many layers"),
    ],
)
def test_plain_modules_are_refused(model: nn.Module, says: str) -> None:
    """Any module with a list in it taken for a language model."""
    with pytest.raises(ValueError, match=says) as caught:
        decoder_layers(model)
    assert type(model).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("field", "fits", "says"),
    [
        ("altup_num_inputs", 1, "keeps several residual streams"),
        ("hc_mult", 1, "keeps several residual streams"),
        ("hc_count", 1, "keeps several residual streams"),
        ("H_cycles", 0, "runs its layers several times"),
        ("loop_num_passes", 1, "runs its layers several times"),
        ("n_recurrent_loops", 1, "runs its layers several times"),
        ("total_ut_steps", 1, "runs its layers several times"),
        ("layerdrop", 0.0, "skips layers at random"),
        ("decoder_layerdrop", 0.0, "skips layers at random"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(field: str, fits: float, says: str) -> None:
    """Layers that run several times, not always, or on several streams: one draw a layer would not be one."""
    model = Plain(config=Sized(**{field: fits}), can_generate=lambda: True)
    assert decoder_layers(model) is model.layers
    with pytest.raises(ValueError, match=rf"Plain {says}.*{field}="):
        decoder_layers(Plain(config=Sized(**{field: fits + 1}), can_generate=lambda: True))


def generator(**parts: nn.Module) -> Plain:
    """A made-up language model of two layers with other parts."""
    model = Plain(config=Sized(), can_generate=lambda: True)
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def stack(*members: nn.Module) -> nn.ModuleList:
    """A list of modules."""
    return nn.ModuleList(members)


def test_lists_that_look_like_layers() -> None:
    """As many experts, norms, blocks of a vision tower or repetitions of one block as there are layers."""
    block = nn.Sequential(nn.Linear(4, 4))
    tower = Plain(config=SimpleNamespace(num_hidden_layers=2))
    parts = {
        "experts": nn.Sequential(nn.ModuleList([stack(block, nn.Sequential(nn.ReLU()))])),
        "norms": stack(nn.ReLU(), nn.ReLU()),
    }
    model = generator(**parts, tower=tower, shared=stack(block, block))
    assert decoder_layers(model) is model.layers
    with pytest.raises(ValueError, match=r"cannot tell the 2 decoder layers of Plain \(candidates: .*twins"):
        decoder_layers(generator(twins=stack(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU()))))


def test_compiled_model_is_its_original() -> None:
    """A wrapper of `torch.compile` taken for an unknown model, or named in an error in its model's place."""
    model = build("gpt2")
    assert decoder_layers(torch.compile(model)) is decoder_layers(model)
    with pytest.raises(ValueError, match="model: BertModel"):
        decoder_layers(torch.compile(build_refused(REFUSED[0])))


def test_the_tables_are_written_from_what_is_tested() -> None:
    """``WRITE_DOCS=1`` writes them again."""
    text = TABLE.read_text(encoding="utf-8")
    head = text[: text.index("| model type |")]
    if os.environ.get("WRITE_DOCS") == "1":
        TABLE.write_text(head + tables(), encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == head + tables()
