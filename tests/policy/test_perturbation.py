"""`LayerwisePerturbation`: off means off, gradients are right, and no trace stays in the model."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedModel, T5Config, T5ForConditionalGeneration

from alp.policy import LayerwisePerturbation

from .models import (
    BUILDERS,
    LAYERS,
    active,
    both_scales,
    collate,
    gpt2,
    gradients,
    injected,
    logits_of,
    nudge,
    probe,
    qwen2,
    relative_gap,
    scales,
)

both_models = pytest.mark.parametrize("name", sorted(BUILDERS))
EIGHT = list(range(8))


def anatomy(model: nn.Module) -> dict[str, Any]:
    """Everything that an attachment could leave on a model: hooks, attributes, parameters, buffers, state-dict keys."""
    modules = {}
    for path, module in model.named_modules():
        hooks = {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks") and hasattr(v, "__len__")}
        modules[path] = (type(module), sorted(vars(module)), hooks)
    return {
        "modules": modules,
        "state": sorted(model.state_dict()),
        "parameters": [(n, id(p)) for n, p in model.named_parameters()],
        "buffers": sorted(n for n, _ in model.named_buffers()),
    }


@both_scales
@both_models
def test_zero_std_is_off_bit_for_bit(name: str, scale: str) -> None:
    """The control sigma = 0: no parameters, and forward and gradients equal to the untouched model in every bit."""
    model, batch = BUILDERS[name](), collate(EIGHT)
    logits, (weights, _) = logits_of(model, batch), gradients(model, None, [batch])
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.0)
    assert scales(perturbation) == []
    with active(perturbation, batch):
        assert torch.equal(logits_of(model, batch), logits)
    assert torch.equal(gradients(model, perturbation, [batch])[0], weights)


@both_scales
@both_models
def test_outside_the_context_nothing_changes(name: str, scale: str) -> None:
    """Noise in rollouts, evaluation or old log-probs, before or after an update, or after an exception inside."""
    model, batch = BUILDERS[name](), collate(EIGHT)
    logits, (weights, _) = logits_of(model, batch), gradients(model, None, [batch])
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.5)
    assert torch.equal(logits_of(model, batch), logits)
    with active(perturbation, batch):
        assert not torch.equal(logits_of(model, batch), logits)
    with pytest.raises(KeyError), active(perturbation, batch):
        raise KeyError
    assert torch.equal(logits_of(model, batch), logits)
    assert torch.equal(gradients(model, None, [batch])[0], weights)


@both_scales
@both_models
def test_detach_leaves_no_trace(name: str, scale: str) -> None:
    """A hook, attribute, parameter, buffer or state-dict key that stays, or that appears while attached."""
    model, batch = BUILDERS[name](), collate(EIGHT)
    logits_of(model, batch)
    bare, logits = anatomy(model), logits_of(model, batch)
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.5)
    gradients(model, perturbation, [batch])
    attached = anatomy(model)
    for part in ("state", "parameters", "buffers"):
        assert attached[part] == bare[part], part
    perturbation.detach()
    model.zero_grad()
    assert anatomy(model) == bare
    assert torch.equal(logits_of(model, batch), logits)


@both_scales
@both_models
def test_noise_enters_before_norm_and_residual(name: str, scale: str) -> None:
    """Noise on the norm's input alone, or on the branch alone: the residual stream must carry it too."""
    model, batch = BUILDERS[name](), collate([0, 1])
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.5)
    blocks = model.transformer.h if name == "gpt2" else model.model.layers
    branches: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        branches.append((output[0] if isinstance(output, tuple) else output).detach())

    parts = [blocks[0].attn, blocks[0].mlp] if name == "gpt2" else [blocks[0].self_attn, blocks[0].mlp]
    handles = [part.register_forward_hook(keep) for part in parts]
    with torch.no_grad(), probe(model) as seen, active(perturbation, batch):
        logits_of(model, batch)
    for handle in handles:
        handle.remove()
    residual = seen.before[1] - branches[0] - branches[1]
    assert relative_gap(residual, seen.after[0]) < 1e-5
    assert relative_gap(seen.before[0], seen.after[0]) > 0.1


