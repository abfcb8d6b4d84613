"""The configuration of ``alp pretrain``."""

from __future__ import annotations

from pydantic import model_validator

from alp.configuration.fields import Strict
from alp.configuration.model_schema import Model, Pretrain
from alp.configuration.run_schema import Run
from alp.configuration.task_schema import Task


class PretrainConfig(Strict):
    """How the embedded base model is taught."""

    task: Task
    """The task that is taught."""
    model: Model
    """Sizes of the embedded model."""
    pretrain: Pretrain
    """How it is taught."""
    run: Run
    """Where results go."""

    @model_validator(mode="after")
    def _embedded(self) -> PretrainConfig:
        if not self.task.teachable:
            raise ValueError(
                f"only the tasks arithmetic and calculator have worked solutions to teach, '{self.task.name}' has none"
            )
        if self.model.source is not None:
            raise ValueError(
                f"model '{self.model.name}' is not taught here: get it with `alp fetch model={self.model.name}`"
            )
        return self
