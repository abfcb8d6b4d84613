"""Rollout batches sampled before the updates of earlier ones (``alp.training.ahead``)."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alp.cli import main
from alp.configuration import compose
from alp.errors import Interrupted
from alp.training.ahead import Ahead
from alp.training.loop import train

Make = Callable[..., Any]
LAGGED = ("method=token_tis", "trainer.steps=5", "trainer.lag=2", "trainer.checkpoint_every=1")


def lines(folder: str | Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The records of a job."""
    return [json.loads(line) for line in (Path(folder) / name).read_text(encoding="utf-8").splitlines()]


def test_a_batch_is_as_many_versions_old_as_the_lag_says(train_config: Make) -> None:
    config = train_config(*LAGGED, "trainer.probe_every=1", "rollout.dtype=float32")
    train(config)
    steps = [line for line in lines(config.run.dir) if line["step"]]
    assert [line["rollout/versions_behind"] for line in steps] == [0, 1, 2, 2, 2]
    shown = {(line["step"], line["versions_behind"]) for line in lines(config.run.dir, "trajectories.jsonl")}
    assert shown == {(1, 0), (2, 1), (3, 2), (4, 2), (5, 2)}
    active = json.loads((Path(config.run.dir) / "active.json").read_text(encoding="utf-8"))
    assert (active["lag"], active["sampling_overlaps_updates"]) == (2, False)
    # of one policy and one format, π_old differs from μ by the versions between them and by nothing else
    fresh, old = steps[0]["rollout_corr/k3_kl"], [line["rollout_corr/k3_kl"] for line in steps[2:]]
    assert fresh < 1e-9 < min(old)


def test_a_lag_is_another_job_and_none_is_the_job_it_was(train_config: Make) -> None:
    """References and results from before the key was there hold."""
    plain, lagged = train_config("method=token_tis"), train_config("method=token_tis", "trainer.lag=1")
    assert compose.identity(plain) != compose.identity(lagged)
    older = plain.model_dump(mode="json", exclude=compose._NO_RESULT)
    assert older["trainer"].pop("lag") == 0
    for group in ("task", "rollout", "validation"):
        older[group] = compose._with_content(older[group])
    whole = json.dumps(older, sort_keys=True, separators=(",", ":")).encode()
    assert compose.identity(plain) == hashlib.sha256(whole).hexdigest()


def test_a_lag_of_all_steps_is_refused_before_anything_starts(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.path='{base_model}'", f"run.dir='{tmp_path / 'run'}'", "trainer.steps=3"]
    assert main(["train", *words, "trainer.lag=3"]) == 2
    assert capsys.readouterr().err == "alp: error: train: trainer: lag = 3 is not below steps = 3; nearest that is: 2\n"
    assert not (tmp_path / "run").exists()
    assert compose.load("train", [*words, "trainer.lag=2"]).trainer.lag == 2


def test_without_a_lag_nothing_is_sampled_ahead(train_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config("method=token_tis", "trainer.steps=2")
    waiting = []
    take = Ahead.take

    def watched(self: Ahead, *arguments: Any) -> Any:
        taken = take(self, *arguments)
        waiting.append(len(self.state()))
        return taken

    monkeypatch.setattr(Ahead, "take", watched)
    train(config)
    assert waiting == [0, 0]
    assert "rollout/versions_behind" not in lines(config.run.dir)[-1]


@pytest.mark.parametrize("call", [1, 4, 9])
def test_a_stop_changes_no_byte(train_config: Make, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """In the first update, with batches that wait, and in the last steps, when there are none left to sample."""
    whole, broken = train_config(*LAGGED, folder="whole"), train_config(*LAGGED, folder="broken")
    train(whole)
    with monkeypatch.context() as inner:
        from tests.training.test_checkpoint import _signal_in_update

        _signal_in_update(inner, signal.SIGTERM, call)
        with pytest.raises(Interrupted):
            train(broken)
    train(broken)
    for name in ("metrics.jsonl", "updates.jsonl", "model/model.safetensors"):
        assert (Path(broken.run.dir) / name).read_bytes() == (Path(whole.run.dir) / name).read_bytes(), name


class _Apart:
    """The least of a job whose engine samples beside the updates."""

    def __init__(self, lag: int, steps: int) -> None:
        values = {"trainer": {"lag": lag, "steps": steps, "devices": 1}, "rollout": {"apart": True}}
        self.config = type("Config", (), {group: type(group, (), held) for group, held in values.items()})
        self.engine = type("Engine", (), {"detached": False})()
        self.under_way = None


def test_an_engine_apart_samples_beside_the_updates_and_is_waited_for() -> None:
    job, asked, go = _Apart(lag=1, steps=3), [], threading.Event()

    def sample(job: Any, step: int, pause: Any) -> list[Any]:
        if step > 1:
            assert go.wait(10), "nobody else ran meanwhile"
        asked.append((step, threading.current_thread() is threading.main_thread(), job.engine.detached))
        return []

    batches = Ahead(job, sample)  # type: ignore[arg-type]
    assert batches.take(1).versions_behind == 0
    assert asked == [(1, True, False)], "the second is under way, and the updates of the first can begin"
    go.set()
    batches.settle()
    assert asked[1:] == [(2, False, True)]
    assert not job.engine.detached
    assert batches.take(2).versions_behind == 1
    batches.settle()
    assert batches.take(3).step == 3
    assert [step for step, *_ in asked] == [1, 2, 3], "each once, and none after the last"


def test_what_becomes_of_sampling_beside_the_updates_is_raised_when_it_is_waited_for() -> None:
    job = _Apart(lag=1, steps=3)

    def sample(job: Any, step: int, pause: Any) -> list[Any]:
        if step == 2:
            raise RuntimeError("the engine is gone")
        return []

    batches = Ahead(job, sample)  # type: ignore[arg-type]
    batches.take(1)
    with pytest.raises(RuntimeError, match="the engine is gone"):
        batches.settle()
    assert not job.engine.detached
