"""Gradients under the perturbation: batching, finite differences, checkpointing, and where the backward pass runs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import alp.policy.noise
from alp.policy import LayerwisePerturbation, log_ratio, policy_loss
from alp.policy.streams import Normals

from . import reference
from .models import (
    BUILDERS,
    EXACT,
    HIDDEN,
    LAYERS,
    Batch,
    active,
    both_scales,
    collate,
    flat,
    gpt2,
    gradients,
    logits_of,
    loss_of,
    nudge,
    relative_gap,
    scales,
)

both_models = pytest.mark.parametrize("name", sorted(BUILDERS))
LEVELS = reference.LEVELS
either_checkpoint = pytest.mark.parametrize("reentrant", [True, False])
EIGHT, SIXTEEN = list(range(8)), list(range(16))


@both_scales
@pytest.mark.parametrize(
    ("name", "tolerance"), [("gpt2", 1e-12), ("gpt_neox", 1e-12), ("qwen2", 1e-5), ("gpt2 in float32", 1e-5)]
)
@pytest.mark.parametrize("layers", ["all", "logits", (1, 3)])
def test_gradients_do_not_depend_on_the_batching(name: str, tolerance: float, layers: Any, scale: str) -> None:
    """Noise keyed by the row or column of a tensor: micro-batches, order, side and width of the padding."""
    family, _, single = name.partition(" in ")
    model = (BUILDERS | EXACT)[family](torch.float32) if single else (BUILDERS | EXACT)[family]()
    perturbation = LayerwisePerturbation(model, scale=scale, layers=layers, std=0.2)
    weights, trained = gradients(model, perturbation, [collate(SIXTEEN)])
    assert trained.norm() > 0
    mixed = [11, 3, 7, 1, 15, 0, 2, 6, 12, 5, 4, 9, 14, 8, 13, 10]
    splits: dict[str, list[Batch]] = {
        "four of four": [collate(SIXTEEN[i : i + 4]) for i in range(0, 16, 4)],
        "sixteen of one": [collate([i]) for i in SIXTEEN],
        "shuffled": [collate(mixed)],
        "shuffled, four of four": [collate(mixed[i : i + 4]) for i in range(0, 16, 4)],
        "left": [collate(SIXTEEN, side="left")],
        "wider": [collate(SIXTEEN, width=17)],
        "left, wider": [collate(SIXTEEN[:8], side="left", width=13), collate(SIXTEEN[8:], width=11)],
    }
    for what, batches in splits.items():
        w, s = gradients(model, perturbation, batches)
        assert relative_gap(w, weights) < tolerance, what
        # In float32 what is left of a sum that all but cancels, as it does here, has fewer digits.
        assert relative_gap(s, trained) < tolerance * (10 if scale == "relative" and tolerance > 1e-6 else 1), what
    other = gradients(model, perturbation, [collate(SIXTEEN)], update=6)
    assert relative_gap(other[0], weights) > 1e-3
    assert relative_gap(other[1], trained) > 1e-3


@pytest.mark.parametrize("name", sorted(EXACT))
@pytest.mark.parametrize("layers", ["all", "logits", [0, 2]])
def test_gradient_of_the_scales_is_the_finite_difference(name: str, layers: Any) -> None:
    """A missing factor sigma, a gradient of another draw, or one layer's gradient in another's place."""
    model, batch = EXACT[name](), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, layers=layers, std=0.1)
    for index in range(perturbation.std.numel()):
        nudge(perturbation, index, 0.3 * index)
    _, trained = gradients(model, perturbation, [batch])
    step, slopes = 1e-5, []
    for index in range(trained.numel()):
        values = []
        for delta in (step, -2 * step):
            nudge(perturbation, index, delta)
            with torch.no_grad(), active(perturbation, batch):
                values.append(float(loss_of(model, batch)))
        nudge(perturbation, index, step)
        slopes.append((values[0] - values[1]) / (2 * step))
    assert relative_gap(trained, torch.tensor(slopes, dtype=torch.float64)) < 1e-7


def plain_loss(ratio: float, advantage: float) -> float:
    """One token's loss at clip 0.5 / 3.0 and dual clip 3 (specification section 3)."""
    clipped = min(max(ratio, 0.5), 4.0)
    if advantage >= 0:
        return -min(ratio * advantage, clipped * advantage)
    return min(-3.0 * advantage, max(-ratio * advantage, -clipped * advantage))


