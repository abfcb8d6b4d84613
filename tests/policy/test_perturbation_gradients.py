"""Gradients under the perturbation: batching, finite differences, checkpointing, and where the backward pass runs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alp.policy import LayerwisePerturbation

from .models import (
    BUILDERS,
    HIDDEN,
    Batch,
    active,
    collate,
    flat,
    gpt2,
    gradients,
    loss_of,
    nudge,
    relative_gap,
    scales,
)

both_models = pytest.mark.parametrize("name", sorted(BUILDERS))
either_checkpoint = pytest.mark.parametrize("reentrant", [True, False])
EIGHT = list(range(8))


@pytest.mark.parametrize(("name", "tolerance"), [("gpt2", 1e-12), ("qwen2", 1e-5)])
@pytest.mark.parametrize("layers", ["all", "logits", (1, 3)])
def test_gradients_do_not_depend_on_the_batching(name: str, tolerance: float, layers: Any) -> None:
    """Noise keyed by the row or column of a tensor: micro-batches, order, side and width of the padding."""
    model = BUILDERS[name]()
    perturbation = LayerwisePerturbation(model, layers=layers, std=0.2)
    weights, trained = gradients(model, perturbation, [collate(EIGHT)])
    assert trained.norm() > 0
    splits: dict[str, list[Batch]] = {
        "two of four": [collate(EIGHT[:4]), collate(EIGHT[4:])],
        "eight of one": [collate([i]) for i in EIGHT],
        "shuffled": [collate([3, 7, 1, 0]), collate([2, 6, 5, 4])],
        "left": [collate(EIGHT, side="left")],
        "left, wider": [collate(EIGHT[:4], side="left", width=13), collate(EIGHT[4:], width=11)],
    }
    for what, batches in splits.items():
        w, s = gradients(model, perturbation, batches)
        assert relative_gap(w, weights) < tolerance, what
        assert relative_gap(s, trained) < tolerance, what
    other = gradients(model, perturbation, [collate(EIGHT)], update=6)
    assert relative_gap(other[0], weights) > 1e-3
    assert relative_gap(other[1], trained) > 1e-3


@pytest.mark.parametrize("layers", ["all", "logits", [0, 2]])
def test_gradient_of_the_scales_is_the_finite_difference(layers: Any) -> None:
    """A missing factor sigma, a gradient of another draw, or one layer's gradient in another's place."""
    model, batch = gpt2(), collate(EIGHT)
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


@both_models
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layers", ["all", (1, 2)])
def test_checkpointing_changes_no_bit(name: str, reentrant: bool, layers: Any) -> None:
    """Recomputed layers that draw other noise: silently wrong gradients of weights and scales."""
    model, batches = BUILDERS[name](), [collate(EIGHT[:5]), collate(EIGHT[5:])]
    perturbation = LayerwisePerturbation(model, layers=layers, std=0.2)
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


def test_backward_keeps_no_full_size_noise() -> None:
    """Memory: the draw is repeated in the backward pass, not stored (one hidden-sized tensor per layer)."""
    model, batch = gpt2(), collate(EIGHT)

    def stored() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(model, batch)
        loss.backward()
        return sum(sizes.values())

    bare = stored()
    perturbation = LayerwisePerturbation(model, std=0.2)
    with active(perturbation, batch):
        extra = stored() - bare
    assert extra < batch.ids.numel() * HIDDEN
