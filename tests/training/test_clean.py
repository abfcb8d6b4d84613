"""The clean policy's log-ratio against μ: an independent float64 reading of it, its cost, and that training is the same
with it and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alp import models
from alp.policy.diagnostics import QUANTILES
from alp.training.batch import Batch
from alp.training.loop import train
from alp.training.update import Updater, UpdateResult

from .test_trainer import _lines

Make = Callable[..., Any]
CPU = torch.device("cpu")
METHODS = ("grpo", "gspo", "token_bypass", "seq_mis", "token_alp", "seq_alp")
WORDS = ["trainer.steps=1", "trainer.probe_every=1", "trainer.updates_per_batch=2", "rollout.temperature=0.8"]


@dataclass
class Seen:
    """Of every update: the weights that it started from, its mini-batch, its log-ratio."""

    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    raw: list[torch.Tensor] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Fills as updates happen."""
    found, plain = Seen(), Updater.update

    def update(self: Updater, batch: Batch, index: int) -> tuple[torch.Tensor, UpdateResult]:
        found.weights.append({name: value.detach().clone() for name, value in self.model.state_dict().items()})
        found.batches.append(batch)
        raw, result = plain(self, batch, index)
        found.raw.append(raw)
        return raw, result

    monkeypatch.setattr(Updater, "update", update)
    return found


def reading(folder: Path, weights: dict[str, torch.Tensor], batches: list[Batch], temperature: float) -> dict[str, Any]:
    """log π_θ − log μ of every response token and sequence, one sequence at a time without padding, in float64."""
    model = models.load_model(folder, CPU)
    model.load_state_dict(weights)
    model = model.double()
    tokens: list[float] = []
    sums: list[float] = []
    for batch in batches:
        for row in range(len(batch)):
            length = int(batch.lengths[row])
            ids = batch.input_ids[row : row + 1, :length]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0].double() / temperature
            gaps = [
                float(logits[place - 1].log_softmax(-1)[ids[0, place]] - batch.rollout_log_probs[row, place].double())
                for place in range(1, length)
                if bool(batch.response_mask[row, place])
            ]
            tokens += gaps
            sums.append(sum(gaps))
    return {"token": np.array(tokens), "sequence": np.array(sums)}


def assert_figures(line: dict[str, Any], prefix: str, values: dict[str, Any]) -> None:
    """Moments and quantiles of ``values`` under their names, but for float32's rounding of the model."""
    for level, numbers in values.items():
        expected = {
            "mean": numbers.mean(),
            "std": numbers.std(),
            "min": numbers.min(),
            "max": numbers.max(),
            **{name: np.quantile(numbers, share) for name, share in QUANTILES.items()},
        }
        for name, value in expected.items():
            assert line[f"{prefix}/{level}/log_{name}"] == pytest.approx(value, abs=3e-5), (prefix, level, name)


@pytest.mark.parametrize("variant", [None, "relative"])
@pytest.mark.parametrize("method", METHODS)
def test_clean_figures_are_those_of_the_unperturbed_policy(
    train_config: Make, base_model: Path, seen: Seen, method: str, variant: str | None
) -> None:
    """Noise in them, another denominator, other weights than those before the last update or after it, another
    mini-batch."""
    if variant and not method.endswith("alp"):
        pytest.skip("no noise to vary")
    words = [f"method={method}", *WORDS, *([f"variant={variant}"] if variant else [])]
    folder = train(train_config(*words, folder="run"))
    (line,) = _lines(folder)[1:]
    temperature = 0.8
    last = reading(base_model, seen.weights[-1], seen.batches[-1:], temperature)
    assert_figures(line, "clean", last)
    final = load_file(folder / "model" / "model.safetensors")
    after = {name: final.get(name, value) for name, value in seen.weights[-1].items()}
    if "lm_head.weight" in after and "lm_head.weight" not in final:  # tied
        after["lm_head.weight"] = final["model.embed_tokens.weight"]
    whole = reading(base_model, after, seen.batches, temperature)
    assert_figures(line, "clean_batch", whole)
    k3 = np.exp(whole["token"]) - 1 - whole["token"]
    assert line["clean_batch/k3_kl"] == pytest.approx(k3.mean(), rel=1e-3, abs=1e-8)
    mismatch = np.concatenate(
        [(batch.old_log_probs.double() - batch.rollout_log_probs)[batch.response_mask] for batch in seen.batches]
    )
    stale = whole["token"] - mismatch
    assert line["clean_batch/k3_kl_old"] == pytest.approx((np.exp(stale) - 1 - stale).mean(), rel=1e-3, abs=1e-8)
    assert float(np.abs(last["token"]).max()) > 1e-3, "weights have moved, or μ is of another dtype"
    noisy = {key for key in line if key.startswith("perturbed/")}
    if method.endswith("alp"):
        mask = seen.batches[-1].response_mask
        raw = seen.raw[-1].double()
        perturbed = {"token": raw[mask].numpy(), "sequence": raw.sum(-1).numpy()}
        assert_figures(line, "perturbed", perturbed)
        assert abs(line["perturbed/token/log_std"] - line["clean/token/log_std"]) > 1e-5
    else:
        assert not noisy
    (logged,) = _lines(folder, "updates.jsonl")
    assert logged["clean_log_ratio"] == pytest.approx(last["sequence"].tolist(), abs=1e-4)
    assert len(logged["clean_log_ratio"]) == len(logged["log_ratio"])


