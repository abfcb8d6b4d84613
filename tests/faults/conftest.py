"""The ledger of faults, and the undisturbed runs that disturbed ones are compared with."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_TASK, TINY_TRAINER
from tests.faults import jobs

ALL = os.environ.get("FAULTS") == "all"  # make faults; otherwise a sample of each kind
STEPS = 6 if ALL else 4
Words = Callable[..., list[str]]


def pytest_configure(config: pytest.Config) -> None:
    if "FAULTS_LEDGER" not in os.environ:  # workers of xdist inherit it
        os.environ["FAULTS_LEDGER"] = tempfile.mkstemp(prefix="faults_", suffix=".jsonl")[1]
        config.stash[_OWNER] = True


_OWNER = pytest.StashKey[bool]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.stash.get(_OWNER, False):
        return
    path = Path(os.environ.pop("FAULTS_LEDGER"))
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.unlink()
    kinds: Counter[str] = Counter()
    for entry in entries:
        kinds[entry["kind"]] += entry["tried"]
    for kind, count in sorted(kinds.items()):
        terminalreporter.write_line(f"  {count:4} {kind}")
    lost, changed, touched = (sum(entry.get(name, 0) for entry in entries) for name in ("lost", "changed", "touched"))
    counted = f"faults tried: {sum(kinds.values())}, results lost: {lost}, results changed: {changed}"
    terminalreporter.write_line(f"{counted}, files of the user's touched: {touched}")


class Ledger:
    """Every fault that was really injected, with the results that it cost."""

    def tried(self, kind: str, count: int = 1, lost: int = 0, changed: int = 0) -> None:
        with open(os.environ["FAULTS_LEDGER"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, "tried": count, "lost": lost, "changed": changed}) + "\n")

    def touched(self, kind: str, count: int) -> None:
        """Count files of a user's that a run beside them changed or took away."""
        with open(os.environ["FAULTS_LEDGER"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, "tried": 1, "lost": 0, "changed": 0, "touched": count}) + "\n")

    def compare(self, kind: str, found: dict[str, str | None], whole: dict[str, str | None], count: int = 1) -> None:
        """Count ``count`` faults behind the results ``found``, and fail unless these are those of the undisturbed
        run."""
        lost = [name for name in whole if found[name] is None]
        changed = [name for name in whole if found[name] is not None and found[name] != whole[name]]
        self.tried(kind, count, len(lost), len(changed))
        assert not lost, f"{kind}: lost {lost}"
        assert not changed, f"{kind}: changed {changed}"


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture(scope="session")
def words(base_model: Path) -> Words:
    """The words of a tiny training job in a folder: steps of two updates on a perturbed method, a checkpoint after
    each."""

    def make(folder: Path, *more: str) -> list[str]:
        plain = [
            *TINY_TASK,
            "method=seq_alp",
            f"model.path='{base_model}'",
            f"run.dir='{folder}'",
            "run.tracking=null",
            f"trainer.steps={STEPS}",
            *TINY_TRAINER,
        ]
        return [*plain, *more]

    return make


@pytest.fixture(scope="session")
def seconds(words: Words, whole: Any, tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long an undisturbed job takes here and now, the fork server being warm."""
    folder = tmp_path_factory.mktemp("timed")
    started = time.monotonic()
    assert jobs.train(words(folder / "run"), folder / "log") == 0
    return time.monotonic() - started


@pytest.fixture(scope="session")
def whole(words: Words, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Results of the job when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    assert jobs.train(words(folder / "run"), folder / "log") == 0, (folder / "log").read_text(encoding="utf-8")[-2000:]
    found = jobs.digest(folder / "run", jobs.NOISY)
    assert None not in found.values()
    return found
