"""What a verb does beyond one call of a room: check, run, count the graders' troubles, log to MLflow; and the verbs
that are words alone. Each returns what is printed. Rooms are imported when they are needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alp.errors import UserError

if TYPE_CHECKING:
    from alp.configuration.clean_schema import CleanConfig
    from alp.configuration.evaluate_schema import EvaluateConfig
    from alp.configuration.fetch_schema import FetchConfig
    from alp.configuration.noise_schema import NoiseConfig
    from alp.configuration.prepare_schema import PrepareConfig
    from alp.configuration.pretrain_schema import PretrainConfig
    from alp.configuration.train_schema import TrainConfig


def prepare(config: PrepareConfig) -> str:
    from alp.sharing import twins_of
    from alp.tasks.prepare import prepare

    run = config.run
    twins = twins_of(run.dir, run.grid, share=run.share)
    summary = prepare(config.task, Path(run.dir), replace=run.replace, twins=twins)
    counts = ", ".join(f"{split} {entry['problems']}" for split, entry in summary.items())
    held = summary["validation"]["problems"]
    nothing = f"; none to train on, {held} held out" if held and not summary["train"]["problems"] else ""
    return f"{run.dir}: {counts}{nothing}"


def fetch(config: FetchConfig) -> str:
    from alp.fetch import fetch
    from alp.sharing import twins_of

    run = config.run
    twins = twins_of(run.dir, run.grid, share=run.share)
    return str(fetch(config.model, Path(run.dir), replace=run.replace, twins=twins))


def pretrain(config: PretrainConfig) -> str:
    from alp.preload import load_libraries

    load_libraries()
    from alp.training.pretrain import pretrain

    pretrain(config)
    return f"{config.run.dir}/model"


def train(config: TrainConfig) -> str:
    from alp import ranks
    from alp.preflight import check_training
    from alp.preload import load_libraries
    from alp.reporting import trackers

    asked = trackers.asked()
    check_training(config)
    load_libraries()
    from alp.reporting.live import Followers
    from alp.tasks.tally import log_summary
    from alp.training.loop import train

    trackers_of_first = [config.run.tracking, *asked] if ranks.is_first() else []
    followers = Followers(Path(config.run.dir), trackers_of_first)
    try:
        folder = train(config, followers.step)
    except BaseException:
        followers.close(finished=False)
        raise
    finally:
        log_summary()
    followers.close(finished=True)
    return str(folder)


def evaluate(config: EvaluateConfig) -> str:
    from alp.marks import read_mark
    from alp.preflight import check_evaluation
    from alp.preload import load_libraries
    from alp.reporting import trackers

    asked = trackers.asked()
    check_evaluation(config)
    load_libraries()
    from alp.evaluation.evaluate import evaluate
    from alp.reporting.live import add_evaluation
    from alp.tasks.tally import log_summary

    try:
        path = evaluate(config)
    finally:
        log_summary()
    folder = Path(config.run.dir)
    for uri in (config.run.tracking, *(asked if read_mark(folder, "train") else ())):  # which have trainings alone
        add_evaluation(folder, uri)
    return str(path)


def noise(config: NoiseConfig) -> str:
    from alp.preflight import check_noise
    from alp.preload import load_libraries

    check_noise(config)
    load_libraries()
    from alp.diagnosis.noise import noise
    from alp.tasks.tally import log_summary

    try:
        return noise(config)
    finally:
        log_summary()


def clean(config: CleanConfig) -> str:
    from alp.clean import clean

    return clean(config, input if sys.stdin is not None and sys.stdin.isatty() else None)


def verify(words: Sequence[str]) -> tuple[str, int]:
    """The comparison as text, and the exit code: 0 the same, 1 differs, 2 cannot tell."""
    if not 1 <= len(words) <= 2 or words[0].startswith("-"):
        raise UserError(
            "verify: give the manifest and perhaps the folder to compare: alp verify results/quick/manifest.json"
            " [folder]; or a reference, or a folder of them: alp verify docs/reference results/quick"
        )
    from alp.reporting.verify import verify

    lines, code = verify(Path(words[0]), Path(words[1]) if words[1:] else None)
    return "\n".join(lines), code


def methods(words: Sequence[str]) -> tuple[str, int]:
    """The presets, read from the YAML files: grouped, one line each."""
    if words:
        raise UserError(f"methods: takes no arguments, got '{words[0]}'")
    from alp import presets

    return "\n".join(presets.lines(presets.known())).rstrip(), 0
