"""Files of others: they are read as data, they run nothing, and they write nowhere else."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alp.cli import main

ROOT = Path(__file__).resolve().parents[1]


class _Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.path,)


def _refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_pickled_weights_are_no_model(base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_model, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    for verb in ("train", "evaluate"):
        _refused([verb, f"model.path='{folder}'", f"run.dir='{tmp_path}/run'"], "no model in", capsys)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_model_s_own_code_is_never_run(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base_model, folder)
    code = f"import os\nos.mkdir({str(tmp_path / 'exploded')!r})\n"
    (folder / "own.py").write_text(code)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "own", "auto_map": own}))
    words = [
        verb,
        f"model.path='{folder}'",
        f"run.dir='{tmp_path}/run'",
        "run.tracking=null" if verb == "train" else "evaluation.samples=1",
    ]
    _refused(words, "it brings code of its own, which is never run", capsys)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("key", ["run.arm", "run.grid", "model.name", "method.name", "variant"])
@pytest.mark.parametrize("value", ["../../elsewhere", "/etc/elsewhere", "..", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(
    key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if key == "variant":
        _refused(["train", f"variant='{value}'"], "unknown variant", capsys)
        return
    _refused(["train", f"{key}='{value}'"], key, capsys)


def test_a_manifest_reads_nothing_outside_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("../secret", "/etc/passwd", "a/../../secret"):
        (tmp_path / "manifest.json").write_text(
            json.dumps({"format": 1, "grid": "x", "files": {name: {"sha256": "0"}}})
        )
        _refused(["verify", str(tmp_path / "manifest.json")], f"names the file '{name}', outside its folder", capsys)


def test_yaml_makes_no_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"title: !!python/object/apply:os.mkdir ['{tmp_path}/exploded']\n")
    _refused(["aggregate", f"grid='{path}'"], "is no valid YAML", capsys)
    assert not (tmp_path / "exploded").exists()


def test_every_reader_is_the_safe_one() -> None:
    """No line of the package loads a pickle, an unsafe YAML or a model's own code."""
    unsafe = re.compile(
        r"yaml\.(load|unsafe_load|full_load)\(|pickle\.|weights_only=False|trust_remote_code=True|allow_pickle=True"
    )
    own_machine = ROOT / "alp" / "diagnosis" / "readers" / "objects.py"  # its names: the test below
    for path in {*(ROOT / "alp").rglob("*.py")} - {own_machine}:
        text = path.read_text(encoding="utf-8")
        assert not unsafe.search(text), path
        for call in re.findall(r"torch\.load\([^\n]*", text):
            assert "weights_only=True" in call, path
        for call in re.findall(r"from_pretrained\((?:[^()]|\([^()]*\))*\)", text):
            if "save" not in call:
                assert "trust_remote_code=False" in call, f"{path}: {call}"


@pytest.mark.parametrize(
    "name",
    [
        *("os system", "posix system", "builtins eval", "builtins exec", "builtins getattr", "builtins __import__"),
        *("builtins bytearray", "builtins open", "subprocess Popen", "numpy load", "numpy.lib.npyio load"),
        *("torch load", "torch.storage load", "torch.hub load", "torch._utils _rebuild_device_tensor_from_numpy"),
        *("importlib import_module", "codecs decode", "_codecs decode", "pickle loads", "functools partial"),
    ],
)
def test_a_dump_s_pickle_makes_data_alone(name: str) -> None:
    """Whatever a file names is a thing that remembers what it was given, and does nothing."""
    import io

    from alp.diagnosis.readers.objects import Inert, Unpickler

    module, _, attribute = name.partition(" ")
    assert Unpickler(io.BytesIO()).find_class(module, attribute) is Inert


def test_checkpoints_are_loaded_as_tensors_only(tmp_path: Path) -> None:
    torch.save({"bomb": _Bomb(tmp_path / "exploded")}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "state.pt", weights_only=True)
    assert not (tmp_path / "exploded").exists()


def test_mlflow_listens_to_this_machine_alone() -> None:
    (line,) = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "mlflow server" in line]
    assert "--host 127.0.0.1 " in line