@both_scales
@both_models
def test_same_arguments_same_forward(name: str, scale: str) -> None:
    """A stateful generator: the draw must repeat, whatever the global generator does, and leave that one alone."""
    model, batch = BUILDERS[name](), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with active(perturbation, batch):
        first, again = logits_of(model, batch), logits_of(model, batch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    with active(perturbation, batch, update=9):
        assert not torch.equal(logits_of(model, batch), first)
    with active(perturbation, batch):
        third = logits_of(model, batch)
    assert torch.equal(again, first)
    assert torch.equal(third, first)
    twin = BUILDERS[name]()
    copy = LayerwisePerturbation(twin, scale=scale, std=0.3)
    with active(copy, batch):
        assert torch.equal(logits_of(twin, batch), first)


def test_a_detached_perturbation_is_no_silent_no_op() -> None:
    """Zero hooks are an error: a context that perturbs nothing must not look like one that does."""
    model, batch = gpt2(), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, std=0.3)
    perturbation.detach()
    with pytest.raises((RuntimeError, ValueError)), active(perturbation, batch):
        logits_of(model, batch)


@pytest.mark.parametrize("masked", [True, False])
def test_nested_contexts_fail_or_restore_the_outer(masked: bool) -> None:
    """An inner context whose end switches the outer one off in silence."""
    model, batch = gpt2(), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, std=0.3)
    arguments: dict[str, Any] = {"attention_mask": batch.attention_mask} if masked else {}

    def enter(update: int) -> Any:
        return perturbation.active(update=update, sequence_ids=batch.sequence_ids, **arguments)

    with enter(1):
        expected = logits_of(model, batch)
    try:
        with enter(1):
            with enter(2):
                logits_of(model, batch)
            after = logits_of(model, batch)
    except RuntimeError:
        return
    assert torch.equal(after, expected)


@both_scales
def test_fixed_scales(scale: str) -> None:
    """`learnable=False`: the same noise and weight gradients, nothing to train."""
    model, batch = gpt2(), collate(EIGHT)
    learned = LayerwisePerturbation(model, scale=scale, std=0.2)
    weights, _ = gradients(model, learned, [batch])
    learned.detach()
    fixed = LayerwisePerturbation(model, scale=scale, std=0.2, learnable=False)
    assert not any(p.requires_grad for p in scales(fixed))
    assert relative_gap(gradients(model, fixed, [batch])[0], weights) < 1e-14
    assert torch.allclose(fixed.std.double(), torch.full((LAYERS,), 0.2, dtype=torch.float64), rtol=1e-6)


@both_scales
def test_projection_applies_the_bounds(scale: str) -> None:
    """Bounds applied to s instead of sigma, to some layers only, or not at all."""
    perturbation = LayerwisePerturbation(gpt2(), scale=scale, std=0.02, std_min=1e-3, std_max=0.5)
    for index, delta in enumerate((50.0, -50.0, 0.1)):
        nudge(perturbation, index, delta)
    perturbation.project_()
    expected = torch.tensor([0.5, 1e-3, 0.02 * 2.718281828459045**0.1], dtype=torch.float64)
    assert torch.allclose(perturbation.std.detach().double(), expected, rtol=1e-5)
    default = LayerwisePerturbation(gpt2(), scale=scale)
    assert torch.allclose(default.std.detach().double(), torch.full((LAYERS,), 0.02, dtype=torch.float64), rtol=1e-6)
    for index, delta in enumerate((50.0, -50.0)):
        nudge(default, index, delta)
    default.project_()
    assert torch.allclose(default.std.detach().double()[:2], torch.tensor([1.0, 1e-8]).double(), rtol=1e-5)


@both_scales
def test_state_dict_round_trip(scale: str) -> None:
    """Scales that a resumed run starts afresh, or a state that the safe loader refuses."""
    batch = collate(EIGHT)
    first = LayerwisePerturbation(model := gpt2(), scale=scale, std=0.2, seed=3)
    for index in range(LAYERS):
        nudge(first, index, 0.5 * index)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = LayerwisePerturbation(other := gpt2(), scale=scale, std=0.01, seed=3)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(second.std, first.std)
    assert first.std[2] > 2 * first.std[0]
    with active(first, batch), active(second, batch):
        assert torch.equal(logits_of(other, batch), logits_of(model, batch))


