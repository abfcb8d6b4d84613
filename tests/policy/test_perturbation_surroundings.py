"""The noise in surroundings that a trainer may bring: autocast, inference mode, other threads, copies, shared
inputs."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alp.policy import LayerwisePerturbation
from alp.policy.streams import Normals, row_keys

from .models import (
    BUILDERS,
    HIDDEN,
    LAYERS,
    Batch,
    active,
    both_scales,
    collate,
    flat,
    gpt2,
    gradients,
    injected,
    logits_of,
    loss_of,
    qwen2,
    scales,
)

EIGHT = list(range(8))


def in_a_new_thread(work: Callable[[], Any]) -> Any:
    """The result of ``work``, run where no scratch was made before."""
    found: list[Any] = []

    def run() -> None:
        found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_default_dtype_does_not_reach_the_noise() -> None:
    """Scratch in the default dtype: bf16 noise, kept for every later update of the thread."""
    keys = row_keys(0, 0, torch.arange(50), torch.arange(50), 1)
    expected = Normals(32, 50, torch.device("cpu")).draw(keys).clone()
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn = Normals(32, 50, torch.device("cpu")).draw(keys)
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype is torch.float32
    assert torch.equal(drawn, expected)


@both_scales
def test_inference_mode_leaves_nothing_behind(scale: str) -> None:
    """Scratch made under inference mode cannot be written outside it: every later update of the thread would fail."""
    model, batch = gpt2(), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    weights, trained = gradients(model, perturbation, [batch])

    def probe_then_update() -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), active(perturbation, batch):
            logits_of(model, batch)
        return gradients(model, perturbation, [batch])

    w, s = in_a_new_thread(probe_then_update)
    assert torch.equal(w, weights)
    assert torch.equal(s, trained)


@both_scales
@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_autocast_does_not_lower_the_gradient_of_the_scales(inside: bool, scale: str) -> None:
    """Sums over the noise in bf16 where the backward runs under autocast."""
    model, batch = qwen2(), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    found = []
    for cast_backward in (False, inside):
        model.zero_grad()
        for parameter in scales(perturbation):
            parameter.grad = None
        with active(perturbation, batch):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=cast_backward):
                loss.backward()
        found.append(flat([parameter.grad for parameter in scales(perturbation) if parameter.grad is not None]))
    assert torch.equal(found[0], found[1])
    assert found[0].abs().sum() > 0


@both_scales
def test_logits_may_be_divided_in_place(scale: str) -> None:
    """Noise that comes as a view: `logits.div_(T)`, common in trainers, would fail under the noise alone."""
    batch, found = collate(EIGHT), []
    for in_place in (False, True):
        model = gpt2()
        perturbation = LayerwisePerturbation(model, scale=scale, layers="logits", std=0.2)
        with active(perturbation, batch):
            logits = logits_of(model, batch)
            (logits.div_(0.7) if in_place else logits / 0.7).log_softmax(-1).square().mean().backward()
        found.append(flat([parameter.grad for parameter in scales(perturbation) if parameter.grad is not None]))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("layers", ["all", "logits"])
def test_a_copy_of_the_model_is_not_perturbed(layers: str) -> None:
    """Hooks that come along with a copy: a reference or an engine made from the model would get the noise of the
    original."""
    model, batch = qwen2(), collate(EIGHT)
    plain = logits_of(model, batch)
    perturbation = LayerwisePerturbation(model, layers=layers, std=0.5)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        with active(perturbation, batch):
            assert torch.equal(logits_of(twin, batch), plain)
            assert not torch.equal(logits_of(model, batch), plain)


def test_another_thread_is_outside_the_block() -> None:
    """A rollout beside the update, on the same model: it must see the untouched one."""
    model, batch = qwen2(), collate(EIGHT)
    plain = logits_of(model, batch)
    perturbation = LayerwisePerturbation(model, std=0.5)
    with active(perturbation, batch):
        assert torch.equal(in_a_new_thread(lambda: logits_of(model, batch)), plain)
        assert not torch.equal(logits_of(model, batch), plain)


@both_scales
def test_backward_in_another_thread_is_the_same(scale: str) -> None:
    """Recomputation and draws in a worker of autograd."""
    model, batch = BUILDERS["gpt2"](), collate(EIGHT)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    weights, trained = gradients(model, perturbation, [batch])
    model.zero_grad()
    for parameter in scales(perturbation):
        parameter.grad = None
    with active(perturbation, batch):
        loss = loss_of(model, batch)
        in_a_new_thread(loss.backward)
    assert torch.equal(
        flat([parameter.grad for parameter in model.parameters() if parameter.grad is not None]), weights
    )
    assert torch.equal(
        flat([parameter.grad for parameter in scales(perturbation) if parameter.grad is not None]), trained
    )


class Layer(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.inner(self.norm(hidden))


class Config:
    """As much of a configuration as the package reads."""

    num_hidden_layers, is_encoder_decoder = 2, False

    def get_text_config(self, decoder: bool = True) -> Config:
        """The same."""
        return self


class OwnForCausalLM(nn.Module):
    """A model whose checkpoints run the whole layer again, hooks included, whatever transformers does."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.config, self.reentrant = Config(), reentrant
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(2)).double(), nn.Linear(HIDDEN, 5).double()

    def can_generate(self) -> bool:
        """Like any causal model."""
        return True

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=self.reentrant)
        return self.head(hidden).square().sum()


