"""``task=mathematics_tools``: the problems and the grading of ``mathematics``, with a tool between turns."""

from __future__ import annotations

from alp.configuration.task_schema import MathematicsToolsTask
from alp.tasks.environment import BOX, Turn, first
from alp.tasks.mathematics import Mathematics
from alp.tasks.tool_loop import ToolLoop


class MathematicsTools(Mathematics):
    """A turn with a closed box is the answer; one with a program before it is not."""

    def __init__(self, config: MathematicsToolsTask) -> None:
        super().__init__(config)
        self.environment = ToolLoop(config.tools, _answer, ends=(BOX,))


def _answer(turn: Turn) -> str | None:
    return None if first(turn.text, (BOX,)) is None else turn.text