@pytest.mark.parametrize("depth", [3, 6])
@pytest.mark.parametrize(
    ("layers", "share"),
    [("all", (0, 3)), ("early", (0, 1)), ("middle", (1, 2)), ("late", (2, 3)), ((1, 3), None), ("1:3", None),
     ("0:1", None), ("1:", None), (":2", None), ("-2:", None), ("1:-1", None), ([0, 2], None), ([2], None)],
)  # fmt: skip
def test_layer_selection(depth: int, layers: Any, share: tuple[int, int] | None) -> None:
    """A band whose end counts, thirds that miss or share layers, a list taken for a band."""
    if share is not None:
        expected = list(range(share[0] * depth // 3, share[1] * depth // 3))
    elif isinstance(layers, list):
        expected = layers
    else:
        known = {(1, 3): [1, 2], "1:3": [1, 2], "0:1": [0], ":2": [0, 1]}
        open_ends = {"1:": range(1, depth), "-2:": range(depth - 2, depth), "1:-1": range(1, depth - 1)}
        expected = known[layers] if layers in known else list(open_ends[layers])
    model = gpt2(layers=depth)
    perturbation = LayerwisePerturbation(model, layers=layers, std=0.3)
    noise = injected(model, perturbation, collate([0, 1]))
    assert [layer for layer in sorted(noise) if noise[layer].any()] == expected
    assert perturbation.std.shape == torch.as_tensor(perturbation.realised_rms).shape == (len(expected),)
    assert sum(p.numel() for p in scales(perturbation)) == len(expected)


@pytest.mark.parametrize("depth", [3, 4, 5, 7, 8])
def test_named_bands_are_where_they_say(depth: int) -> None:
    """Early that misses the first layer, late that misses the last, bands that overlap, have holes or differ in
    size."""
    model = gpt2(layers=depth)
    bands: list[list[int]] = []
    for layers in ("early", "middle", "late"):
        perturbation = LayerwisePerturbation(model, layers=layers, std=0.3)
        noise = injected(model, perturbation, collate([0]))
        bands.append([layer for layer in sorted(noise) if noise[layer].any()])
        perturbation.detach()
    assert bands[0][0] == 0
    assert bands[2][-1] == depth - 1
    assert bands[0][-1] < bands[1][0]
    assert bands[1][-1] < bands[2][0]
    assert all(band == list(range(band[0], band[-1] + 1)) for band in bands)
    assert max(map(len, bands)) - min(map(len, bands)) <= 1
    assert abs((bands[1][0] + bands[1][-1]) - (depth - 1)) <= 1, "the middle band is in the middle"


def test_logits_selection() -> None:
    """`logits`: no hidden state changes, the logits carry noise of the stated size."""
    model, batch = qwen2(), collate(EIGHT)
    plain = logits_of(model, batch)
    perturbation = LayerwisePerturbation(model, layers="logits", std=0.5)
    with torch.no_grad(), probe(model) as seen, active(perturbation, batch):
        noise = logits_of(model, batch) - plain
    assert not any(seen.noise(layer).any() for layer in range(LAYERS))
    real = noise[batch.attention_mask.bool()]
    assert abs(float(real.std()) / 0.5 - 1) < 0.05
    assert perturbation.std.shape == (1,)


@pytest.mark.parametrize(
    "layers",
    [
        [],
        (1, 1),
        (2, 1),
        "2:2",
        "",
        "some",
        ":",
        "3:",
        ":0",
        "-4:",
        "a:b",
        (0, 4),
        "0:4",
        (-1, 2),
        [0, 3],
        [-1],
        (3, 5),
        [0.5],
    ],
)
def test_bad_layers_are_refused(layers: Any) -> None:
    """An empty, unknown or out-of-range selection that perturbs nothing, or something else, in silence."""
    with pytest.raises(ValueError, match="layers"):
        LayerwisePerturbation(gpt2(), layers=layers)


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf"), 2.0, 1e-9])
def test_bad_std_is_refused(std: float) -> None:
    """An initial sigma outside [std_min, std_max] (0 apart, which means off)."""
    with pytest.raises(ValueError, match="std"):
        LayerwisePerturbation(gpt2(), std=std)


@pytest.mark.parametrize("kind", ["plain", "bert", "bert head", "t5"])
def test_other_architectures_are_refused(kind: str) -> None:
    """A perturbation that finds no decoder layers must fail, not stay silent; encoders are not decoder-only."""
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertConfig(vocab_size=50, intermediate_size=48, **small)
    t5 = T5Config(vocab_size=50, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)
    models: dict[str, nn.Module | PreTrainedModel] = {
        "plain": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        "bert": BertModel(bert),
        "bert head": BertForMaskedLM(bert),
        "t5": T5ForConditionalGeneration(t5),
    }
    before = anatomy(models[kind])
    with pytest.raises(ValueError, match="model"):
        LayerwisePerturbation(models[kind])
    assert anatomy(models[kind]) == before
