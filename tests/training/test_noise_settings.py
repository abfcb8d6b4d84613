"""How log σ is scaled, held, decayed and clipped in an update, and that a job states it and refuses anything else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alp import models
from alp.configuration import compose
from alp.policy import LayerwisePerturbation
from alp.training.job import Job
from alp.training.loop import run, train
from alp.training.settings_report import check_active, describe_active
from alp.training.update import Updater, UpdateResult

from .test_trainer import Killed, _digest, _kill_at, _lines
from .test_update import CPU, _batch

Make = Callable[..., Any]
VARIANTS = ("relative", "skip_first", "authors", "sigma0", "fixed_sigma")


def _update(base_model: Path, *words: str) -> tuple[Updater, UpdateResult, Tensor]:
    """One update of token_alp on a fixed batch; the updater, what it did, and the clipped gradient of log σ."""
    job = compose.load("train", ["method=token_alp", "trainer.lr=1e-3", *words])
    model, settings = models.load_model(base_model, CPU), job.method.perturbation
    assert settings is not None
    noise = LayerwisePerturbation(
        model, layers=settings.layers, scale=settings.scale, std=settings.std, dtype=settings.dtype, seed=9
    )
    updater = Updater(model, job.method, job.trainer, perturbation=noise, temperature=1.0, reference=False)
    _, result = updater.update(_batch(model), 3)
    assert not result.skipped
    (logs,) = noise.parameters()
    return updater, result, 10 * updater.optimizer.state[logs]["exp_avg"]  # a tenth after one step


def _weights_norm(updater: Updater) -> float:
    """Of their clipped gradient."""
    weights = updater.optimizer.param_groups[0]["params"]
    moments = torch.cat([updater.optimizer.state[weight]["exp_avg"].flatten() for weight in weights])
    return 10 * float(moments.double().norm())


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_decay_pulls_log_sigma_towards_zero_and_nothing_else(base_model: Path, scale: str) -> None:
    """AdamW's decay: s loses lr · decay · s beside its step, and the weights keep theirs."""
    word = f"method.perturbation.scale={scale}"
    plain, _, _ = _update(base_model, word)
    decayed, _, _ = _update(base_model, word, "method.perturbation.weight_decay=0.5", "method.perturbation.lr=0.01")
    assert plain.perturbation is not None
    assert decayed.perturbation is not None
    logs = [updater.perturbation.std.double().log() for updater in (plain, decayed) if updater.perturbation is not None]
    expected = torch.full_like(logs[0], -0.01 * 0.5 * math.log(0.02))
    assert torch.allclose(logs[1] - logs[0], expected, atol=2e-6)
    for one, two in zip(plain.model.parameters(), decayed.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_the_global_norm_counts_and_clips_log_sigma_only_where_it_is_asked_to(
    base_model: Path, scale: str, limit: float
) -> None:
    """A gradient of log σ that is clipped and not counted, or counted and not clipped."""
    words = (f"method.perturbation.scale={scale}", f"trainer.max_grad_norm={limit}")
    (apart, first, own), (together, second, joint) = (
        _update(base_model, *words, f"method.perturbation.in_global_norm={value}") for value in ("false", "true")
    )
    raw = torch.tensor(first.noise["grad"], dtype=torch.float64)
    assert second.noise["grad"] == first.noise["grad"], "what is reported is not clipped"
    assert torch.allclose(own.double(), raw, rtol=1e-5)
    alone, all_of_it = first.metrics["policy/grad_norm"], second.metrics["policy/grad_norm"]
    assert all_of_it == pytest.approx(math.hypot(alone, float(raw.norm())), rel=1e-5)
    assert all_of_it > alone
    share = min(1.0, limit / all_of_it)
    assert torch.allclose(joint.double(), share * raw, rtol=1e-4)
    assert _weights_norm(together) == pytest.approx(share * alone, rel=1e-4)
    assert _weights_norm(apart) == pytest.approx(min(1.0, limit / alone) * alone, rel=1e-4)


def test_relative_noise_in_micro_batches_is_the_same(base_model: Path) -> None:
    """Sizes of the last piece in place of the mini-batch's."""
    word = "method.perturbation.scale=relative"
    (_, whole, slope), (_, pieces, parts) = (
        _update(base_model, word, *more) for more in ([], ["trainer.micro_tokens=24"])
    )
    assert torch.allclose(slope, parts, rtol=1e-3, atol=1e-7)
    assert pieces.noise["grad"] == pytest.approx(whole.noise["grad"], rel=1e-3, abs=1e-7)
    for name in ("std", "realised_rms", "hidden_rms"):
        assert pieces.noise[name] == pytest.approx(whole.noise[name], rel=1e-4), name
    sizes = [0.02 * size for size in whole.noise["hidden_rms"]]
    assert whole.noise["std"] == pytest.approx(sizes, rel=0.5), "the mean of c · RMS, near c times the RMS of all"


@pytest.mark.parametrize("variant", ["relative", "skip_first", "authors"])
def test_killed_and_continued_equals_undisturbed(train_config: Make, tmp_path: Path, variant: str) -> None:
    """Scale, decay or the rounded log σ of a checkpoint that are taken up as another's."""
    words = ["method=seq_alp", f"variant={variant}", "trainer.precision=bfloat16"]
    train(train_config(*words, folder="whole"))
    job = train_config(*words, folder="broken")
    with pytest.raises(Killed):
        train(job, _kill_at(2))
    train(job)
    names = ("metrics.jsonl", "updates.jsonl", "active.json", "model/model.safetensors", "model/perturbation.json")
    assert _digest(tmp_path / "broken", names) == _digest(tmp_path / "whole", names)


def test_relative_runs_log_c_and_what_it_makes(train_config: Make, tmp_path: Path) -> None:
    train(train_config("method=seq_alp", "variant=relative", folder="run"))
    lines = _lines(tmp_path / "run")[1:]
    saved = json.loads((tmp_path / "run" / "model" / "perturbation.json").read_text(encoding="utf-8"))
    assert saved["scale"] == "relative"
    for layer in range(3):
        learned = [line[f"perturbation/relative_std/{layer}"] for line in lines]
        assert learned[-1] == pytest.approx(math.exp(saved["log_std"][layer]), rel=1e-6)
        assert all(0.005 < value < 0.02 for value in learned)
        assert len(set(learned)) > 1, "c learns"
        for line in lines:
            made, hidden = line[f"perturbation/std/{layer}"], line[f"perturbation/hidden_rms/{layer}"]
            assert made <= 0.012 * hidden, "the mean of RMS is at most the RMS"
            assert line[f"perturbation/realised_rms/{layer}"] == pytest.approx(made, rel=0.4)
    absolute = train(train_config("method=seq_alp", folder="absolute"))
    assert "scale" not in json.loads((absolute / "model" / "perturbation.json").read_text(encoding="utf-8"))
    assert not any("relative_std" in key for line in _lines(absolute) for key in line)


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_active_states_the_noise(train_config: Make, tmp_path: Path, variant: str, precision: str) -> None:
    words = ["method=token_alp", f"variant={variant}", f"trainer.precision={precision}", "trainer.steps=1"]
    noise = json.loads((train(train_config(*words, folder="run")) / "active.json").read_text(encoding="utf-8"))
    noise = noise["perturbation"]
    trained = variant not in ("sigma0", "fixed_sigma")
    held = "bfloat16" if (variant, precision) == ("authors", "bfloat16") else "float32"
    assert noise["scale"] == ("relative" if variant == "relative" else "absolute")
    assert noise["dtype"] == ("hidden" if variant == "authors" else "wide")
    assert noise["log_std_dtype"] == (held if trained else None)
    assert noise["weight_decay"] == ((0.01 if variant == "authors" else 0.0) if trained else None)
    assert noise["in_global_norm"] == ((variant == "authors") if trained else None)
    assert noise["layers"] == ([1, 2] if variant == "skip_first" else [0, 1, 2])
    assert noise["std"] == {"relative": 0.01, "sigma0": 0.0}.get(variant, 0.02)


def _described(job: Job) -> dict[str, Any]:
    return json.loads(json.dumps(describe_active(job.config, job.engine, job.model, job.updater)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", "absolute"),
        ("dtype", "hidden"),
        ("weight_decay", 0.01),
        ("in_global_norm", True),
        ("log_std_dtype", "bfloat16"),
    ],
)
def test_noise_other_than_configured_stops_the_job(train_config: Make, tmp_path: Path, key: str, value: Any) -> None:
    job = Job(train_config("method=token_alp", "variant=relative", folder="run"), tmp_path / "run")
    active = _described(job)
    check_active(job.config, active)
    active["perturbation"][key] = value
    with pytest.raises(RuntimeError, match=r"perturbation: .* is active, the configuration says"):
        check_active(job.config, active)


def test_what_the_objects_do_is_what_is_stated(train_config: Make, tmp_path: Path) -> None:
    """A description copied from the configuration, in place of the objects that do the work."""
    for name, change in {
        "scale": lambda job: setattr(job.perturbation, "scale", "absolute"),
        "decay": lambda job: job.updater.optimizer.param_groups[1].update(weight_decay=0.5),
        "norm": lambda job: setattr(job.updater, "clipped", [*job.updater.clipped, *job.perturbation.parameters()]),
    }.items():
        job = Job(train_config("method=token_alp", "variant=relative", folder=name), tmp_path / name)
        change(job)
        with pytest.raises(RuntimeError, match=r"perturbation: .* is active, the configuration says"):
            run(job)
