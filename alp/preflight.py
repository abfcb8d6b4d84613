"""What the configuration and the file system alone show is refused before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from alp.configuration.evaluate_schema import EvaluateConfig
from alp.configuration.model_schema import Model
from alp.configuration.task_schema import Task
from alp.configuration.train_schema import TrainConfig
from alp.errors import UserError
from alp.model_files import check_model, depth_of
from alp.ownership import check_finished
from alp.tasks.task import problem_file


def check_training(config: TrainConfig) -> None:
    """Refuse what :func:`alp.training.loop.train` would refuse for its files. Raises UserError."""
    folder = _check_inputs(config.model, config.task, ("train", "validation"))
    depth, noise = depth_of(folder), config.method.perturbation
    if noise is not None and depth is not None:
        try:
            noise.check_depth(depth)
        except ValueError as error:
            raise UserError(f"train: {error}") from None


def check_evaluation(config: EvaluateConfig) -> None:
    """Refuse what :func:`alp.evaluation.evaluate.evaluate` would refuse for its files. Raises UserError."""
    _check_inputs(config.model, config.task, (config.evaluation.set,))


def _check_inputs(model: Model, task: Task, sets: Iterable[str]) -> Path:
    """A model's folder, which is there, whole and finished; files of problems are there. Raises UserError."""
    folder = check_model(model)
    check_finished(folder, "model.path")
    if task.data is not None:
        for name in sets:
            problem_file(Path(task.data), name)
    elif sources := task.sources_of(set(sets)):
        from alp.tasks.sources import local_file

        for key, source in sources.items():
            if source.path is not None:
                local_file(source, key)
    return folder
