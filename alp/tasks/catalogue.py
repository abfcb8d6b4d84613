"""Tasks by name. A new task is a module beside this one, a schema class and a line here.

Lazy: neither importing this nor loading one task imports the code of another.
"""

from __future__ import annotations

import importlib

from alp.configuration.task_schema import Task as TaskConfig
from alp.tasks.task import Task

TASKS = {
    "arithmetic": "alp.tasks.arithmetic:Arithmetic",
    "calculator": "alp.tasks.calculator:Calculator",
    "sums_in_words": "alp.tasks.sums_in_words:SumsInWords",
    "mathematics": "alp.tasks.mathematics:Mathematics",
    "mathematics_tools": "alp.tasks.mathematics_tools:MathematicsTools",
    "reasoning_gym": "alp.tasks.reasoning:ReasoningGym",
    "custom": "alp.tasks.custom:load",
}


def load_task(config: TaskConfig) -> Task:
    """The task of a configuration; its problems are read from ``config.data`` when that is set."""
    module, _, name = TASKS[config.name].partition(":")
    task: Task = getattr(importlib.import_module(module), name)(config)
    return task
