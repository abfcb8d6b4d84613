"""No forward that nothing needs: passes are counted, and what is skipped is said to be missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from alp.errors import UserError
from alp.training.job import Job
from alp.training.loop import train
from alp.training.scoring import padded, sample, score

Make = Callable[..., Any]
WITHOUT = "trainer.old_log_probs=false"


@contextmanager
def _counted(*models: Any) -> Iterator[list[Any]]:
    """The models that were run inside, one entry a forward."""
    ran: list[Any] = []
    handles = [model.register_forward_pre_hook(lambda model, _: ran.append(model)) for model in models]
    yield ran
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("words", "scoring", "reference"),
    [
        (["method=grpo"], 2, 0),
        (["method=grpo", "trainer.kl=0.1"], 2, 2),
        (["method=token_bypass"], 2, 0),
        (["method=token_bypass", WITHOUT], 0, 0),
        (["method=seq_alp", WITHOUT, "trainer.kl=0.1"], 0, 2),
    ],
)
def test_a_batch_takes_the_passes_it_needs(
    train_config: Make, tmp_path: Path, words: list[str], scoring: int, reference: int
) -> None:
    """Of two mini-batches: no reference without a penalty, no π_old without a reader."""
    job = Job(train_config(*words, "model.lora=null"), tmp_path / "run")
    assert (job.reference is None) == (not reference), "nor a copy of the model for it"
    job.engine.sync_weights(job.model.named_parameters(), version=0)
    trajectories = sample(job, 1)
    copies = [job.reference] if job.reference is not None else []
    with _counted(job.model, *copies) as ran:
        batch, _ = score(job, padded(job, trajectories, 1))
    assert [sum(model is which for model in ran) for which in (job.model, job.reference)] == [scoring, reference]
    _, mini = next(batch.split(len(batch) // 2))
    with _counted(job.model, *copies) as ran:
        job.updater.update(mini, 0)
    assert len(ran) == 1
    job.close()


@pytest.mark.parametrize("method", ["token_bypass", "seq_alp"])
def test_without_old_log_probs_the_training_is_the_same(train_config: Make, tmp_path: Path, method: str) -> None:
    """The same bytes of weights; the figures of π_old are absent and said to be, all others unchanged."""
    runs = {"with": [], "without": [WITHOUT]}
    for folder, words in runs.items():
        train(train_config(f"method={method}", "trainer.kl=0.1", "trainer.steps=2", *words, folder=folder))
    weights, lines, active = zip(*(_read(tmp_path / folder) for folder in runs), strict=True)
    assert weights[0] == weights[1]
    lost = ("policy/entropy", "rollout_corr/", "clean_batch/k3_kl_old")
    for full, less in zip(*lines, strict=True):
        assert less == {name: value for name, value in full.items() if not name.startswith(lost)}
    assert any(name.startswith(lost) for name in lines[0][1])
    assert [record["old_log_probs"] for record in active] == [True, False]
    assert [record["missing_figures"] for record in active] == [[], ["policy/entropy", "rollout_corr/…"]]


def _read(folder: Path) -> tuple[bytes, list[dict[str, Any]], dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    active = json.loads((folder / "active.json").read_text(encoding="utf-8"))
    return (folder / "model" / "model.safetensors").read_bytes(), [json.loads(line) for line in lines], active


@pytest.mark.parametrize("method", ["grpo", "seq_mis", "token_tis"])
def test_who_reads_old_log_probs_is_named(train_config: Make, method: str) -> None:
    said = rf"trainer.old_log_probs = false does not go with method '{method}', whose denominator is 'old'"
    with pytest.raises(UserError, match=said):
        train_config(f"method={method}", WITHOUT)
    mask = "{kind: mask, level: sequence, upper: 2.0, weight: one}"
    with pytest.raises(UserError, match="whose corrections read π_old"):
        train_config("method=token_bypass", f"method.corrections=[{mask}]", WITHOUT)


def test_optimizer_states_stay_in_place(train_config: Make, tmp_path: Path) -> None:
    job = Job(train_config("trainer.kl=0.1"), tmp_path / "run")
    for parameter in job.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    places = []
    for _ in range(2):
        job.updater.optimizer.step()
        states = [job.updater.optimizer.state[parameter] for parameter in job.model.parameters()]
        places.append([(state["exp_avg"].data_ptr(), state["exp_avg_sq"].data_ptr()) for state in states])
    assert places[0] == places[1]
    job.close()
