"""Tiny random models, ragged batches, and probes that read the injected noise from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, Qwen2Config, Qwen2ForCausalLM

from alp.policy import LayerwisePerturbation

both_scales = pytest.mark.parametrize("scale", ["absolute", "relative"])
VOCABULARY, HIDDEN, LAYERS, CONTEXT = 50, 32, 3, 256


def gpt2(
    dtype: torch.dtype = torch.float64, *, layers: int = LAYERS, hidden: int = HIDDEN, vocabulary: int = VOCABULARY
) -> GPT2LMHeadModel:
    """A random GPT-2 without dropout: float64 throughout where `dtype` says so."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=hidden,
        n_layer=layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return GPT2LMHeadModel(config).to(dtype).train()


def qwen2(dtype: torch.dtype = torch.float32, *, layers: int = LAYERS) -> Qwen2ForCausalLM:
    """A random Qwen2 with grouped key-value heads and rotary positions."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(8)
        return Qwen2ForCausalLM(config).to(dtype).train()


def gpt_neox(dtype: torch.dtype = torch.float64, *, layers: int = LAYERS) -> GPTNeoXForCausalLM:
    """A random GPT-NeoX: parallel residual branches, rotary positions, float64 throughout where `dtype` says so."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        attn_implementation="sdpa",  # the eager softmax is float32
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(9)
        return GPTNeoXForCausalLM(config).to(dtype).train()


BUILDERS = {"gpt2": gpt2, "qwen2": qwen2}
EXACT = {"gpt2": gpt2, "gpt_neox": gpt_neox}  # float64 from end to end, norms included


@dataclass
class Batch:
    """One padded batch; `coefficients` weigh the log-prob of each token in the loss."""

    ids: Tensor
    attention_mask: Tensor
    sequence_ids: Tensor
    coefficients: Tensor

    @property
    def position_ids(self) -> Tensor:
        """Positions that count real tokens."""
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)


def lengths(count: int, longest: int = 10) -> list[int]:
    """Different lengths of at least 3."""
    return [3 + (5 * i) % (longest - 2) for i in range(count)]


def collate(which: Sequence[int], *, side: str = "right", width: int = 10) -> Batch:
    """Sequences by number: the same number is the same sequence (ids, coefficients, id) in every batch."""
    batch = Batch(
        torch.zeros(len(which), width, dtype=torch.long),
        torch.zeros(len(which), width, dtype=torch.long),
        torch.tensor([1000 + 17 * i for i in which]),
        torch.zeros(len(which), width, dtype=torch.float64),
    )
    for row, number in enumerate(which):
        generator = torch.Generator().manual_seed(100 + number)
        size = lengths(number + 1)[-1]
        place = slice(0, size) if side == "right" else slice(width - size, width)
        batch.ids[row, place] = torch.randint(VOCABULARY, (size,), generator=generator)
        batch.attention_mask[row, place] = 1
        batch.coefficients[row, place] = torch.randn(size, generator=generator, dtype=torch.float64)
    return batch


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Logits with the mask and positions that padding asks for."""
    logits: Tensor = model(
        input_ids=batch.ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
    ).logits
    return logits


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Weighted sum of the log-probs of all real tokens but each sequence's first."""
    log_probs = logits_of(model, batch)[:, :-1].log_softmax(-1)
    chosen = log_probs.gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    real = (batch.attention_mask[:, 1:] * batch.attention_mask[:, :-1]).bool()
    weighted = chosen * batch.coefficients[:, 1:].to(chosen.dtype)
    return weighted.masked_fill(~real, 0.0).sum()


def scales(perturbation: LayerwisePerturbation) -> list[Tensor]:
    """The s_l parameters."""
    return list(perturbation.parameters())


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors laid end to end."""
    return torch.cat([t.reshape(-1) for t in tensors])


def nudge(perturbation: LayerwisePerturbation, index: int, delta: float) -> None:
    """Adds to one s_l in place."""
    with torch.no_grad():
        for parameter in scales(perturbation):
            if index < parameter.numel():
                parameter.view(-1)[index] += delta
                return
            index -= parameter.numel()
    raise IndexError(index)


def active(perturbation: LayerwisePerturbation, batch: Batch, update: int = 5) -> Any:
    """The active context of a padded batch."""
    return perturbation.active(update=update, sequence_ids=batch.sequence_ids, attention_mask=batch.attention_mask)


def gradients(
    model: nn.Module, perturbation: LayerwisePerturbation | None, batches: Sequence[Batch], update: int = 5
) -> tuple[Tensor, Tensor]:
    """Gradients of the summed loss in all weights and in all s_l, accumulated over micro-batches."""
    model.zero_grad()
    trained = [] if perturbation is None else scales(perturbation)
    for parameter in trained:
        parameter.grad = None
    for batch in batches:
        if perturbation is None:
            loss_of(model, batch).backward()
        else:
            with active(perturbation, batch, update):
                loss_of(model, batch).backward()
    weights = flat([p.grad for p in model.parameters() if p.grad is not None])
    return weights, flat([p.grad for p in trained if p.grad is not None] or [torch.zeros(0)])


def relative_gap(actual: Tensor, expected: Tensor) -> float:
    """Distance of two vectors over the norm of the second."""
    assert actual.shape == expected.shape
    if torch.equal(actual, expected):  # a correction that drops everything leaves nothing to divide by
        return 0.0
    return float((actual - expected).double().norm() / expected.double().norm())


@dataclass
class Probe:
    """Hidden states per layer: as they left the layer before, and as the layer's input norm received them."""

    before: dict[int, Tensor] = field(default_factory=dict)
    after: dict[int, Tensor] = field(default_factory=dict)

    def noise(self, layer: int) -> Tensor:
        """What was added before this layer, in the wider dtype."""
        wide = torch.promote_types(self.before[layer].dtype, torch.float32)
        return self.after[layer].to(wide) - self.before[layer].to(wide)


@contextmanager
def probe(model: nn.Module) -> Iterator[Probe]:
    """Watches the inputs of the input norms with hooks of its own on neighbouring modules."""
    seen = Probe()
    if isinstance(model, GPT2LMHeadModel):
        first: nn.Module = model.transformer.drop
        layers = list(model.transformer.h)
        norms: list[nn.Module] = [layer.ln_1 for layer in layers]
    else:
        assert isinstance(model, Qwen2ForCausalLM)
        first = model.model.embed_tokens
        layers = list(model.model.layers)
        norms = [layer.input_layernorm for layer in layers]

    def left(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.before[layer] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        return hook

    def arrives(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            seen.after[layer] = inputs[0].detach().clone()

        return hook

    handles = [m.register_forward_hook(left(i)) for i, m in enumerate([first, *layers[:-1]])]
    handles += [m.register_forward_pre_hook(arrives(i)) for i, m in enumerate(norms)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def injected(model: nn.Module, perturbation: LayerwisePerturbation, batch: Batch, update: int = 5) -> dict[int, Tensor]:
    """Noise that each layer received in one perturbed forward."""
    with torch.no_grad(), probe(model) as seen, active(perturbation, batch, update):
        logits_of(model, batch)
    return {layer: seen.noise(layer) for layer in seen.after}
