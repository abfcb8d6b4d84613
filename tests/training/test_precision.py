"""Training in bfloat16 with float32 masters: what is active, how near the float32 update it is, and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alp.configuration import compose
from alp.errors import UserError
from alp.policy import LayerwisePerturbation
from alp.training.batch import Batch
from alp.training.forward import frozen_log_probs
from alp.training.job import Job
from alp.training.loop import train
from alp.training.masters import Masters
from alp.training.settings_report import check_active, describe_active
from alp.training.update import Updater

from ..policy.models import relative_gap
from .test_head import batch_of, qwen2

Make = Callable[..., Any]
WORD = "trainer.precision=bfloat16"


def _scored(updater: Updater) -> Batch:
    """π_old in the arithmetic and the pieces of the update, as in a job."""
    batch = batch_of()
    old, _ = frozen_log_probs(updater.model, batch, 1.0, None, micro_tokens=updater.trainer.micro_tokens)
    random = torch.Generator().manual_seed(3)
    return batch.with_(
        old_log_probs=old,
        rollout_log_probs=old,
        ref_log_probs=torch.where(batch.response_mask, old + 0.1, 0.0),
        advantages=torch.randn(len(batch), generator=random),
    )


def _updater(*words: str, tied: bool = False) -> Updater:
    job = compose.load("train", ["trainer.kl=0.1", "trainer.max_grad_norm=1e9", *words])
    model, settings = qwen2(tied=tied), job.method.perturbation
    masters = Masters(model) if job.trainer.precision == "bfloat16" else None
    noise = None if settings is None else LayerwisePerturbation(model, std=0.05, seed=9)
    return Updater(model, job.method, job.trainer, perturbation=noise, temperature=1.0, reference=True, masters=masters)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["grpo", "gspo", "seq_alp", "token_alp"])
@pytest.mark.parametrize("pieces", ["trainer.micro_batch=null", "trainer.micro_tokens=30"])
def test_the_step_is_that_of_float32_but_for_rounding(method: str, tied: bool, pieces: str) -> None:
    """The gradients to a few per cent of their norm, as 8 bits of a product allow (under noise the ratios that weigh
    tokens differ too); the copies in every bit."""
    gradients: list[Tensor] = []
    for words in ([], [WORD]):
        updater = _updater(f"method={method}", pieces, *words, tied=tied)
        before = [weight.detach().clone() for weight in updater._weights()]
        _, result = updater.update(_scored(updater), 3)
        assert not result.skipped
        gradients.append(torch.cat([weight.grad.flatten() for weight in updater._weights()]))
        assert all((new != old).any() for new, old in zip(updater._weights(), before, strict=True))
    assert gradients[1].dtype == torch.float32
    assert relative_gap(gradients[1], gradients[0]) < (0.04 if updater.perturbation is None else 0.1)
    assert updater.masters is not None
    for name, parameter in updater.model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert parameter.grad is None
        assert torch.equal(parameter, updater.masters.weights[name].bfloat16())
    assert (updater.model.lm_head.weight is updater.model.model.embed_tokens.weight) == tied


def test_steps_below_the_spacing_of_bfloat16_add_up() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    masters, alone = Masters(model), torch.ones(1, dtype=torch.bfloat16)
    for _ in range(100):
        model.weight.grad = torch.ones_like(model.weight)
        masters.gather_gradients()
        with torch.no_grad():
            masters.weights["weight"].sub_(1e-3 * masters.weights["weight"].grad)
        masters.weights["weight"].grad = None
        masters.copy_back()
        alone -= 1e-3
    assert float(masters.weights["weight"].detach()) == pytest.approx(0.9, abs=1e-5)
    assert float(model.weight.detach()) == pytest.approx(0.9, abs=2e-3)
    assert float(alone) == 1.0


def test_small_pieces_are_summed_in_float32() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    masters = Masters(model)
    for value in (1.0, *[2.0**-10] * 64):
        model.weight.grad = torch.full_like(model.weight, value)
        masters.gather_gradients()
    assert float(masters.weights["weight"].grad) == 1 + 64 * 2.0**-10


@pytest.mark.parametrize("words", [["method=grpo"], ["method=grpo", "trainer.logits_chunk=5"]])
def test_on_policy_ratio_is_exactly_one(train_config: Make, tmp_path: Path, words: list[str]) -> None:
    once = ["trainer.updates_per_batch=1", "trainer.steps=1", "trainer.probe_every=1", "trainer.validate_every=1"]
    train(train_config(WORD, "trainer.kl=0.1", "trainer.micro_tokens=40", *once, *words))
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert line["ratio/token/log_max"] == line["ratio/token/log_min"] == line["policy/kl"] == 0.0
    active = json.loads((tmp_path / "run" / "active.json").read_text(encoding="utf-8"))
    assert (active["train_dtype"], active["optimizer_dtype"]) == ("bfloat16", "float32")
    assert active["borrowed"], "an engine in bfloat16 samples from the model itself"
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert any((value != value.bfloat16()).any() for value in saved.values()), "the masters, not the rounded weights"


class Killed(Exception):
    """Stands for the end of the process."""


def test_killed_and_continued_equals_undisturbed(train_config: Make, tmp_path: Path) -> None:
    words = [WORD, "method=seq_alp", "trainer.kl=0.1", "trainer.micro_tokens=40", "trainer.steps=3"]
    train(train_config(*words, folder="whole"))

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        train(train_config(*words, folder="broken"), kill)
    train(train_config(*words, folder="broken"))
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


def test_weights_left_in_float32_stop_the_job(train_config: Make, tmp_path: Path) -> None:
    job = Job(train_config(WORD), tmp_path / "run")
    job.model.float()
    with pytest.raises(RuntimeError, match="training dtype: 'float32' is active, the configuration says 'bfloat16'"):
        check_active(job.config, describe_active(job.config, job.engine, job.model, job.updater))
    job.close()


def test_an_adapter_is_refused(train_config: Make) -> None:
    with pytest.raises(UserError, match=r"trains all weights: it does not go with model\.lora"):
        train_config(WORD, "model.lora={rank: 2, alpha: 4}")
