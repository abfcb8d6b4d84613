"""The configuration of ``alp prepare``."""

from __future__ import annotations

from alp.configuration.fields import Strict
from alp.configuration.run_schema import Run
from alp.configuration.task_schema import Task


class PrepareConfig(Strict):
    """Which task's problems become files, and where."""

    task: Task
    """The task whose problems become files."""
    run: Run
    """Where they go."""
