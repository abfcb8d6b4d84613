"""Tasks by name. A new task is a module beside this one and a line here."""

from __future__ import annotations

from alp.configuration.task_schema import ArithmeticTask, CustomTask, MathematicsTask, ReasoningGymTask, SumsInWordsTask
from alp.tasks import custom
from alp.tasks.arithmetic import Arithmetic
from alp.tasks.mathematics import Mathematics
from alp.tasks.reasoning import ReasoningGym
from alp.tasks.sums_in_words import SumsInWords
from alp.tasks.task import Task

TaskConfig = ArithmeticTask | SumsInWordsTask | MathematicsTask | ReasoningGymTask | CustomTask


def load_task(config: TaskConfig) -> Task:
    """The task of a configuration; its problems are read from ``config.data`` when that is set."""
    if isinstance(config, ArithmeticTask):
        return Arithmetic(config)
    if isinstance(config, SumsInWordsTask):
        return SumsInWords(config)
    if isinstance(config, MathematicsTask):
        return Mathematics(config)
    if isinstance(config, ReasoningGymTask):
        return ReasoningGym(config)
    return custom.load(config)
