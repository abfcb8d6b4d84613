"""Stopped anywhere and continued: the same bytes, the same random numbers, the same rollouts; and what no job may
continue from."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alp.errors import Interrupted, UserError
from alp.marks import difference
from alp.rollout.engine import Purpose
from alp.rollout.hf import HFEngine
from alp.training import checkpoint
from alp.training.inputs import origin
from alp.training.loop import train
from alp.training.update import Updater
from tests.signals import heard

Make = Callable[..., Any]
RESULTS = (
    "metrics.jsonl",
    "updates.jsonl",
    "trajectories.jsonl",
    "active.json",
    "provenance.json",
    "model/model.safetensors",
)
STEPS, UPDATES = 2, 2
WORDS = [
    f"trainer.steps={STEPS}",
    f"trainer.updates_per_batch={UPDATES}",
    "trainer.validate_every=1",
    "trainer.probe_every=1",
]


def _digest(folder: Path) -> dict[str, str]:
    names = [name for name in (*RESULTS, "model/perturbation.json") if (folder / name).is_file()]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _signal_in_update(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, call: int) -> None:
    """The process gets the signal in the middle of that call of ``Updater.update``."""
    plain, calls = Updater.update, iter(range(1, 1000))

    def update(self: Updater, *arguments: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return plain(self, *arguments)

    monkeypatch.setattr(Updater, "update", update)


def _sampled(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each training step was sampled, filled as it happens."""
    plain, found = HFEngine.generate, Counter[int]()

    def generate(self: HFEngine, requests: list[Any], sampling: Any) -> Any:
        if requests[0].key[0] == Purpose.TRAINING:
            found[requests[0].key[2]] += 1
        return plain(self, requests, sampling)

    monkeypatch.setattr(HFEngine, "generate", generate)
    return found


def _stopped(job: Any) -> str | None:
    """What a job says when a signal stops it; None when it gets through."""
    try:
        train(job)
    except Interrupted as stop:
        return str(stop)
    return None


@heard()
@pytest.mark.parametrize(
    ("method", "number"),
    [("grpo", signal.SIGINT), ("seq_alp", signal.SIGTERM), ("token_mis", signal.SIGUSR1)],
)
def test_a_signal_stops_at_the_next_update_and_nothing_is_sampled_twice(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, number: signal.Signals
) -> None:
    words = [f"method={method}", "trainer.kl=0.01", "trainer.checkpoint_every=0", *WORDS]
    train(train_config(*words, folder="whole"))
    before = signal.getsignal(number)
    sampled = _sampled(monkeypatch)
    job, stops = train_config(*words, folder="broken"), 0
    while True:
        with monkeypatch.context() as inner:
            _signal_in_update(inner, number, call=1)
            said = _stopped(job)
        if said is None:
            break
        stops += 1
        done, updates = divmod(stops, UPDATES)
        expected = (done - 1, UPDATES) if updates == 0 else (done, updates)
        assert f"stopped by {number.name} after {expected[0]} steps and {expected[1]} updates" in said
        for name in (
            "metrics.jsonl",
            "updates.jsonl",
            "trajectories.jsonl",
            "active.json",
        ):  # the workflow deletes outputs before every attempt
            (tmp_path / "broken" / name).unlink()
    assert stops == STEPS * UPDATES, "every update was followed by a stop"
    assert sampled == Counter(range(1, STEPS + 1)), "a rollout batch under way is kept, never sampled anew"
    assert _digest(tmp_path / "broken") == _digest(tmp_path / "whole")
    assert signal.getsignal(number) is before


def test_every_random_generator_goes_on(train_config: Make, tmp_path: Path) -> None:
    def draws(into: list[Any], stop_after: int | None = None) -> Callable[[], None]:
        def observer() -> None:
            into.append((float(torch.rand(())), float(np.random.normal()), random.random()))
            if stop_after == len(into):
                os.kill(os.getpid(), signal.SIGTERM)

        return observer

    whole: list[Any] = []
    train(train_config("trainer.steps=4", folder="whole"), draws(whole))
    broken: list[Any] = []
    with pytest.raises(Interrupted):
        train(train_config("trainer.steps=4", folder="broken"), draws(broken, stop_after=2))
    np.random.seed(1)
    torch.manual_seed(1)
    random.seed(1)
    train(train_config("trainer.steps=4", folder="broken"), draws(broken))
    assert broken == whole
    assert len(set(whole)) == 4


def _interrupted(job: Any, monkeypatch: pytest.MonkeyPatch, call: int) -> list[Path]:
    """Checkpoints of a job stopped in its update ``call``, the newest last."""
    with monkeypatch.context() as inner:
        _signal_in_update(inner, signal.SIGTERM, call)
        with pytest.raises(Interrupted):
            train(job)
    return sorted((Path(job.run.dir) / "checkpoints").glob("step_*"))


