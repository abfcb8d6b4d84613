"""The configuration of turns with a tool between them (docs/tools.md)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from alp.configuration.fields import NonNegative, Positive, PositiveFloat, Strict


class Tools(Strict):
    """The rules of an episode, and its tool: ``python`` in the sandbox, or a class ``Tool`` of the user's own in
    ``module``, made with ``options``."""

    tool: Literal["python", "custom"]
    """``python``: programs in the sandbox (docs/sandbox.md); ``custom``: a class of your own."""
    module: str | None
    """Dotted name of the module that defines your class ``Tool``; of ``tool = custom`` alone."""
    options: dict[str, Any]
    """What that class is made with."""
    libraries: list[str]
    """Installed packages that programs find loaded."""
    timeout: PositiveFloat
    """Seconds of CPU time of a program."""
    workers: Positive
    """Programs that run beside each other."""
    turns: Positive
    """Turns of an episode at most."""
    context: Positive
    """Tokens of prompt, turns and observations together."""
    observation_characters: NonNegative
    """Characters of an observation, what a tool said, before it is cut."""
    observation_tokens: Positive
    """Tokens of an observation with its frame."""
    leave_out_void: bool
    """Whether a trajectory with a turn of neither tool nor answer leaves the loss."""

    @model_validator(mode="after")
    def _own(self) -> Tools:
        if (self.module is not None or self.options) and self.tool != "custom":
            raise ValueError(f"module and options are of tool = custom, and the tool is {self.tool}")
        return self
