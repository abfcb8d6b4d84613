"""The model presets: each names a family whose architecture a tiny random model goes through a whole training job
with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from alp import models
from alp.configuration import compose
from alp.errors import UserError
from alp.training.loop import train
from tests.chat import CHATML, DATED, chat_tokenizer

COMMON: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
COMMON |= {"num_key_value_heads": 2, "max_position_embeddings": 256}
ROPE = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "qwen2_5_math_1_5b": lambda ends: Qwen2ForCausalLM(Qwen2Config(**COMMON, **ends, tie_word_embeddings=True)),
    "qwen2_5_7b": lambda ends: Qwen2ForCausalLM(Qwen2Config(**COMMON, **ends, tie_word_embeddings=False)),
    "qwen3_4b": lambda ends: Qwen3ForCausalLM(Qwen3Config(**COMMON, **ends, head_dim=16, tie_word_embeddings=True)),
    "llama3_2_3b_instruct": lambda ends: LlamaForCausalLM(
        LlamaConfig(**COMMON, **ends, tie_word_embeddings=True, rope_parameters=ROPE | {"rope_theta": 500000.0})
    ),
    "smollm2_135m": lambda ends: LlamaForCausalLM(LlamaConfig(**COMMON, **ends, tie_word_embeddings=True)),
}
EMBEDDED = ("arithmetic_tiny", "calculator_tiny")
PRESETS = [name for name in compose.choices("model") if name not in EMBEDDED]


def _tiny(preset: str, folder: Path) -> Path:
    tokenizer = chat_tokenizer(DATED if preset.startswith("llama") else CHATML)
    torch.manual_seed(0)
    ends = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    models.save_model(FAMILIES[preset](ends), tokenizer, folder)
    return folder


def _job(preset: str, model: Path, folder: Path, *words: str) -> Path:
    loaded = compose.load(
        "train",
        [
            *(
                "task=sums_in_words",
                f"model={preset}",
                f"model.path='{model}'",
                "method=seq_alp",
                f"run.dir='{folder}'",
                "run.tracking=null",
            ),
            *(
                "trainer.steps=1",
                "trainer.prompts=2",
                "trainer.samples=2",
                "trainer.updates_per_batch=1",
                "trainer.validate_every=0",
            ),
            *(
                "trainer.probe_every=0",
                "trainer.checkpoint_every=0",
                "trainer.device=cpu",
                "rollout.max_new_tokens=4",
                *words,
            ),
        ],
    )
    return train(loaded)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = models.load_model(folder, torch.device("cpu")).state_dict()
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_its_architecture(preset: str, tmp_path: Path) -> None:
    model = _tiny(preset, tmp_path / "tiny")
    run = _job(preset, model, tmp_path / "run", "trainer.lr=1e-3", "trainer.kl=0.1")
    active = json.loads((run / "active.json").read_text(encoding="utf-8"))
    assert active["perturbation"]["layers"] == [0, 1, 2, 3]
    assert active["gradient_checkpointing"] == (0 if preset == "smollm2_135m" else 4)
    metrics = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8"))
    assert metrics["policy/skipped"] == 0
    assert metrics["policy/grad_norm"] > 0
    assert all(metrics[f"perturbation/realised_rms/{layer}"] == pytest.approx(0.02, rel=0.2) for layer in range(4))
    assert _weights(model).keys() == _weights(run / "model").keys()


def test_checkpointed_layers_change_no_bit(tmp_path: Path) -> None:
    model = _tiny("qwen3_4b", tmp_path / "tiny")
    words = ["trainer.lr=1e-3", "trainer.kl=0.1"]
    one = _job("qwen3_4b", model, tmp_path / "one", *words)
    two = _job("qwen3_4b", model, tmp_path / "two", *words, "model.gradient_checkpointing=false")
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    first, second = _weights(one / "model"), _weights(two / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("preset", PRESETS)
def test_without_its_folder_a_preset_names_the_command_that_makes_it(preset: str, tmp_path: Path) -> None:
    loaded = compose.load("train", [f"model={preset}", f"run.dir='{tmp_path}'", "run.tracking=null"])
    with pytest.raises(UserError, match=f"alp fetch model={preset}"):
        train(loaded)
    with pytest.raises(UserError, match="is not taught here"):
        compose.load("pretrain", [f"model={preset}"])
    assert compose.load("fetch", [f"model={preset}"]).model.source is not None


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_has_nothing_to_fetch(name: str) -> None:
    with pytest.raises(UserError, match="has no source"):
        compose.load("fetch", [f"model={name}"])