@pytest.mark.parametrize("name", sorted(EXACT))
@pytest.mark.parametrize("level", LEVELS)
def test_gradient_of_the_scales_through_the_policy_loss(name: str, level: str) -> None:
    """The chain from s_l over log-probs, ratio and clip to the loss, at every level of the ratio.

    The stop-gradients of the specification are constants of the finite difference: the aggregate A_t and sg[log p_t]
    are taken at the unmoved s, and log r_t = A_t + log p_t(s) - sg[log p_t] is followed in plain Python.
    """
    model, batch = EXACT[name](), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, std=0.1)
    mask = (batch.attention_mask[:, 1:] * batch.attention_mask[:, :-1]).bool()
    mask[:, 3] = False  # a hole: tool output
    turns = (torch.arange(mask.shape[1]) >= 3).long().expand(mask.shape)
    advantages = torch.linspace(-1.3, 1.7, len(EIGHT), dtype=torch.float64)

    def log_probs() -> Tensor:
        every = logits_of(model, batch)[:, :-1].log_softmax(-1)
        return every.gather(-1, batch.ids[:, 1:, None]).squeeze(-1)

    with torch.no_grad(), active(perturbation, batch):
        centre = log_probs()
    generator = torch.Generator().manual_seed(12)
    spread = 0.9 if level == "token" else 0.3
    rollout = centre + spread * torch.randn(centre.shape, generator=generator, dtype=torch.float64)
    with active(perturbation, batch):
        ratio = log_ratio(log_probs(), rollout, mask, level=level, turn_ids=turns if level.startswith("turn") else None)
        loss, figures = policy_loss(ratio, advantages, mask, clip_low=0.5, clip_high=3.0, dual_clip=3.0)
        loss.backward()
    trained = flat([parameter.grad for parameter in scales(perturbation) if parameter.grad is not None])

    aggregates = reference.log_ratio(centre.tolist(), rollout.tolist(), mask.tolist(), level, turns.tolist()).values

    def followed() -> float:
        with torch.no_grad(), active(perturbation, batch):
            now = log_probs()
        total = 0.0
        for b, t in mask.nonzero().tolist():
            moved = aggregates[b][t] + float(now[b, t] - centre[b, t])
            total += plain_loss(math.exp(moved), float(advantages[b]))
        return total / int(mask.sum())

    assert followed() == pytest.approx(float(loss.detach()), rel=1e-9)
    assert level != "token" or 0 < sum(figures.values()) < 1, "some tokens are clipped, not all"
    step, slopes = 1e-5, []
    for index in range(trained.numel()):
        nudge(perturbation, index, step)
        above = followed()
        nudge(perturbation, index, -2 * step)
        below = followed()
        nudge(perturbation, index, step)
        slopes.append((above - below) / (2 * step))
    assert relative_gap(trained, torch.tensor(slopes, dtype=torch.float64)) < 1e-6


@pytest.mark.parametrize("layers", ["all", "logits"])
def test_gradient_of_the_weights_is_the_finite_difference(layers: str) -> None:
    """A hook that cuts the graph, so that weights below the first perturbed layer stop learning."""
    model, batch = gpt2(), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, layers=layers, std=0.1)
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    weights, _ = gradients(model, perturbation, [batch])
    values, step = [], 1e-6
    for delta in (step, -2 * step):
        with torch.no_grad(), active(perturbation, batch):
            for parameter, way in zip(parameters, direction, strict=True):
                parameter += delta * way
            values.append(float(loss_of(model, batch)))
    slope = (values[0] - values[1]) / (2 * step)
    assert float(weights @ flat(direction)) == pytest.approx(slope, rel=1e-6)


@both_scales
@both_models
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layers", ["all", (1, 2)])
def test_checkpointing_changes_no_bit(name: str, reentrant: bool, layers: Any, scale: str) -> None:
    """Recomputed layers that draw other noise: silently wrong gradients of weights and scales."""
    model, batches = BUILDERS[name](), [collate(EIGHT[:5]), collate(EIGHT[5:])]
    perturbation = LayerwisePerturbation(model, scale=scale, layers=layers, std=0.2)
    weights, trained = gradients(model, perturbation, batches)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    w, s = gradients(model, perturbation, batches)
    assert torch.equal(w, weights)
    assert torch.equal(s, trained)


class Stage:
    """A checkpointed model with its right gradients: of the plain loss, and of the perturbed one at update 5."""

    def __init__(self, name: str, reentrant: bool) -> None:
        self.model, self.batch = BUILDERS[name](), collate(EIGHT)
        self.plain = gradients(self.model, None, [self.batch])[0], torch.zeros(0)
        self.perturbation = LayerwisePerturbation(self.model, std=0.2)
        self.perturbed = gradients(self.model, self.perturbation, [self.batch])
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        self.clear()

    def clear(self) -> None:
        """Drops all gradients."""
        self.model.zero_grad()
        for parameter in scales(self.perturbation):
            parameter.grad = None

    def inside(self, update: int = 5) -> Any:
        """The active context of the batch."""
        return active(self.perturbation, self.batch, update)

    def loss(self) -> Tensor:
        """One forward."""
        return loss_of(self.model, self.batch)

    def perturbed_loss(self) -> Tensor:
        """One forward at update 5."""
        with self.inside():
            return self.loss()

    def found(self) -> tuple[Tensor, Tensor]:
        """The gradients that a backward pass left."""
        groups = (list(self.model.parameters()), scales(self.perturbation))
        weights, trained = ([p.grad for p in group if p.grad is not None] for group in groups)
        return flat(weights), flat(trained or [torch.zeros(0)])


