"""The configuration of turns with a tool between them (docs/tools.md)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from alp.configuration.fields import NonNegative, Positive, PositiveFloat, Strict


class Tools(Strict):
    """The rules of an episode, and its tool: ``python`` in the sandbox, or a class ``Tool`` of the user's own in
    ``module``, made with ``options``."""

    tool: Literal["python", "custom"]
    module: str | None
    options: dict[str, Any]
    libraries: list[str]  # installed packages that programs find loaded
    timeout: PositiveFloat  # seconds of CPU time of a program
    workers: Positive  # programs that run beside each other
    turns: Positive  # at most
    context: Positive  # tokens of prompt, turns and observations together
    observation_characters: NonNegative  # of what a tool said
    observation_tokens: Positive  # of an observation with its frame
    leave_out_void: bool  # whether a trajectory with a turn of neither tool nor answer leaves the loss

    @model_validator(mode="after")
    def _own(self) -> Tools:
        if (self.module is not None or self.options) and self.tool != "custom":
            raise ValueError(f"module and options are of tool = custom, and the tool is {self.tool}")
        return self
