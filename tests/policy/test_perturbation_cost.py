"""What the noise may cost in memory, and what `torch.compile` makes of it."""

from __future__ import annotations

import contextlib
import shutil
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import alp.policy.noise
from alp.policy import LayerwisePerturbation
from benchmarks.memory import peak_bytes

from .models import BUILDERS, Batch, active, both_scales, collate, gradients, logits_of, loss_of, relative_gap

EIGHT = list(range(8))
# The largest relative distance from eager. Inductor compiles C++ on a CPU: it is tried where there is a compiler.
BACKENDS = {"aot_eager": 0.0} | ({"inductor": 1e-5} if shutil.which("g++") else {})


def larger() -> tuple[Qwen2ForCausalLM, Batch]:
    """A model as deep as Qwen2.5-1.5B and a batch whose activations outweigh its weights."""
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=28,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Qwen2ForCausalLM(config).train()
    ids = torch.randint(64, (16, 128), generator=torch.Generator().manual_seed(0))
    return model, Batch(ids, torch.ones_like(ids), torch.arange(16), torch.ones(ids.shape))


@both_scales
@pytest.mark.parametrize(
    "checkpointing",
    [None, pytest.param(False, marks=pytest.mark.long), True],
    ids=["plain", "checkpointing", "reentrant"],
)
@pytest.mark.parametrize("kept", [0, 10], ids=["nothing_kept", "ten_layers_kept"])
def test_peak_memory_of_a_perturbed_update(
    checkpointing: bool | None, kept: int, monkeypatch: pytest.MonkeyPatch, scale: str
) -> None:
    """Noise, or a sum of hidden size, that lives until the backward: at most 2 % above the unperturbed update, as
    allocated, and the noise that may be kept on a CPU; of which 64 MB at most.

    The measure sees what it should: keeping one tensor of hidden size a layer, as the textbook way does, is found.
    """
    model, batch = larger()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.02)
    hidden = batch.ids.numel() * 128 * 4
    assert alp.policy.noise.KEPT_BYTES == 64 * 2**20
    monkeypatch.setattr(alp.policy.noise, "KEPT_BYTES", kept * hidden)

    def peak(context: Any) -> int:
        model.zero_grad(set_to_none=True)
        for parameter in perturbation.parameters():
            parameter.grad = None
        with context:
            return peak_bytes(lambda: loss_of(model, batch).backward())

    peak(active(perturbation, batch))  # the scratch is made once and kept
    plain, perturbed = peak(contextlib.nullcontext()), peak(active(perturbation, batch))
    assert plain > 28 * hidden
    assert perturbed <= 1.02 * plain + kept * hidden
    if checkpointing is None and not kept:
        kept: list[torch.Tensor] = []
        layers = list(model.model.layers)
        handles = [
            layer.register_forward_hook(lambda *_: kept.append(torch.empty(batch.ids.numel(), 128))) for layer in layers
        ]
        assert peak(active(perturbation, batch)) > plain + 26 * hidden
        for handle in handles:
            handle.remove()


@both_scales
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_model_is_the_eager_one(backend: str, scale: str) -> None:
    """Guards that do not see a block begin or end: noise that stays, stays away, or stays that of the first update."""
    torch._dynamo.reset()
    model, batch = BUILDERS["qwen2"](torch.float32), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    plain = gradients(model, None, [batch])[0]
    expected = {update: gradients(model, perturbation, [batch], update) for update in (5, 6)}
    compiled = torch.compile(model, backend=backend)
    for update in (5, 6, 5):
        weights, trained = gradients(compiled, perturbation, [batch], update)
        assert relative_gap(weights, expected[update][0]) <= BACKENDS[backend]
        assert relative_gap(trained, expected[update][1]) <= BACKENDS[backend]
    assert relative_gap(gradients(compiled, None, [batch])[0], plain) <= BACKENDS[backend]
    perturbation.detach()
    # Attaching to what torch.compile returned is attaching to the model inside.
    again = LayerwisePerturbation(compiled, scale=scale, std=0.2)
    assert again.hooks == 3
    assert torch.equal(gradients(model, again, [batch])[0], expected[5][0])
    torch._dynamo.reset()


def test_compiled_before_the_attachment_is_refused() -> None:
    """Dynamo does not look for hooks added later: without a check, the run would be unperturbed and say nothing."""
    torch._dynamo.reset()
    model, batch = BUILDERS["qwen2"](torch.float32), collate(EIGHT)
    compiled = torch.compile(model, backend="eager")
    logits_of(compiled, batch)
    perturbation = LayerwisePerturbation(model, std=0.2)
    with pytest.raises(RuntimeError, match="attach before compiling"), active(perturbation, batch):
        loss_of(compiled, batch)
    torch._dynamo.reset()


def test_a_block_that_perturbs_nothing_is_an_error() -> None:
    """Another model's forward, or none, inside the block: the update would be unperturbed in silence."""
    model, batch = BUILDERS["qwen2"](torch.float32), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, std=0.2)
    with pytest.raises(RuntimeError, match="no layer was perturbed"), active(perturbation, batch):
        logits_of(BUILDERS["qwen2"](torch.float32), batch)

    def stop(*_: Any) -> None:
        raise KeyError

    model.model.layers[0].register_forward_hook(stop)

    def forward_that_stops_early() -> None:
        with contextlib.suppress(KeyError):
            logits_of(model, batch)

    with pytest.raises(RuntimeError, match=r"layers \[1, 2\] were not perturbed"), active(perturbation, batch):
        forward_that_stops_early()


@both_scales
def test_backward_may_have_a_block_of_its_own(scale: str) -> None:
    """The check of the block must not refuse what is right: forward in one block, backward in the next of the same
    arguments."""
    model, batch = BUILDERS["gpt2"](), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    weights, trained = gradients(model, perturbation, [batch])
    model.zero_grad()
    for parameter in perturbation.parameters():
        parameter.grad = None
    with active(perturbation, batch):
        loss = loss_of(model, batch)
    with active(perturbation, batch):
        loss.backward()
    assert torch.equal(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), weights)
    assert torch.equal(torch.cat([p.grad.flatten() for p in perturbation.parameters() if p.grad is not None]), trained)