def test_perturbed_is_against_mu_whatever_the_denominator(train_config: Make, seen: Seen) -> None:
    """A numerator under noise over π_old: its ``perturbed/…`` must not be its own ratio."""
    folder = train(train_config("method=token_alp", "method.denominator=old", *WORDS, folder="run"))
    (line,) = _lines(folder)[1:]
    batch = seen.batches[-1]
    ratio = (seen.raw[-1].double() + batch.old_log_probs.double() - batch.rollout_log_probs.double())[
        batch.response_mask
    ]
    assert line["perturbed/token/log_mean"] == pytest.approx(float(ratio.mean()), abs=1e-6)
    assert abs(line["perturbed/token/log_mean"] - float(seen.raw[-1][batch.response_mask].mean())) > 1e-6


@pytest.mark.parametrize("words", [["method=grpo"], ["method=seq_alp"], ["method=seq_alp", "variant=relative"]])
def test_training_is_the_same_without_it(train_config: Make, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """A reading that draws random numbers, leaves a gradient, or keeps the noise from acting."""
    with_it = train(train_config(*words, folder="with"))
    monkeypatch.setattr("alp.training.clean.unperturbed", lambda *_: None)
    monkeypatch.setattr("alp.training.clean.metrics", lambda *_: {})
    without = train(train_config(*words, folder="without"))
    names = (
        "model/model.safetensors",
        *(["model/perturbation.json"] if len(words[0]) == len("method=seq_alp") else []),
    )
    for name in names:
        assert (with_it / name).read_bytes() == (without / name).read_bytes()
    ours = ("clean/", "clean_batch/", "perturbed/")
    plain = [{key: value for key, value in line.items() if not key.startswith(ours)} for line in _lines(with_it)]
    assert plain == _lines(without)


@pytest.mark.parametrize(
    ("level", "control", "wide"), [("seq", "seq_bypass", None), ("token", "token_bypass", "clip_wide")]
)
def test_noise_free_alp_reads_like_bypass(train_config: Make, level: str, control: str, wide: str | None) -> None:
    one = train(train_config(f"method={level}_alp", "variant=sigma0", folder="one"))
    two = train(train_config(f"method={control}", *([f"variant={wide}"] if wide else []), folder="two"))
    assert _lines(one) == _lines(two)


@pytest.mark.parametrize(("method", "forwards"), [("seq_bypass", 0), ("grpo", 0), ("seq_alp", 1), ("token_alp", 1)])
def test_it_costs_one_forward_of_a_mini_batch_under_noise_and_none_without(
    train_config: Make, monkeypatch: pytest.MonkeyPatch, method: str, forwards: int
) -> None:
    """Forwards of the model in training without gradient, between the first update and the sync."""
    calls: list[int] = []
    plain, started = Updater.update, False

    def update(self: Updater, batch: Batch, index: int) -> Any:
        nonlocal started
        if not started:
            started = True

            def count(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
                if not torch.is_grad_enabled():
                    calls.append(len(kwargs["input_ids"]))

            self.model.register_forward_pre_hook(count, with_kwargs=True)
        return plain(self, batch, index)

    monkeypatch.setattr(Updater, "update", update)
    words = ["trainer.steps=1", "trainer.probe_every=0", "trainer.validate_every=0", "trainer.updates_per_batch=4"]
    train(train_config(f"method={method}", *words, folder="run"))
    assert calls == [4] * forwards
