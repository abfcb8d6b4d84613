"""Real small folders of the shapes that published ones have: each trains, in float32 its samples are what it scores,
and two of them do so side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from alp import models
from alp.training.loop import train

PLAIN: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
PLAIN |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
PADDED = 13  # ids of the vocabulary that the tokenizer has none for
Make = Callable[[dict[str, Any]], Any]
FOLDERS: dict[str, tuple[Make, str]] = {  # with the way its samples are made
    "tied head": (lambda ends: Qwen2ForCausalLM(Qwen2Config(**PLAIN, **ends, tie_word_embeddings=True)), "cache"),
    "untied head": (lambda ends: LlamaForCausalLM(LlamaConfig(**PLAIN, **ends, tie_word_embeddings=False)), "cache"),
    "padded vocabulary": (
        lambda ends: LlamaForCausalLM(LlamaConfig(**PLAIN, **(ends | {"vocab_size": ends["vocab_size"] + PADDED}))),
        "cache",
    ),
    "sliding window": (
        lambda ends: MistralForCausalLM(MistralConfig(**PLAIN, **ends, head_dim=8, sliding_window=4)),
        "cache",
    ),
    "alternating windows, soft caps": (
        lambda ends: Gemma2ForCausalLM(Gemma2Config(**PLAIN, **ends, head_dim=8, sliding_window=4)),
        "cache",
    ),
    "learned positions": (
        lambda ends: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=128, **ends)),
        "cache",
    ),
    "recurrent": (
        lambda ends: MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=3, state_size=8, **ends)),
        "cache, prompts of one length at a time",
    ),
    "recurrent in heads": (
        lambda ends: Mamba2ForCausalLM(
            Mamba2Config(
                hidden_size=32,
                num_hidden_layers=3,
                state_size=8,
                num_heads=8,
                head_dim=8,
                n_groups=1,
                chunk_size=4,
                **ends,
            )
        ),
        "cache",
    ),
    "no pad token": (lambda ends: Qwen2ForCausalLM(Qwen2Config(**PLAIN, **(ends | {"pad_token_id": None}))), "cache"),
}
ALPHABET = "0123456789+=#| "


def _folder(name: str, folder: Path) -> Path:
    tokenizer = models.character_tokenizer(ALPHABET + "".join(map(chr, range(97, 123))))
    torch.manual_seed(5)
    ends = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "initializer_range": 0.3,  # random, and sure of itself: a wrong cache shows
    }
    if name == "no pad token":
        tokenizer.pad_token = None
    models.save_model(FOLDERS[name][0](ends), tokenizer, folder)
    return folder


WORDS = ("rollout.dtype=float32", "validation.dtype=float32", "trainer.steps=2", "method=seq_alp")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_trains_on_what_it_samples(name: str, tmp_path: Path, train_config: Callable[..., Any]) -> None:
    run = train(train_config(f"model.path='{_folder(name, tmp_path / 'model')}'", *WORDS))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    gaps = [line["rollout_corr/k3_kl"] for line in lines if "rollout_corr/k3_kl" in line]
    assert len(gaps) == 2
    assert max(gaps) < 1e-7
    active = json.loads((run / "active.json").read_text(encoding="utf-8"))
    assert active["decoding"] == FOLDERS[name][1]
    assert models.load_model(run / "model", torch.device("cpu")).config.eos_token_id == 1


def test_two_jobs_with_different_models_side_by_side(tmp_path: Path, train_config: Callable[..., Any]) -> None:
    """Neither sees the other: each gives the bytes that it gives alone."""
    commands = {}
    for name in ("tied head", "recurrent"):
        model = _folder(name, tmp_path / name / "model")
        config = train_config(f"model.path='{model}'", *WORDS, folder=f"{name}/alone")
        train(config)
        words = [
            f"model.path='{model}'",
            *WORDS,
            f"run.dir='{tmp_path / name / 'beside'}'",
            "run.tracking=null",
            *(f"task.{key}={config.task.model_dump()[key]}" for key in ("digits", "train", "validation", "test")),
            *(
                f"trainer.{key}={str(value).lower()}"
                for key, value in config.trainer.model_dump().items()
                if isinstance(value, int | float | str)
            ),
        ]
        commands[name] = [sys.executable, "-m", "alp.cli", "train", *dict.fromkeys(words)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands.values()]
    for process in running:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said[-2000:]
    for name in commands:
        alone, beside = (tmp_path / name / part for part in ("alone", "beside"))
        for file in ("metrics.jsonl", "model/model.safetensors"):
            assert (alone / file).read_bytes() == (beside / file).read_bytes(), (name, file)
