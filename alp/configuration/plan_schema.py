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
    tflops: PositiveFloat
    update: _Part
    score: _Part
    sample: _Part


class Shape(Strict):
    """What ``configs/model/<name>.yaml`` does not say of a pretrained model."""

    key_value_heads: Positive
    vocabulary: Positive
    tied: bool  # the head is the embedding
    head_size: Positive | None = None  # null: hidden / heads


class PlanConfig(Strict):
    """``grid`` is a name in ``configs/grid/`` or a path; ``results`` the root whose ``<grid>/`` may hold runs."""

    grid: str
    results: str
    device: Name | None
    output: str | None
    fill: _Part
    prompt_tokens: Positive | None
    problems: dict[Name, Positive]
    devices: dict[Name, Device]
    shapes: dict[Name, Shape]

    @model_validator(mode="after")
    def _known(self) -> PlanConfig:
        if self.device is not None and self.device not in self.devices:
            raise ValueError(f"device: no device '{self.device}'{nearest(self.device, self.devices)}")
        return self
