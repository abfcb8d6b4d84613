"""Turns with a tool between them: what a model writes in the tool's form is handed to it, and what it says comes
back."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from alp.configuration.tool_schema import Tools
from alp.tasks.environment import Environment, Form, Step, Turn, first
from alp.tasks.task import Problem

# Tools by name. Lazy: neither importing this nor making one tool imports the code of another.
TOOLS = {
    "python": "alp.tasks.python_tool:PythonTool",
    "custom": "alp.tasks.own_tool:OwnTool",
}
Answer = Callable[[Turn], str | None]


class Said(NamedTuple):
    """What a tool says, and whether it could do what it was asked."""

    output: str
    valid: bool


class Tool(Protocol):
    """What does the work; ``form`` is how a model asks for it."""

    form: Form
    before: str
    after: str

    def run(self, request: str) -> Said:
        """Do what stands in the form. Called from several threads."""
        ...

    def check(self) -> None:
        """See Environment."""
        ...

    def describe(self) -> dict[str, Any]:
        """See Environment."""
        ...

    def close(self) -> None:
        """See Environment."""
        ...


class ToolLoop(Environment):
    """``answer`` finds the text to be graded in a turn that asks for no tool, None where there is none; ``ends`` are
    forms that end such a turn."""

    def __init__(self, settings: Tools, answer: Answer, ends: Sequence[Form] = ()) -> None:
        self._settings, self._answer = settings, answer
        self.tool = tool_of(settings)
        self.turns, self.context, self.workers = settings.turns, settings.context, settings.workers
        self.observation_tokens, self.leave_out_void = settings.observation_tokens, settings.leave_out_void
        self.forms = (self.tool.form, *ends)
        self.before, self.after = self.tool.before, self.tool.after

    def step(self, problem: Problem, turns: Sequence[Turn]) -> Step:
        """See Environment: the form that begins first decides."""
        del problem
        turn = turns[-1]
        found = first(turn.text, self.forms)
        if found is None or found.form != self.tool.form:
            return Step(answer=self._answer(turn))
        output, valid = self.tool.run(found.content)
        return Step(observation=self.shown(output, valid=valid), valid=valid)

    def shown(self, output: str, *, valid: bool) -> str:
        """What of an output the model is shown."""
        del valid
        return output[: self._settings.observation_characters]

    def check(self) -> None:
        """See Environment."""
        self.tool.check()

    def describe(self) -> dict[str, Any]:
        """See Environment."""
        rules = {"observation_characters": self._settings.observation_characters, "workers": self.workers}
        return super().describe() | rules | {"leave_out_void": self.leave_out_void} | self.tool.describe()

    def close(self) -> None:
        """See Environment."""
        self.tool.close()


def tool_of(settings: Tools) -> Tool:
    """The tool of a configuration."""
    module, _, name = TOOLS[settings.tool].partition(":")
    tool: Tool = getattr(importlib.import_module(module), name)(settings)
    return tool