def backward_outside(stage: Stage) -> None:
    """Forward inside, backward after the context."""
    stage.perturbed_loss().backward()


def backward_outside_after_evaluation(stage: Stage) -> None:
    """The same with an unperturbed forward between."""
    loss = stage.perturbed_loss()
    with torch.no_grad():
        stage.loss()
    loss.backward()


def backward_in_another_update(stage: Stage) -> None:
    """The same inside the context of another update."""
    loss = stage.perturbed_loss()
    with stage.inside(update=6):
        loss.backward()


def plain_backward_inside(stage: Stage) -> None:
    """Forward outside, backward inside."""
    loss = stage.loss()
    with stage.inside():
        loss.backward()


@both_models
@either_checkpoint
@pytest.mark.parametrize(
    "order",
    [backward_outside, backward_outside_after_evaluation, backward_in_another_update, plain_backward_inside],
    ids=lambda order: order.__name__,
)
def test_backward_elsewhere_is_an_error_or_right(name: str, reentrant: bool, order: Callable[[Stage], None]) -> None:
    """A recomputation outside its forward's own context: no noise or other noise, and wrong gradients in silence."""
    stage = Stage(name, reentrant)
    try:
        order(stage)
    except RuntimeError:
        return
    expected = stage.plain if order is plain_backward_inside else stage.perturbed
    weights, trained = stage.found()
    assert torch.equal(weights, expected[0])
    assert torch.equal(trained, expected[1])


@both_models
@either_checkpoint
def test_plain_backward_survives_an_update_in_between(name: str, reentrant: bool) -> None:
    """An unperturbed forward and its backward, both outside, are those of the untouched model whatever ran between."""
    stage = Stage(name, reentrant)
    loss = stage.loss()
    with stage.inside():
        stage.loss().backward()
    stage.clear()
    loss.backward()
    weights, trained = stage.found()
    assert torch.equal(weights, stage.plain[0])
    assert torch.equal(trained, stage.plain[1])


@both_scales
def test_autograd_saves_no_full_size_noise(scale: str) -> None:
    """Memory: nothing of hidden size per layer is among what autograd saves."""
    model, batch = gpt2(), collate(EIGHT)

    def stored() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            try:
                loss = loss_of(model, batch)
            except RuntimeError as error:
                if "torch.func transforms" not in str(error):
                    raise
                pytest.skip("the attention mask of this transformers is made where this torch allows no such hooks")
        loss.backward()
        return sum(sizes.values())

    bare = stored()
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    with active(perturbation, batch):
        extra = stored() - bare
    assert extra < batch.ids.numel() * HIDDEN


@both_scales
@both_models
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointing", "reentrant"])
@pytest.mark.parametrize("kept", [0, 1, 100])
def test_noise_kept_or_drawn_again_is_the_same(
    name: str, checkpointing: bool | None, kept: int, monkeypatch: pytest.MonkeyPatch, scale: str
) -> None:
    """Kept noise that is not what would be drawn: gradients would depend on the memory that there happened to be."""
    model, batches = BUILDERS[name](), [collate(EIGHT[:5]), collate(EIGHT[5:])]
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    draws = 0
    draw = Normals.draw

    def counting(self: Normals, keys: Tensor) -> Tensor:
        nonlocal draws
        draws += 1
        return draw(self, keys)

    monkeypatch.setattr(Normals, "draw", counting)
    monkeypatch.setattr(alp.policy.noise, "KEPT_BYTES", 0)
    expected = gradients(model, perturbation, batches)
    assert draws == 2 * 2 * LAYERS
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    draws = 0
    monkeypatch.setattr(alp.policy.noise, "KEPT_BYTES", kept * 5 * 10 * HIDDEN * 4)
    for mine, plain in zip(gradients(model, perturbation, batches), expected, strict=True):
        assert torch.equal(mine, plain)
    if checkpointing is None:
        assert draws == 2 * LAYERS + {0: 2 * LAYERS, 1: 2 * (LAYERS - 1), 100: 0}[kept]


@both_scales
def test_a_second_backward_draws_again_and_room_is_given_back(monkeypatch: pytest.MonkeyPatch, scale: str) -> None:
    """Room that is never free again: after some updates nothing would be kept, for good."""
    model, batch = BUILDERS["gpt2"](), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    monkeypatch.setattr(alp.policy.noise, "KEPT_BYTES", LAYERS * batch.ids.numel() * HIDDEN * 4)
    shape = torch.Size((LAYERS * batch.ids.numel(), HIDDEN))
    with active(perturbation, batch):
        loss = loss_of(model, batch)
        assert alp.policy.noise._room(shape) is None
        loss.backward(retain_graph=True)
        once = scales(perturbation)[0].grad
        assert once is not None
        once = once.clone()
        assert alp.policy.noise._room(shape) is not None
        loss.backward()
    assert torch.equal(scales(perturbation)[0].grad, 2 * once)
    with active(perturbation, batch):
        dropped = loss_of(model, batch)
        assert alp.policy.noise._room(shape) is None
    del dropped
    assert alp.policy.noise._room(shape) is not None
