"""A model is loaded whole or refused in one line: every tensor there, of its shape, floating and finite, from its own
folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alp import models
from alp.cli import main
from alp.errors import UserError
from alp.reproducibility import sha256_file
from tests.conftest import TINY_TASK

CPU = torch.device("cpu")
ONE = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
Tensors = dict[str, torch.Tensor]
Make = Callable[..., Path]


@pytest.fixture
def folder(base_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(base_model, tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, act: Callable[[Tensors], Any]) -> Path:
    """The same model with other tensors in its file."""
    tensors = load_file(folder / "model.safetensors")
    act(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configure(folder: Path, **values: Any) -> Path:
    plain = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(plain | values))
    return folder


def shard(folder: Path) -> dict[str, str]:
    """Two files and an index in place of one; returns which tensor is where."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file(
            {name: tensors[name] for name in places if places[name] == file}, folder / file, metadata={"format": "pt"}
        )
    index(folder, places)
    return places


def index(folder: Path, places: Any, **more: Any) -> None:
    plain = {"metadata": {"total_size": 1}, "weight_map": places} | more
    (folder / "model.safetensors.index.json").write_text(json.dumps(plain))


def load(folder: Path) -> Any:
    models.check_folder(str(folder))
    models.load_tokenizer(folder)
    return models.load_model(folder, CPU)


FAULTS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda t: t.pop(ONE), f"1 missing tensor ({ONE})"),
    "several": (
        lambda t: [t.pop(name) for name in list(t) if "mlp" in name],
        "9 missing tensors (model.layers.0.mlp.down_proj.weight, ",
    ),
    "no embedding": (lambda t: t.pop(EMBEDDING), f"2 missing tensors (lm_head.weight, {EMBEDDING})"),
    "unexpected": (lambda t: t.update({"extra.weight": torch.ones(2)}), "1 unexpected tensor (extra.weight)"),
    "another layer": (
        lambda t: t.update({ONE.replace(".1.", ".7."): t[ONE].clone()}),
        "1 unexpected tensor (model.layers.7.mlp",
    ),
    "shape": (lambda t: t.update({ONE: torch.ones(3, 3)}), f"1 mis-shaped tensor ({ONE}: [3, 3] for [64, 32])"),
    "transposed": (lambda t: t.update({ONE: t[ONE].T.contiguous()}), f"({ONE}: [32, 64] for [64, 32])"),
    "int8": (lambda t: t.update({ONE: t[ONE].to(torch.int8)}), f"1 integer tensor ({ONE}: I8 in model.safetensors)"),
    "bool": (lambda t: t.update({ONE: t[ONE] > 0}), f"1 integer tensor ({ONE}: BOOL in model.safetensors)"),
    "fp8": (lambda t: t.update({ONE: t[ONE].to(torch.float8_e4m3fn)}), "1 F8_E4M3 tensor"),
    "nan": (lambda t: t[ONE][3, 4:5].fill_(float("nan")), f"1 non-finite tensor ({ONE})"),
    "infinity in the tied one": (
        lambda t: t[EMBEDDING][0, :1].fill_(float("inf")),
        f"1 non-finite tensor ({EMBEDDING})",
    ),
    "beyond float32": (lambda t: t.update({ONE: t[ONE].double() * 1e300}), f"1 non-finite tensor ({ONE})"),
    "tied and another": (
        lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}),
        "1 doubly stored tensor (lm_head.weight",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_model_that_is_not_whole_is_refused_by_name(name: str, folder: Path) -> None:
    act, message = FAULTS[name]
    change(folder, act)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"model.path: {folder}")
    assert len(str(caught.value)) < 600


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    change(
        folder, lambda t: (t.pop(ONE), t.update({"extra.weight": torch.ones(2), "model.norm.weight": torch.ones(7)}))
    )
    with pytest.raises(UserError, match=r"1 missing tensor .*; 1 unexpected tensor .*; 1 mis-shaped tensor"):
        load(folder)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_every_verb_that_reads_a_model_refuses(
    verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, FAULTS["missing"][0])
    assert main([verb, *TINY_TASK, f"model.path='{folder}'", f"run.dir='{tmp_path}/run'", "run.tracking=null"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"alp: error: model.path: {folder} is not whole: 1 missing tensor ({ONE})"
    assert "LOAD REPORT" not in "".join(said)


def _rotary(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)  # a buffer that older versions saved


def _bare(tensors: Tensors) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)  # saved from the model without its head


IGNORABLE: dict[str, Callable[[Tensors], Any]] = {
    "as saved": lambda t: None,
    "old rotary buffers": _rotary,
    "a head that is the embedding": lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone()}),
    "the tied one under the other name": lambda t: t.update({"lm_head.weight": t.pop(EMBEDDING)}),
    "without the head's prefix": _bare,
}


