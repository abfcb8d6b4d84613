"""What the configuration and the file system alone show is refused before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from alp.configuration.evaluate_schema import EvaluateConfig
from alp.configuration.method_schema import Method
from alp.configuration.model_schema import Model
from alp.configuration.noise_schema import NoiseConfig
from alp.configuration.task_schema import Task
from alp.configuration.train_schema import TrainConfig
from alp.errors import UserError
from alp.model_files import check_model, depth_of
from alp.ownership import check, check_finished
from alp.tasks.task import problem_file


def check_training(config: TrainConfig) -> None:
    """Refuse what :func:`alp.training.loop.train` would refuse for its files. Raises UserError."""
    folder = _check_inputs(config.model, config.task, ("train", "validation"))
    _check_depth("train", config.method, folder)


def check_evaluation(config: EvaluateConfig) -> None:
    """Refuse what :func:`alp.evaluation.evaluate.evaluate` would refuse for its files. Raises UserError."""
    _check_inputs(config.model, config.task, (config.evaluation.set,))


def check_noise(config: NoiseConfig) -> None:
    """Refuse what :func:`alp.diagnosis.noise.noise` would refuse for its files. Raises UserError."""
    check(config.output, "noise: output")
    _check_depth("noise", config.method, _check_inputs(config.model, config.task, (config.noise.set,)))


def _check_depth(verb: str, method: Method, folder: Path) -> None:
    """A band of layers lies inside the model. Raises UserError."""
    depth, noise = depth_of(folder), method.perturbation
    if noise is not None and depth is not None:
        try:
            noise.check_depth(depth)
        except ValueError as error:
            raise UserError(f"{verb}: {error}") from None


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
