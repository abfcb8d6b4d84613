"""What a manifest says of a difference: which file, which number, by how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alp.reporting import manifest
from alp.reporting.manifest import FORMAT, VALUES
from alp.reporting.verify import verify
from alp.reproducibility import sha256_file, write_json

TEXTS = {
    "metrics.jsonl": '{"step": 1, "reward/mean": 0.25}\n{"step": 2, "reward/mean": 0.5, "policy/kl": null}\n',
    "evaluation/test.json": '{"accuracy": 0.5, "correct": [1, 0, 3]}\n',
    "tables/main.csv": "method,accuracy_mean\ngrpo,0.5\nseq_alp,0.75\n",
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder of files of each kind with its manifest."""
    root = tmp_path / "published"
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "figure.png").write_bytes(bytes(range(100)))
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}, root / "model.safetensors")
    files = {
        path.relative_to(root).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in root.rglob("*")
        if path.is_file()
    }
    write_json(root / VALUES, TEXTS)
    made_from: dict[str, Any] = {"commit": "c0ffee", "versions": {"torch": "0.0.1"}}
    content = {
        "format": FORMAT,
        "grid": "small",
        "files": files,
        "made_from": made_from,
        "values_sha256": sha256_file(root / VALUES),
    }
    write_json(root / "manifest.json", content)
    return root


def _lines(root: Path, folder: Path | None = None) -> list[str]:
    lines, code = verify(root / "manifest.json", folder)
    assert code == 1
    return lines


def test_the_same_files_verify(published: Path) -> None:
    assert verify(published / "manifest.json", None) == (["5 files of small compared: 0 differing files, 0 missing"], 0)


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("metrics.jsonl", "0.5,", "0.625,", "line 2: reward/mean: 0.5 there, 0.625 here (+0.125)"),
        ("metrics.jsonl", "null", "0.1", "line 2: policy/kl: None there, 0.1 here"),
        ("metrics.jsonl", '"step": 1, ', "", "line 1: step: only there"),
        ("evaluation/test.json", "3]", "2]", "correct.2: 3.0 there, 2.0 here (-1)"),
        ("evaluation/test.json", "3]", "3, 4]", "correct.3: only here"),
        ("tables/main.csv", "0.75", "0.5", "row 2: accuracy_mean: 0.75 there, 0.5 here (-0.25)"),
        ("tables/main.csv", "seq_alp", "token_alp", "row 2: method: 'seq_alp' there, 'token_alp' here"),
    ],
)
def test_a_difference_is_told_in_numbers(published: Path, name: str, old: str, new: str, expected: str) -> None:
    text = (published / name).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (published / name).write_text(text.replace(old, new))
    lines = _lines(published)
    assert lines[0].startswith(f"differs  {name}: differing entries: 1")
    assert lines[1].strip() == expected
    assert lines[-1] == "5 files of small compared: 1 differing files, 0 missing"
    assert any("versions.torch: 0.0.1 there, " in line for line in lines), "what may be the reason"


def test_spaces_are_bytes_too_and_half_a_file_is_said(published: Path) -> None:
    path = published / "evaluation/test.json"
    path.write_text(path.read_text(encoding="utf-8").replace(": ", ":"))
    assert "the same content, written in other bytes" in _lines(published)[0]
    path.write_text(path.read_text(encoding="utf-8")[:12])
    assert "cannot be read any more" in _lines(published)[0]
    path.unlink()
    lines = _lines(published)
    assert lines[0] == "missing  evaluation/test.json"
    assert lines[-1] == "5 files of small compared: 0 differing files, 1 missing"


def test_a_rebuild_in_another_folder(published: Path, tmp_path: Path) -> None:
    """The published files themselves are the original: of weights and pictures nothing else is kept."""
    import shutil

    rebuilt = tmp_path / "rebuilt"
    shutil.copytree(published, rebuilt, ignore=shutil.ignore_patterns("manifest*"))
    assert verify(published / "manifest.json", rebuilt)[1] == 0
    save_file({"a": np.full((2, 3), 0.25, np.float32), "b": np.ones(4, np.float32)}, rebuilt / "model.safetensors")
    (rebuilt / "figure.png").write_bytes(bytes([*range(50), 0, *range(51, 100)]))
    lines = _lines(published, rebuilt)
    assert lines[:3] == [
        "differs  figure.png: the first other byte is at 50, of 100 there and 100 here",
        "differs  model.safetensors: differing tensors: 1",
        "         a: 6 of 6 numbers differ, the largest by 0.25",
    ]
    (published / VALUES).write_text("{}")  # not the one the manifest names: it is no witness
    (published / "figure.png").unlink()
    assert _lines(published, rebuilt)[0] == "differs  figure.png: other bytes"


def test_the_machine_is_described_without_its_name() -> None:
    import socket

    found = manifest.machine()
    assert found["architecture"]
    assert socket.gethostname() not in json.dumps(found)
