"""A model's size, and what a token costs: parameters, FLOPs, bytes. No torch.

FLOPs of a token are 2 for each parameter that multiplies it and 2 · layers · width · length for attention to half of
``length`` tokens on average (causal); a backward pass is twice a forward one. Bytes of memory are those of what is held
by name (weights, gradients, moments, copies, cache) and an estimate of activations.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from alp.configuration.model_schema import Model
from alp.configuration.plan_schema import Shape
from alp.errors import UserError

GIB = 2**30
EMBEDDED_VOCABULARY = 20  # characters and marks of the taught model: about
FLOAT32, BFLOAT16 = 4, 2  # bytes
_INSIDE = 10  # widths of hidden states that a layer keeps for its backward, beside three of its intermediate


@dataclass(frozen=True)
class Size:
    """Of a decoder: ``matrices`` are the parameters that multiply every token, the head included; ``parameters`` all
    of them, an embedding that is the head once."""

    layers: int
    hidden: int
    intermediate: int
    width: int  # of attention: heads times their size
    key_value_width: int
    vocabulary: int
    tied: bool

    @property
    def in_layers(self) -> int:
        """Parameters of the layers' matrices."""
        attention = 2 * self.hidden * self.width + 2 * self.hidden * self.key_value_width
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def matrices(self) -> int:
        return self.in_layers + self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.in_layers + (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def put_together(self) -> float:
        """Parameters that a model in shards has whole at a time: all outside its layers, and two of those."""
        return self.parameters - self.in_layers * (1 - min(2 / self.layers, 1.0))

    def forward_flops(self, length: float) -> float:
        """Of one token in a sequence of ``length``."""
        return 2.0 * self.matrices + 2.0 * self.layers * self.width * length

    def activation_bytes(self, tokens: float, *, checkpointing: bool) -> float:
        """Of a forward of ``tokens`` under bfloat16 autocast that a backward is to follow: an estimate."""
        inside = BFLOAT16 * (_INSIDE * self.hidden + 2 * self.width + 3 * self.intermediate)
        kept = FLOAT32 * self.hidden * self.layers
        return tokens * (kept + (1 if checkpointing else self.layers) * inside)

    def cache_bytes(self, tokens: float) -> float:
        """Keys and values in bfloat16."""
        return 2.0 * BFLOAT16 * self.layers * self.key_value_width * tokens

    def adapter(self, rank: int) -> int:
        """Parameters of a low-rank adapter in every linear layer."""
        kv = self.key_value_width
        sides = 2 * (self.hidden + self.width) + 2 * (self.hidden + kv) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * sides


def size_of(model: Model, shapes: dict[str, Shape], folder: Path, *, taught: bool) -> Size:
    """From the model's own ``config.json`` where ``folder`` holds it, else from its configuration, of one that is not
    ``taught`` here with ``shapes``.

    Raises UserError for a pretrained model that neither says enough of.
    """
    if (folder / "config.json").is_file():
        return _from_file(folder / "config.json")
    if taught:
        return Size(
            model.layers, model.hidden, model.intermediate, model.hidden, model.hidden, EMBEDDED_VOCABULARY, True
        )
    shape = shapes.get(model.name)
    if shape is None:
        raise UserError(
            f"plan: nothing says how many tokens the model {model.name} knows: `alp fetch` it, or give"
            f" 'shapes={{{model.name}: {{key_value_heads: …, vocabulary: …, tied: …}}}}'"
        )
    head = shape.head_size or model.hidden // model.heads
    return Size(
        model.layers,
        model.hidden,
        model.intermediate,
        model.heads * head,
        shape.key_value_heads * head,
        shape.vocabulary,
        shape.tied,
    )


def _from_file(path: Path) -> Size:
    """Of ``config.json`` as transformers writes it. Raises UserError for one that lacks a figure."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        plain = plain.get("text_config", plain)
        heads = int(plain["num_attention_heads"])
        head = int(plain.get("head_dim") or plain["hidden_size"] // heads)
        return Size(
            int(plain["num_hidden_layers"]),
            int(plain["hidden_size"]),
            int(plain["intermediate_size"]),
            heads * head,
            int(plain.get("num_key_value_heads") or heads) * head,
            int(plain["vocab_size"]),
            bool(plain.get("tie_word_embeddings", True)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"plan: {path} does not say the model's sizes ({type(error).__name__}: {error})") from None
