"""Low-rank adapters (``model.lora``): few values trained, merged weights served and saved, all else as without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from alp import adapters, models
from alp.configuration.compose import choices
from alp.configuration.model_schema import Lora
from alp.errors import UserError
from alp.rollout.engine import Host, Probe
from alp.rollout.hf import HFEngine
from alp.rollout.probe import Probed, StaleWeights, sequence_log_probs, sequences
from alp.training.job import Job
from alp.training.loop import run, train
from alp.training.scoring import padded, sample, score
from tests.policy.architectures import ARCHITECTURES, build
from tests.rollout.test_folders import FOLDERS, PLAIN

Make = Callable[..., Any]
LORA = "model.lora={rank: 2, alpha: 8}"
IDS = torch.tensor([[3, 9, 4, 7, 21, 5, 11]])
SETTINGS = Lora(rank=2, alpha=8.0)
RECURRENT = Lora(rank=2, alpha=8.0, targets=["in_proj"])  # out_proj is fused into a kernel on a GPU


def _made(name: str) -> Any:
    torch.manual_seed(7)
    ends = {"vocab_size": 40, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None, "initializer_range": 0.3}
    return FOLDERS[name][0](ends).eval()


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def _check_same(logits: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to rounding: kernels of convolutions choose by where in memory their input lies."""
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def _filled(plain: Any, weights: dict[str, torch.Tensor]) -> Any:
    model = type(plain)(plain.config).eval()
    assert weights.keys() == {name for name, _ in plain.named_parameters()}
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_of_every_shape_is_served_and_saved_merged(name: str, tmp_path: Path) -> None:
    untouched, model = _made(name), _made(name)
    before = _logits(model)
    adapters.attach(model, SETTINGS if "recurrent" not in name else RECURRENT, seed=3)
    _check_same(_logits(model), before)  # B = 0 changes nothing
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert len(names) == 2 * len(adapters.layers_of(model)) > 0
    same = dict(adapters.served(model))
    assert all(torch.equal(value, same[key]) for key, value in untouched.named_parameters())
    structure = adapters.plain(model)
    assert [key for key, _ in structure.named_parameters()] == [key for key, _ in untouched.named_parameters()]

    with adapters.stirred(model):
        moved = _logits(model)
        assert float((moved - before).abs().mean()) > 1e-2
        weights = {key: value.clone() for key, value in adapters.served(model)}
        with adapters.base(model):
            _check_same(_logits(model), before)
        _check_same(_logits(model), moved)
        assert {name for name, value in model.named_parameters() if value.requires_grad} == names
        kept = {key: value.clone() for key, value in adapters.state(model).items()}
        adapters.save(model, tmp_path / "adapter", "tiny")
    _check_same(_logits(model), before)  # stirring leaves no trace
    torch.testing.assert_close(_logits(_filled(untouched, weights)), moved, rtol=1e-4, atol=1e-4)

    adapters.load_state(model, kept)
    _check_same(_logits(model), moved)
    adapters.merge(model)
    assert adapters.layers_of(model) == {}
    assert all(torch.equal(value, weights[key]) for key, value in model.named_parameters())
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    _check_same(_logits(again), _logits(model))

    from peft import PeftModel

    read = PeftModel.from_pretrained(untouched, tmp_path / "adapter").eval()
    _check_same(_logits(read), moved)  # whoever reads the adapter with peft has the same model


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_is_adapted_or_refused(name: str) -> None:
    model, plain = build(name).eval(), {key for key, _ in build(name).named_parameters()}
    try:
        adapters.attach(model, SETTINGS, 0)
    except UserError:
        with pytest.raises(UserError, match=r"name other|its linear layers are"):
            adapters.attach(build(name).eval(), SETTINGS, 0)
        return
    assert {key for key, _ in adapters.served(model)} == plain
    adapters.merge(model)
    assert {key for key, _ in model.named_parameters()} == plain