@pytest.fixture(params=[True, False], ids=["reentrant", "not reentrant"])
def own(request: pytest.FixtureRequest) -> OwnForCausalLM:
    """The handmade model."""
    return OwnForCausalLM(request.param)


def embeddings(rows: int = 4) -> Tensor:
    """Inputs of the caller's, with gradient."""
    return torch.randn(
        rows, 6, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).requires_grad_()


def test_recomputation_outside_or_in_another_block_is_refused(own: OwnForCausalLM) -> None:
    """Where a layer is really run again outside its block, it must be an error: never no noise, never other noise."""
    perturbation, ids = LayerwisePerturbation(own, std=0.2), torch.arange(4)
    for update in (None, 6):
        with perturbation.active(update=5, sequence_ids=ids):
            loss = own(embeddings())
        if update is None:
            with pytest.raises(RuntimeError, match="outside its active"):
                loss.backward()
        else:
            with (
                pytest.raises(RuntimeError, match="outside its active"),
                perturbation.active(update=update, sequence_ids=ids),
            ):
                (own(embeddings()) + loss).backward()


def test_one_input_with_two_noises_is_refused(own: OwnForCausalLM) -> None:
    """The input tells a repetition which forward it repeats: with one input for two updates it cannot, and must not
    guess."""
    perturbation, ids, shared = LayerwisePerturbation(own, std=0.2), torch.arange(4), embeddings()
    losses = {}
    for update in (5, 6):
        with perturbation.active(update=update, sequence_ids=ids):
            losses[update] = own(shared)
    with pytest.raises(RuntimeError, match="other noise"), perturbation.active(update=5, sequence_ids=ids):
        losses[5].backward()


@both_scales
def test_one_input_with_one_noise_and_slices_of_one_input_are_right(own: OwnForCausalLM, scale: str) -> None:
    """What can be told apart is: the same forward twice, and micro-batches that are slices of one tensor."""
    perturbation, ids = LayerwisePerturbation(own, scale=scale, std=0.2), torch.arange(4)

    def gradient(work: Callable[[Tensor], None]) -> Tensor:
        shared = embeddings()
        for parameter in [*own.parameters(), *scales(perturbation)]:
            parameter.grad = None
        work(shared)
        assert shared.grad is not None
        return flat(
            [shared.grad, *(parameter.grad for parameter in scales(perturbation) if parameter.grad is not None)]
        )

    def whole(shared: Tensor) -> None:
        with perturbation.active(update=5, sequence_ids=ids):
            own(shared).backward()

    def twice(shared: Tensor) -> None:
        with perturbation.active(update=5, sequence_ids=ids):
            with torch.no_grad():
                own(shared.detach())
            losses = [own(shared), own(shared)]
            (losses[0] / 2).backward()
            (losses[1] / 2).backward()

    def slices(shared: Tensor) -> None:
        parts = [slice(0, 1), slice(1, 4)]
        losses = []
        for part in parts:
            with perturbation.active(update=5, sequence_ids=ids[part]):
                losses.append(own(shared[part]))
        for part, loss in zip(parts, losses, strict=True):
            with perturbation.active(update=5, sequence_ids=ids[part]):
                loss.backward()

    expected = gradient(whole)
    for work in (twice, slices):
        assert torch.allclose(gradient(work), expected, rtol=1e-12, atol=1e-12), work.__name__


