"""The noise budget in a training: what it logs, of which noise, and that no number of the training follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alp.policy import LayerwisePerturbation
from alp.training import budget
from alp.training.forward import token_log_probs
from alp.training.job import Job
from alp.training.loop import run, train

Make = Callable[..., Any]
PROBED = ("sharpness", "budget/", "clean_batch/")


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_no_number_of_the_training_follows_from_it(train_config: Make, tmp_path: Path) -> None:
    """Probed after every step, after some, or never: the same weights, the same σ, the same other figures."""
    folders = []
    for every in (0, 1, 2):
        train(train_config("method=seq_alp", f"trainer.probe_every={every}", folder=str(every)))
        folders.append(tmp_path / str(every))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in folders]
    levels = [(folder / "model" / "perturbation.json").read_text(encoding="utf-8") for folder in folders]
    assert weights == [weights[0]] * 3
    assert levels == [levels[0]] * 3
    assert json.loads(levels[0])["log_std"] != [math.log(0.02)] * 3, "σ learned"
    others = [
        [{key: value for key, value in line.items() if not key.startswith(PROBED)} for line in _lines(folder)]
        for folder in folders
    ]
    assert others == [others[0]] * 3
    probed = [[any(key.startswith("budget/") for key in line) for line in _lines(folder)] for folder in folders]
    assert probed == [[False] * 5, [False, True, True, True, True], [False, False, True, False, True]]


def test_it_is_the_noise_of_the_moment_on_the_probe_batch(train_config: Make, tmp_path: Path) -> None:
    """By hand from the finished job: learned σ of that step, each layer by itself, its own draws."""
    job = Job(train_config("method=seq_alp", "trainer.probe_every=4", folder="run"), tmp_path / "run")
    run(job)
    logged, probe, noise = _lines(tmp_path / "run")[-1], job.validation._probe, job.perturbation
    assert noise is not None
    assert len(probe) < budget.SEQUENCES
    temperature = job.config.rollout.temperature
    with torch.no_grad():
        clean = token_log_probs(job.model, probe, temperature)[0].double()
        for layers, name in (([0], "0"), ([2], "2"), ([0, 1, 2], "all")):
            std = [noise.std.tolist()[layer] for layer in layers]
            hand = LayerwisePerturbation(job.model, layers=layers, std=std, seed=job.config.trainer.seed)
            changes = []
            for draw in range(budget.DRAWS):
                with hand.active(
                    update=(1 << 32) - 2 - draw,
                    sequence_ids=probe.sequence_ids,
                    attention_mask=probe.attention_mask,
                ):
                    changes.append(token_log_probs(job.model, probe, temperature)[0].double() - clean)
            hand.detach()
            mask = probe.response_mask
            tokens = torch.cat([change[mask] for change in changes])
            sums = torch.cat([torch.where(mask, change, 0.0).sum(-1) for change in changes])
            assert logged[f"budget/token_variance/{name}"] == pytest.approx(float(tokens.var(correction=0)))
            assert logged[f"budget/sequence_variance/{name}"] == pytest.approx(float(sums.var(correction=0)))
    for level in ("token", "sequence"):
        parts = [logged[f"budget/{level}_variance/{layer}"] for layer in range(3)]
        shares = [logged[f"budget/{level}_share/{layer}"] for layer in range(3)]
        assert shares == pytest.approx([part / math.fsum(parts) for part in parts])
        assert logged[f"budget/{level}_error/all"] > 0
        assert f"budget/{level}_share/all" not in logged


@pytest.mark.parametrize("words", [["method=grpo"], ["method=seq_alp", "variant=sigma0"]])
def test_without_noise_there_is_none(train_config: Make, tmp_path: Path, words: list[str]) -> None:
    train(train_config(*words, "trainer.steps=2", folder="run"))
    line = _lines(tmp_path / "run")[-1]
    assert "sharpness" in line
    assert not any(key.startswith("budget/") for key in line)


def test_many_layers_are_measured_in_bands(train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SOURCES", 2)
    train(train_config("method=token_alp", "trainer.steps=2", folder="run"))
    names = {key.rsplit("/", 1)[1] for key in _lines(tmp_path / "run")[-1] if key.startswith("budget/")}
    assert names == {"0", "1-2", "all"}


def test_noise_at_its_bound_and_on_the_logits(train_config: Make, tmp_path: Path) -> None:
    """exp(log σ) in float32 may lie beyond the bound that σ stands at; logits are one source."""
    words = [f"method.perturbation.{key}" for key in ("std=0.3", "std_min=0.3", "learnable=false")]
    train(train_config("method=token_alp", *words, "trainer.steps=2", folder="bound"))
    last = _lines(tmp_path / "bound")[-1]
    assert last["perturbation/std/0"] == pytest.approx(0.3)
    assert last["budget/token_variance/all"] > 0
    logits = ["method.perturbation.layers=logits", "trainer.steps=2"]
    train(train_config("method=token_alp", *logits, folder="logits"))
    last = _lines(tmp_path / "logits")[-1]
    assert last["budget/token_share/logits"] == 1
    assert last["budget/token_variance/all"] == last["budget/token_variance/logits"]
