"""Shared fixtures: a tiny model folder, a tiny training configuration. Everything runs on one thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alp.preload import load_libraries

load_libraries()  # before a test's imports do

TINY_TASK = ["task.digits=1", "task.train=30", "task.validation=6", "task.test=8"]
TINY_TRAINER = [
    "trainer.prompts=4",
    "trainer.samples=4",
    "trainer.updates_per_batch=2",
    "trainer.validate_every=2",
    "trainer.validation_samples=1",
    "trainer.probe_every=2",
    "trainer.checkpoint_every=1",
    "trainer.device=cpu",
    "trainer.lr=1e-3",
]
TINY_MODEL = ["model.hidden=32", "model.heads=1", "model.intermediate=64", "model.layers=3"]


# What `make check` leaves out: tests that train, start an engine, a workflow or MLflow, compile, draw, or take seconds.
SLOW = (
    *("diagnosis", "examples", "faults", "parity", "sandbox", "slurm", "training", "workflow"),
    *("configuration/test_resources.py", "evaluation/test_evaluate.py"),
    *(f"policy/test_{name}.py" for name in ("alone", "architectures", "budget", "kernels")),
    *(f"policy/test_perturbation_{name}.py" for name in ("cost", "gradients", "noise", "surroundings")),
    *(
        f"reporting/test_{name}.py"
        for name in ("aggregate", "figures", "live", "mismatch", "report", "sets", "tools", "trackers", "tracking")
    ),
    *(f"reporting/test_{name}.py" for name in ("reference", "tracking_database", "verify")),
    *(f"rollout/test_{name}.py" for name in ("custom", "decoding", "folders", "hf", "static", "transport")),
    *(f"rollout/test_{name}.py" for name in ("vllm", "vllm_gpu", "vllm_turns")),
    *(
        f"tasks/test_{name}.py"
        for name in ("broken_data", "grading", "grading_kinds", "grading_pool", "mathematics", "reasoning")
    ),
    *(
        f"test_{name}.py"
        for name in ("clean", "fetch", "foreign", "models", "ownership", "packaging", "preload", "saving", "sharing")
    ),
    *(f"test_{name}.py" for name in ("code_identity", "lifetime", "small", "streams", "untrusted", "whole_models")),
)


def _is_slow(path: Path) -> bool:
    place = path.relative_to(Path(__file__).parent)
    return bool({str(place), *place.parts[:1]} & set(SLOW))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What is left out need not be imported."""
    return True if config.option.markexpr == "not slow" and _is_slow(collection_path) else None


# Files that take minutes go first, so that neither of two processes is left with one at the end.
LONGEST = ("workflow/test_dag.py", "rollout/test_vllm.py", "diagnosis", "faults", "training")


def _rank(item: pytest.Item) -> int:
    place = str(item.path.relative_to(Path(__file__).parent))
    return next((rank for rank, name in enumerate(LONGEST) if place.startswith(name)), len(LONGEST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
    for item in items:
        if _is_slow(item.path) or "base_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        if (os.environ.get("FAULTS") == "all" and "faults" in item.path.parts) or "sandbox" in item.path.parts:
            item.add_marker(pytest.mark.long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The line that says what became of the sandbox's hostile programs, or that none of them ran."""
    done = [report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "when")]
    ours = [report for report in done if report.nodeid.startswith("tests/sandbox/")]
    cases = [
        value for report in ours if report.when == "call" for name, value in report.user_properties if name == "hostile"
    ]
    if cases:
        names = len({name for name, _, _ in cases})
        escapes, left = (sum(case[column] for case in cases) for column in (1, 2))
        terminalreporter.write_line(f"sandbox: {names} hostile programs, {escapes} escapes, {left} leftovers")
    elif ours:
        why = {report.longrepr[2].removeprefix("Skipped: ") for report in ours if report.skipped}
        terminalreporter.write_line("; ".join(sorted(why)) or "the sandbox suite ran no hostile program", yellow=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a base model taught for a few steps: it writes some right answers, not many."""
    from alp.configuration import compose
    from alp.training.pretrain import pretrain

    folder = tmp_path_factory.mktemp("base")
    pretrain(
        compose.load(
            "pretrain", [*TINY_TASK, *TINY_MODEL, "pretrain.steps=60", "pretrain.batch=32", f"run.dir='{folder}'"]
        )
    )
    return folder / "model"


@pytest.fixture
def train_config(base_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """Compose a tiny training job; words come after the defaults, ``folder`` names its run folder."""
    from alp.configuration import compose

    def make(*words: str, folder: str = "run") -> Any:
        tiny = [
            *TINY_TASK,
            f"model.path='{base_model}'",
            f"run.dir='{tmp_path / folder}'",
            "run.tracking=null",
            "trainer.steps=4",
            *TINY_TRAINER,
        ]
        keys = {word.split("=")[0] for word in words}
        return compose.load("train", [*(word for word in tiny if word.split("=")[0] not in keys), *words])

    return make


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty migrated MLflow database: the migration takes seconds, a copy none."""
    from alp.reporting import tracking

    folder = tmp_path_factory.mktemp("migrated")
    (folder / "run").mkdir()
    assert tracking.sync(
        folder / "run",
        uri=f"sqlite:///{folder}/mlflow.db",
        finished=None,
        experiment="other",
        name="x",
        tags={"config_hash": "x"},
    )
    return folder / "mlflow.db"