def test_a_start_belongs_to_its_seed_and_layer() -> None:
    starts = []
    for seed in (1, 1, 2):
        model = _made("tied head")
        torch.manual_seed(seed + 100)  # no matter
        adapters.attach(model, SETTINGS, seed)
        starts.append([value.clone() for name, value in model.named_parameters() if ".lora_A." in name])
    assert all(torch.equal(one, other) for one, other in zip(*starts[:2], strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(*starts[1:], strict=True))
    assert not torch.equal(starts[0][0], starts[0][1])
    size = starts[0][0].shape[1] ** -0.5
    assert float(starts[0][0].abs().max()) <= size
    assert float(torch.cat([value.flatten() / (value.shape[1] ** -0.5) for value in starts[0]]).std()) == pytest.approx(
        3**-0.5, rel=0.05
    )


class _Uncalled(LlamaForCausalLM):
    """Uses the weights of one projection without calling it, as fused kernels do."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            part = layer.mlp
            part.forward = lambda x, part=part: part.down_proj(
                part.act_fn(torch.nn.functional.linear(x, part.gate_proj.weight)) * part.up_proj(x)
            )


def test_weights_that_are_used_without_their_layer_are_refused() -> None:
    model = _Uncalled(LlamaConfig(**PLAIN, vocab_size=40)).eval()
    with pytest.raises(UserError, match=r"uses the weights of gate_proj without calling .* name other layers"):
        adapters.attach(model, SETTINGS, 0)
    model = _Uncalled(LlamaConfig(**PLAIN, vocab_size=40)).eval()
    adapters.attach(model, Lora(rank=2, alpha=8.0, targets=["q_proj", "up_proj"]), 0)


@pytest.mark.parametrize("name", [name for name in FOLDERS if "recurrent" in name])
def test_layers_that_are_fused_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"'out_proj' is incompatible .* its linear layers are .*in_proj"):
        adapters.attach(_made(name), SETTINGS, 0)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("[q_prj]", r"no linear layer 'q_prj' below its head; did you mean 'q_proj'\?"),
        ("[q_proj, embed_tokens]", r"no linear layer 'embed_tokens'"),
        ("[q_proj, lm_head]", r"no linear layer 'lm_head' below its head"),
        ("[proj]", r"no linear layer 'proj'"),
    ],
)
def test_targets_that_are_not_there_are_refused_before_weights_are_read(
    train_config: Make, targets: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=message):
        Job(train_config(f"model.lora={{rank: 2, alpha: 8, targets: {targets}}}"), Path("run"))


@pytest.mark.parametrize("method", choices("method"))
def test_every_preset_trains_the_adapter_alone(method: str, train_config: Make, base_model: Path) -> None:
    words = (f"method={method}", LORA, "trainer.steps=2", "rollout.dtype=float32", "trainer.kl=0.1")
    folder = train(train_config(*words, "trainer.prompts=16", "trainer.samples=8"))
    active = json.loads((folder / "active.json").read_text(encoding="utf-8"))
    assert (active["lora"]["layers"], active["lora"]["rank"], active["lora"]["alpha"]) == (21, 2, 8.0)
    assert active["optimizer_groups"][0]["tensors"] == 42
    assert active["borrowed"] is False
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line["rollout_corr/k3_kl"] < 1e-6 for line in lines if line["step"]), "served: what is trained"
    first, final = load_file(base_model / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    moved = {key for key, value in final.items() if not torch.equal(value, first[key])}
    assert moved == {key for key in first if "_proj.weight" in key}
    assert (folder / "adapter" / "adapter_config.json").is_file()
    if "alp" in method:
        assert active["perturbation"]["hooks"] == 3


def test_killed_and_continued_equals_undisturbed(train_config: Make, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    words = (LORA, "method=token_alp", "trainer.kl=0.1")
    train(train_config(*words, folder="whole"))

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        train(train_config(*words, folder="broken"), kill)
    checkpoint = next((tmp_path / "broken" / "checkpoints").glob("step_*")) / "state.pt"
    kept = torch.load(checkpoint, weights_only=True)["model"]
    assert kept
    assert all(".lora_" in name for name in kept), "what is frozen is in the base model's folder"
    train(train_config(*words, folder="broken"))
    for name in ("metrics.jsonl", "active.json", "model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name
    config = json.loads((tmp_path / "whole" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == sorted(config["target_modules"])


def test_the_reference_is_the_model_without_its_adapter(train_config: Make, tmp_path: Path) -> None:
    job = Job(train_config(LORA, "trainer.kl=0.1"), tmp_path)
    job.engine.sync_weights(adapters.served(job.model), version=0)
    batch = padded(job, sample(job, 1), 1)
    assert job.reference is None
    before = score(job, batch)[0]
    assert torch.equal(before.ref_log_probs, before.old_log_probs)
    with adapters.stirred(job.model):
        after = score(job, batch)[0]
    assert torch.equal(after.ref_log_probs, before.ref_log_probs)
    assert not torch.allclose(after.old_log_probs, before.old_log_probs)


def test_a_gradient_with_layers_computed_again_is_the_same(train_config: Make, tmp_path: Path) -> None:
    for flag in ("true", "false"):
        words = (LORA, "method=seq_alp", f"model.gradient_checkpointing={flag}", "trainer.steps=2")
        train(train_config(*words, folder=flag))
    models = [(tmp_path / flag / "model" / "model.safetensors").read_bytes() for flag in ("true", "false")]
    assert models[0] == models[1]


class _Forgets(HFEngine):
    """Serves the weights that the adapter stands beside."""

    def sync_weights(self, weights: Any, version: int) -> dict[str, float]:
        base = {f"{name}.weight": layer.base_layer.weight for name, layer in adapters.layers_of(self.trained).items()}
        return super().sync_weights(((name, base.get(name, value)) for name, value in weights), version)


@pytest.mark.parametrize("kind", [HFEngine, _Forgets])
def test_an_engine_without_the_adapter_is_seen_at_the_first_sync(
    kind: type[HFEngine], train_config: Make, tmp_path: Path
) -> None:
    job = Job(train_config(LORA), tmp_path)
    engine: Any = kind(job.model, dtype="float32", device=job.device, batch_size=8)
    engine.trained = job.model
    fixed = Probe(
        sequences([[3, 4, 5], [6, 7]], 10, seed=0),
        lambda rows, temperature: sequence_log_probs(job.model, rows, temperature),
        dtype="float32",
    )
    host = Host(job.model, job.folder, Path("log"), job.device, 0, fixed)
    job.engine = job.validator = Probed(engine, host, name="hf", temperature=1.0)
    if kind is _Forgets:
        with pytest.raises(StaleWeights, match="it holds other weights"):
            job.prove_adapter()
    else:
        job.prove_adapter()


def test_what_is_active_is_held_against_the_configuration(
    train_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(adapters, "attach", lambda *_: None)
    job = Job(train_config(LORA), tmp_path)
    with pytest.raises(RuntimeError, match="lora: None is active"):
        run(job)
