"""The configuration of ``alp plan``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from alp.configuration.fields import Name, Positive, PositiveFloat, Strict
from alp.errors import nearest

_Part = Annotated[float, Field(gt=0, le=1)]


class Device(Strict):
    """Memory, FLOPs a second of products of matrices, and what part of them each kind of work reaches."""

    memory_gib: PositiveFloat
    """Memory, GiB."""
    tflops: PositiveFloat
    """Peak of products of matrices, 10¹² FLOPs a second."""
    update: _Part
    """Share of the peak that updates reach."""
    score: _Part
    """Share of the peak that scoring reaches."""
    sample: _Part
    """Share of the peak that sampling reaches."""


class Shape(Strict):
    """What ``configs/model/<name>.yaml`` does not say of a pretrained model."""

    key_value_heads: Positive
    """Heads of keys and values."""
    vocabulary: Positive
    """Tokens of the vocabulary."""
    tied: bool
    """Whether the head is the embedding."""
    head_size: Positive | None = None
    """Width of a head; null: hidden / heads."""


class PlanConfig(Strict):
    """``grid`` is a name in ``configs/grid/`` or a path; ``results`` the root whose ``<grid>/`` may hold runs."""

    grid: str
    """A name in ``configs/grid/``, or the path of a grid file."""
    results: str
    """The root whose ``<grid>/`` may hold runs: what was measured there is taken before the assumptions."""
    device: Name | None
    """One of ``devices``, which every job is held against; null: cpu_core for the embedded model, else h100."""
    output: str | None
    """A file for the plan as JSON; null: none."""
    fill: _Part
    """Share of ``max_new_tokens`` that a response takes, of all turns together what they may."""
    prompt_tokens: Positive | None
    """Tokens of a prompt with its chat markup; null: 8 for the embedded model, else 256."""
    problems: dict[Name, Positive]
    """Problems of evaluation sets that are not on this machine yet, by set."""
    devices: dict[Name, Device]
    """Devices by name."""
    shapes: dict[Name, Shape]
    """Shapes of models that are not on this machine yet, by model."""

    @model_validator(mode="after")
    def _known(self) -> PlanConfig:
        if self.device is not None and self.device not in self.devices:
            raise ValueError(f"device: no device '{self.device}'{nearest(self.device, self.devices)}")
        return self
