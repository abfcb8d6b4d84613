"""Compiled decoder layers give what uncompiled ones give, noise and checkpointing included, and only where they are
meant to be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alp import models
from alp.configuration import compose
from alp.errors import UserError
from alp.policy import LayerwisePerturbation
from alp.training.compiled import MULTIPLE, CompiledLayers
from alp.training.forward import frozen_log_probs
from alp.training.job import Job
from alp.training.loop import train
from alp.training.settings_report import check_active, describe_active
from alp.training.update import Updater, UpdateResult

from ..policy.models import relative_gap
from .test_head import batch_of, qwen2

Make = Callable[..., Any]
pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler: torch compiles with it on a CPU"
)


def _update(*words: str, checkpointing: bool) -> tuple[Tensor, Tensor, UpdateResult, Tensor]:
    """Gradient, raw log-ratios, result, and π_old as it was scored."""
    settings = compose.load("train", ["trainer.kl=0.1", "trainer.max_grad_norm=1e9", *words])
    model = qwen2()
    if checkpointing:
        models.checkpoint_layers(model)
    noise = LayerwisePerturbation(model, std=0.05, seed=9) if settings.method.perturbation is not None else None
    compiled = CompiledLayers(model) if settings.trainer.compile else None
    batch = batch_of()
    old, _ = frozen_log_probs(model, batch, 1.0, settings.trainer.micro_batch, compiled=compiled)
    random = torch.Generator().manual_seed(3)
    scored = batch.with_(
        old_log_probs=old,
        rollout_log_probs=torch.where(batch.response_mask, old + 0.1, 0.0),
        ref_log_probs=torch.where(batch.response_mask, old - 0.1, 0.0),
        advantages=torch.randn(len(batch), generator=random),
    )
    updater = Updater(
        model,
        settings.method,
        settings.trainer,
        perturbation=noise,
        temperature=1.0,
        reference=True,
        compiled=compiled,
    )
    raw, result = updater.update(scored, 3)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), raw, result, old


@pytest.mark.parametrize("method", ["grpo", "seq_alp"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_is_that_of_uncompiled_layers(method: str, checkpointing: bool) -> None:
    eager, compiled = (
        _update(f"method={method}", f"trainer.compile={word}", checkpointing=checkpointing)
        for word in ("false", "true")
    )
    assert relative_gap(compiled[0], eager[0]) < 1e-5
    for which in (1, 3):
        torch.testing.assert_close(compiled[which], eager[which], atol=2e-5, rtol=0)
    for name, value in eager[2].metrics.items():
        assert compiled[2].metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, values in eager[2].noise.items():
        assert compiled[2].noise[name] == pytest.approx(values, rel=1e-3), name
    if method == "grpo":
        assert not compiled[1].any(), "the graph of scoring is that of the update: an on-policy ratio is exactly 1"


def test_pieces_are_rounded_up_in_width_alone() -> None:
    batch = batch_of()
    pieces = list(batch.micro_batches(None, 2 * MULTIPLE, MULTIPLE))
    assert [piece.input_ids.shape for _, piece in pieces] == [(1, MULTIPLE), (2, MULTIPLE), (2, MULTIPLE)]
    for index, piece in pieces:
        width = int(piece.lengths.max())
        assert torch.equal(piece.input_ids[:, :width], batch.input_ids[index, :width])
        for name in ("attention_mask", "response_mask", "loss_mask", "weights"):
            assert not getattr(piece, name)[:, width:].any(), name


def test_a_job_compiles_few_shapes_and_nothing_else(train_config: Make, tmp_path: Path) -> None:
    counters: Any = torch._dynamo.utils.counters
    counters.clear()
    torch._dynamo.reset()
    train(train_config("method=grpo", "trainer.compile=true", "trainer.steps=2", "rollout.dtype=float32"))
    assert counters["stats"]["unique_graphs"] == 1, "mini-batches of one shape; sampling and probes are not compiled"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert json.loads((tmp_path / "run" / "active.json").read_text(encoding="utf-8"))["compiled_layers"] == 3


EVERYTHING = [
    *("method=seq_alp", "trainer.compile=true", "trainer.precision=bfloat16", "trainer.micro_tokens=512"),
    *("trainer.logits_chunk=5", "model.gradient_checkpointing=true", "trainer.deterministic_attention=true"),
    *("trainer.old_log_probs=false", "trainer.kl=0.1", "trainer.steps=2"),
]


@pytest.mark.long
def test_all_switches_together_and_killed_in_between(train_config: Make, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed

    train(train_config(*EVERYTHING, folder="whole"))
    with pytest.raises(Killed):
        train(train_config(*EVERYTHING, folder="broken"), kill)
    train(train_config(*EVERYTHING, folder="broken"))
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


@pytest.mark.long
def test_an_adapter_is_compiled_with_its_layers(train_config: Make, tmp_path: Path) -> None:
    words = ["method=token_alp", "model.lora={rank: 2, alpha: 4}", "trainer.kl=0.1", "trainer.steps=2"]
    lines = []
    for folder, word in {"eager": "false", "compiled": "true"}.items():
        train(train_config(*words, f"trainer.compile={word}", folder=folder))
        lines.append(json.loads((tmp_path / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1]))
    for name in ("policy/grad_norm", "policy/kl", "policy/loss"):
        assert lines[1][name] == pytest.approx(lines[0][name], rel=2e-3, abs=1e-6), name


def test_layers_left_uncompiled_stop_the_job(train_config: Make, tmp_path: Path) -> None:
    job = Job(train_config("trainer.compile=true"), tmp_path / "run")
    job.updater.compiled = None
    with pytest.raises(RuntimeError, match="compiled layers: False is active, the configuration says True"):
        check_active(job.config, describe_active(job.config, job.engine, job.model, job.updater))
    job.close()


def test_a_model_with_fewer_positions_is_refused() -> None:
    model = qwen2()
    model.config.max_position_embeddings = 1000
    with pytest.raises(UserError, match="widths are multiples of 128, the model knows 1000 positions"):
        CompiledLayers(model)