def test_what_a_checkpoint_holds(train_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    job = train_config("method=seq_alp")
    folders = _interrupted(job, monkeypatch, call=7)
    assert [folder.name[:23] for folder in folders] == [
        "step_000003_update_0000",
        "step_000003_update_0001",
    ], "the last two"
    card = json.loads((folders[-1] / "checkpoint.json").read_text(encoding="utf-8"))
    assert (card["step"], card["update"], card["format"]) == (3, 1, checkpoint.FORMAT)
    state = torch.load(folders[-1] / "state.pt", weights_only=True)
    parts = {"step", "model", "updater", "perturbation", "pending", "under_way", "ahead", "records", "random"}
    assert set(state) == parts
    assert set(state["perturbation"]) >= {"log_std"}
    assert len(state["updater"]["optimizer"]["param_groups"]) == 2
    batch = state["pending"]["batch"]
    assert batch["old_log_probs"].abs().sum() > 0
    assert batch["advantages"].dtype == batch["rollout_log_probs"].dtype
    assert len(state["pending"]["results"]) == 1
    assert [json.loads(line)["step"] for line in state["records"]["metrics.jsonl"].splitlines()] == [0, 1, 2, 3]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pickled(path: Path) -> None:
    """A state that runs code when it is unpickled, with a card that vouches for it."""
    path.write_bytes(pickle.dumps(_Bomb()))
    card = json.loads((path.parent / "checkpoint.json").read_text(encoding="utf-8"))
    (path.parent / "checkpoint.json").write_text(
        json.dumps(card | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    )


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["ALP_TEST_BOMB"],)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.pt", _flip),
        ("state.pt", _cut),
        ("state.pt", Path.unlink),
        ("state.pt", _pickled),
        ("checkpoint.json", _cut),
        ("checkpoint.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    train_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    monkeypatch.setenv("ALP_TEST_BOMB", str(tmp_path / "exploded"))
    caplog.set_level("INFO", logger="alp")
    train(train_config(folder="whole"))
    job = train_config(folder="broken")
    newest = _interrupted(job, monkeypatch, call=5)[-1]
    damage(newest / name)
    train(job)
    assert f"{newest} is damaged" in caplog.text
    assert "after 2 steps and 0 updates of the next" in caplog.text
    assert not (tmp_path / "exploded").exists(), "a checkpoint never runs code"
    assert _digest(tmp_path / "broken") == _digest(tmp_path / "whole")


def test_with_every_checkpoint_damaged_the_job_begins_anew(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(train_config(folder="whole"))
    job = train_config(folder="broken")
    for folder in _interrupted(job, monkeypatch, call=5):
        _flip(folder / "state.pt")
    assert len(_interrupted(job, monkeypatch, call=3)) == 2, "damaged ones do not count among the two that are kept"
    train(job)
    assert _digest(tmp_path / "broken") == _digest(tmp_path / "whole")


def test_an_older_format_is_named_and_not_used(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train(train_config(folder="whole"))
    job = train_config(folder="broken")
    for folder in _interrupted(job, monkeypatch, call=5):
        card = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        del card["format"]
        (folder / "checkpoint.json").write_text(json.dumps(card))
    train(job)
    assert f"has format 1, this version reads {checkpoint.FORMAT}: not used" in caplog.text
    assert _digest(tmp_path / "broken") == _digest(tmp_path / "whole")


def test_another_job_s_checkpoint_is_refused_by_name_and_kept(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = train_config("trainer.lr=5e-4", folder="run")
    own = _interrupted(first, monkeypatch, call=5)
    second = train_config("run.replace=true", folder="run")
    both = _interrupted(second, monkeypatch, call=3)
    assert f"{own[-1]} belongs to another job (trainer.lr: 0.0005 there, 0.001 here): not used" in caplog.text
    assert set(own) < set(both), "nothing computed is thrown away while another job passes through"
    caplog.clear()
    caplog.set_level("INFO", logger="alp")
    train(train_config("trainer.lr=5e-4", "run.replace=true", folder="run"))
    assert "after 2 steps and 1 updates" in caplog.text
    train(train_config("trainer.lr=5e-4", folder="whole"))
    assert _digest(tmp_path / "run") == _digest(tmp_path / "whole")
    named = {"code_hash": "other code or other versions of packages", "model_hash": "another base model"}
    for part, words in (named | {"data_hash": "other problems"}).items():
        card = {"config": {}, "code_hash": 1, "model_hash": 1, "data_hash": 1}
        assert difference(card, card | {part: 2}) == words


def test_results_of_another_kind_of_device_are_of_another_identity(train_config: Make, base_model: Path) -> None:
    """``device: auto`` is a GPU on one node and a CPU on the next: nothing goes on, or is taken over, between them."""
    cpu, other = (
        origin(train_config("trainer.device=auto"), base_model, [], torch.device(kind)) for kind in ("cpu", "meta")
    )
    assert cpu["identity"] != other["identity"]
    assert difference(cpu, other) == "device: cpu there, meta here"


def test_checkpoints_of_a_finished_job(train_config: Make, tmp_path: Path) -> None:
    train(train_config(folder="pruned"))
    assert not (tmp_path / "pruned" / "checkpoints").exists()
    train(train_config("trainer.keep_checkpoints=true", folder="kept"))
    assert len(list((tmp_path / "kept" / "checkpoints").glob("step_*"))) == 2
    assert [path.name for path in (tmp_path / "kept").glob(".*")] == [".alp"], "no temporary files"
    assert not (tmp_path / "kept/.alp/train/tmp").exists()


def test_a_job_that_does_not_fit_says_so_before_it_starts(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(UserError, match=r"run.dir: the job needs about \d+.*in .*run.*, 98 KiB are free there"):
        train(train_config())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("words", [(), ("model.lora={rank: 8, alpha: 8}",)])
def test_the_estimate_is_what_is_written(
    words: tuple[str, ...], train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal must be neither late nor alarmist: it compares with what three checkpoints and a model really
    take."""
    asked: list[int] = []
    plain = checkpoint.check_room
    monkeypatch.setattr(
        checkpoint, "check_room", lambda folder, **sizes: asked.append(sizes["trained"]) or plain(folder, **sizes)
    )
    job = train_config("model.layers=3", "method=seq_alp", *words)
    newest = _interrupted(job, monkeypatch, call=5)[-1]
    real = (newest / "state.pt").stat().st_size
    tokens = 2 * 4 * 4 * job.rollout.max_new_tokens
    assert real / 1.5 < 3 * asked[0] + 64 * tokens < 1.5 * real
