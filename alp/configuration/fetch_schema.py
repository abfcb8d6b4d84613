"""The configuration of ``alp fetch``."""

from __future__ import annotations

from pydantic import model_validator

from alp.configuration.fields import Strict
from alp.configuration.model_schema import Model
from alp.configuration.run_schema import Run


class FetchConfig(Strict):
    """Which pretrained model is fetched, and where to."""

    model: Model
    """The pretrained model."""
    run: Run
    """Where its folder goes."""

    @model_validator(mode="after")
    def _has_source(self) -> FetchConfig:
        if self.model.source is None:
            raise ValueError(f"model '{self.model.name}' has no source to fetch it from: `alp pretrain` makes it")
        return self
