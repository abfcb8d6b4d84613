"""Random models of a given shape, for benchmarks: what is measured does not depend on the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from alp.rollout import probe
from alp.rollout.engine import Probe
from alp.training.forward import sequence_log_probs


@dataclass(frozen=True)
class Shape:
    """A random Qwen2; what is done with it a benchmark's own description of a size adds."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int


def random_qwen2(shape: Shape, **more: Any) -> Any:
    """A Qwen2 on torch's default device, float32, from seed 0; ``more`` of its configuration, which ties embeddings
    unless it says otherwise."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            **({"tie_word_embeddings": True} | more),
        )
    )


def fixed_probe(model: Any, dtype: str) -> Probe:
    """What an engine's first answers are held against; ``dtype`` is what ``model`` computes in."""
    return Probe(
        probe.sequences([[2, 3, 4]], len(model.get_input_embeddings().weight), seed=0),
        lambda sequences, temperature: sequence_log_probs(model, sequences, temperature),
        dtype=dtype,
    )