@both_scales
def test_padding_does_not_count_in_the_reported_sizes(scale: str) -> None:
    """Realised and hidden RMS over every token of a padded batch would follow its padding."""
    model = gpt2()
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.5)
    sizes = []
    for batch in (collate(EIGHT), collate(EIGHT, width=40), collate(EIGHT, side="left", width=23)):
        noise = injected(model, perturbation, batch)
        real = torch.stack(
            [noise[layer][batch.attention_mask.bool()].square().mean().sqrt() for layer in range(LAYERS)]
        )
        assert torch.allclose(perturbation.realised_rms.double(), real.double(), rtol=1e-6)
        sizes.append(torch.stack([perturbation.realised_rms, perturbation.hidden_rms]))
    assert torch.allclose(sizes[0], sizes[1], rtol=1e-6)
    assert torch.allclose(sizes[0], sizes[2], rtol=1e-6)


def test_sizes_are_those_of_the_last_forward() -> None:
    """A block for the backward alone has no forward: the figures of the one before must stay."""
    model, batch = gpt2(), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, std=0.5)
    with active(perturbation, batch):
        loss = loss_of(model, batch)
    before = perturbation.realised_rms
    with active(perturbation, batch):
        loss.backward()
    assert before.min() > 0.4
    assert torch.equal(perturbation.realised_rms, before)


def test_logits_have_a_stream_of_their_own() -> None:
    """Noise of the logits that repeats the noise of a layer."""
    model = gpt2(vocabulary=HIDDEN)
    batch = Batch(
        torch.zeros(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.long), torch.tensor([3, 4]), torch.zeros(2, 6)
    )
    layered = LayerwisePerturbation(model, std=0.5)
    noise = injected(model, layered, batch)
    layered.detach()
    plain = logits_of(model, batch)
    perturbation = LayerwisePerturbation(model, layers="logits", std=0.5)
    with torch.no_grad(), active(perturbation, batch):
        last = logits_of(model, batch) - plain
    for layer in range(LAYERS):
        assert (last - noise[layer]).abs().min() > 1e-9, layer


@pytest.mark.parametrize(
    ("state", "says"),
    [({"layers": [0, 1]}, "layers"), ({"seed": 4}, "seed"), ({"log_std": torch.zeros(0)}, "noise on in one")],
)
def test_states_of_another_perturbation_are_refused(state: dict[str, Any], says: str) -> None:
    """A checkpoint of other layers or another seed, taken up in silence."""
    perturbation = LayerwisePerturbation(gpt2(), std=0.2, seed=3)
    with pytest.raises(ValueError, match=says):
        perturbation.load_state_dict(perturbation.state_dict() | state)


def test_what_does_not_fit_is_refused_in_use() -> None:
    """Ids beyond their field, seeds beyond 64 bits, labels with noise on the logits, logits without positions."""
    model, batch = gpt2(), collate([0, 1])
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            LayerwisePerturbation(model, std=0.2, seed=seed)
    perturbation = LayerwisePerturbation(model, std=0.2)
    for ids in (torch.tensor([0, -1]), torch.tensor([0, 2**48])):
        with pytest.raises(ValueError, match="sequence"), perturbation.active(update=0, sequence_ids=ids):
            logits_of(model, batch)
    with (
        pytest.raises(ValueError, match="update"),
        perturbation.active(update=2**32, sequence_ids=torch.tensor([0, 1])),
    ):
        logits_of(model, batch)
    perturbation.detach()
    logits = LayerwisePerturbation(model, layers="logits", std=0.2)
    with pytest.raises(ValueError, match="attention_mask"), logits.active(update=0, sequence_ids=torch.tensor([0, 1])):
        logits_of(model, batch)
    with pytest.raises(RuntimeError, match="labels"), active(logits, batch):
        model(input_ids=batch.ids, attention_mask=batch.attention_mask, labels=batch.ids)


@both_scales
def test_compiled_and_checkpointed(scale: str) -> None:
    """Recomputation inside a compiled model."""
    torch._dynamo.reset()
    model, batch = qwen2(), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    expected = gradients(model, perturbation, [batch])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = gradients(torch.compile(model, backend="aot_eager"), perturbation, [batch])
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    torch._dynamo.reset()