@pytest.mark.parametrize("name", IGNORABLE)
def test_what_a_class_declares_is_neither_missing_nor_unexpected(name: str, folder: Path, base_model: Path) -> None:
    expected = models.load_model(base_model, CPU).state_dict()
    found = load(change(folder, IGNORABLE[name])).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_old_masks_of_gpt2_are_ignorable_though_they_are_integers(folder: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = models.load_tokenizer(folder)
    old = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=8, n_layer=2, n_head=2))
    models.save_model(old, tokenizer, tmp_path / "old")
    change(
        tmp_path / "old", lambda t: t.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16, dtype=torch.uint8)})
    )
    assert load(tmp_path / "old").config.model_type == "gpt2"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_into_float32_and_said(
    dtype: torch.dtype, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="alp.models")
    kind = str(dtype).removeprefix("torch.")
    model = load(change(folder, lambda t: t.update({name: value.to(dtype) for name, value in t.items()})))
    assert model.read_from == {kind: 38}
    assert [record.getMessage() for record in caplog.records] == [f"{folder}: 38 tensors of {kind} read into float32"]
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_a_run_records_what_its_weights_were_read_from(folder: Path, train_config: Any, tmp_path: Path) -> None:
    from alp.training.loop import train

    active = {}
    for name in ("float32", "bfloat16"):
        words = [f"model.path='{folder}'", "trainer.steps=1", "trainer.probe_every=0", "trainer.validate_every=0"]
        active[name] = json.loads(
            (train(train_config(*words, folder=name)) / "active.json").read_text(encoding="utf-8")
        )
        change(folder, lambda t: t.update({name: value.bfloat16() for name, value in t.items()}))
    assert active["bfloat16"] == active["float32"] | {"weights_read_from": {"bfloat16": 38}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, and the weights have 38 tensors"),
        ({"num_hidden_layers": "x"}, "cannot be read"),
        ({"num_hidden_layers": -1, "layer_types": []}, "cannot be read"),
        ({"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}, "12 unexpected tensors"),
        ({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, "12 missing tensors"),
        ({"hidden_size": 10**6}, "config.json asks for"),
        ({"intermediate_size": 10**9}, "config.json asks for"),
        ({"hidden_size": 64}, "38 mis-shaped tensors"),
        ({"vocab_size": 10**30}, "cannot be read"),
        ({"vocab_size": 15}, "has the ids 0 … 15, the model has embeddings for 0 … 14"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN"),
        ({"rope_parameters": {"rope_theta": 0, "rope_type": "default"}}, "non-finite tensors (model.rotary_emb"),
        ({"tie_word_embeddings": False}, "1 missing tensor (lm_head.weight)"),
        ({"model_type": "gpt2"}, "is not whole"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantised"),
        ({"transformers_weights": "../elsewhere.safetensors"}, "of the same folder"),
    ],
)
def test_a_configuration_that_does_not_fit_its_weights(values: dict[str, Any], message: str, folder: Path) -> None:
    configure(folder, **values)
    with pytest.raises(UserError) as caught:
        load(folder)
    assert message in str(caught.value)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_shards_are_one_model(folder: Path, base_model: Path) -> None:
    expected = load(base_model).state_dict()
    shard(folder)
    assert all(torch.equal(value, expected[name]) for name, value in load(folder).state_dict().items())


@pytest.mark.parametrize(
    "where",
    ["../elsewhere.safetensors", "/elsewhere.safetensors", "inner/part.safetensors", "part.bin", "..", "", 3, None],
)
def test_an_index_that_points_elsewhere(where: Any, folder: Path) -> None:
    places = shard(folder)
    (folder / "inner").mkdir()
    for place in (folder.parent / "elsewhere.safetensors", folder / "inner" / "part.safetensors", folder / "part.bin"):
        shutil.copy(folder / places[ONE], place)
    index(folder, places | {ONE: where})
    with pytest.raises(UserError, match=rf"{ONE}: .* is no \*\.safetensors of the same folder"):
        models.check_folder(str(folder))


def test_an_index_and_its_files_agree(folder: Path) -> None:
    places = shard(folder)
    first, second = sorted(set(places.values()))
    index(folder, places | {ONE: second if places[ONE] == first else first})
    with pytest.raises(UserError, match="1 misplaced tensor"):
        models.check_folder(str(folder))
    index(folder, places | {"extra.weight": first})
    with pytest.raises(UserError, match=r"1 misplaced tensor \(extra.weight\)"):
        models.check_folder(str(folder))
    odd: list[Any] = [{}, [], None, "x"]
    for value in odd:
        index(folder, value)
        with pytest.raises(UserError, match="is no index of weights"):
            models.check_folder(str(folder))
    index(folder, {name: file for name, file in places.items() if file == first})
    with pytest.raises(UserError, match="missing tensors"):
        load(folder)
    index(folder, places)
    shutil.copy(folder / first, folder / second)
    with pytest.raises(UserError, match="repeated tensors"):
        models.check_folder(str(folder))
    (folder / second).unlink()
    with pytest.raises(UserError, match=f"{second} cannot be read"):
        models.check_folder(str(folder))


def test_two_sets_of_weights_are_one_too_many(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(UserError, match=r"holds both model.safetensors and model.safetensors.index.json"):
        models.check_folder(str(folder))
    index(folder, dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors"))
    load(folder)  # an index of the one file says nothing else


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    with pytest.raises(UserError, match="holds an adapter"):
        models.check_folder(str(folder))


@pytest.mark.parametrize("left", [0, 4, 8, 200, -1])
def test_a_cut_file_is_found_by_its_header(left: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: "):
        models.check_folder(str(folder))


def test_the_hash_covers_what_loading_reads(folder: Path) -> None:
    import hashlib

    old = hashlib.sha256()
    for path in sorted(folder.glob("*.*")):  # what it was before shards and templates were thought of
        old.update(f"{path.name}\0{sha256_file(path)}\0".encode())
    seen = [models.content_hash(folder)]
    assert seen == [old.hexdigest()]
    (folder / "additional_chat_templates").mkdir()
    (folder / ".cache").mkdir()
    assert models.content_hash(folder) == seen[0]
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    seen.append(models.content_hash(folder))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    seen.append(models.content_hash(folder))
    places = shard(folder)
    seen.append(models.content_hash(folder))
    for file in set(places.values()):
        tensors = load_file(folder / file)
        save_file({name: value + 1 for name, value in tensors.items()}, folder / file, metadata={"format": "pt"})
        seen.append(models.content_hash(folder))
    assert len(set(seen)) == len(seen)


def test_a_cache_of_links_is_a_folder_like_any_other(folder: Path, tmp_path: Path) -> None:
    """As the Hugging Face hub keeps its snapshots."""
    shard(folder)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "commit"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        blob = blobs / sha256_file(path)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../..") / "blobs" / blob.name)
    assert models.content_hash(snapshot) == models.content_hash(folder)
    load(snapshot)
    blob.write_bytes(blob.read_bytes() + b" ")
    assert models.content_hash(snapshot) != models.content_hash(folder)
