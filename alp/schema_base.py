"""What every configuration model shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # becomes part of a path: it must not lead elsewhere


class Strict(BaseModel):
    """Unknown keys and wrong types are errors, and a loaded configuration cannot be changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
