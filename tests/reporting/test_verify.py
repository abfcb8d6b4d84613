"""``alp verify`` on manifests and folders of others: 0 the same, 1 differs, 2 cannot tell; never a traceback, never a
forged line."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alp.cli import main
from alp.errors import UserError
from alp.reporting.manifest import FORMAT, VALUES
from alp.reporting.verify import verify
from alp.reproducibility import sha256_file, write_json
from tests.faults.conftest import ALL

FILES = ("a/metrics.jsonl", "a/model/model.safetensors", "table.csv")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return _build(tmp_path / "grid")


def _build(root: Path) -> Path:
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"x": 1}\n' if name.endswith("jsonl") else "a,b\n1,2\n")
    files = {name: {"sha256": sha256_file(root / name), "bytes": (root / name).stat().st_size} for name in FILES}
    write_json(root / VALUES, {})
    content = {
        "format": FORMAT,
        "grid": "smoke",
        "files": files,
        "made_from": {},
        "values_sha256": sha256_file(root / VALUES),
    }
    write_json(root / "manifest.json", content)
    return root


def _verify(path: Path) -> tuple[list[str], int]:
    try:
        return verify(path, None)
    except UserError as error:
        return [str(error)], 2


def _edit(root: Path, change: Callable[[dict[str, Any]], object]) -> tuple[list[str], int]:
    content = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    change(content)
    (root / "manifest.json").write_text(json.dumps(content))
    return _verify(root / "manifest.json")


def test_what_a_build_makes_beside_its_results_is_no_difference(root: Path) -> None:
    for name in (
        "logs/train/x.log",
        "a/timings.jsonl",
        "a/test.timings.jsonl",
        "a/vllm.log",
        "a/evaluation/test.vllm.log",
        "a/run.lock",
        "mlflow.json",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    for name in ("a/.alp/mark", ".alp/lock", "a/checkpoints/step_1/state.pt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    assert _verify(root / "manifest.json") == (["3 files of smoke compared: 0 differing files, 0 missing"], 0)


@pytest.mark.parametrize(
    "name",
    ["new.txt", "a/metrics.csv", "a/.metrics.jsonl.x1", "deep/er/x", "a/manifest.json", "a/mlflow.json", "a/logs/x"],
)
def test_an_extra_file_differs(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("x")
    lines, code = _verify(root / "manifest.json")
    assert code == 1
    assert f"extra    {name}" in lines
    assert lines[-1].endswith("0 missing, 1 extra")


def test_an_entry_removed_differs(root: Path) -> None:
    lines, code = _edit(root, lambda content: content["files"].pop("table.csv"))
    assert (code, lines[0]) == (1, "extra    table.csv")


@pytest.mark.parametrize("place", ["table.csv", "a", "a/model"])
def test_a_link_is_no_result(root: Path, tmp_path: Path, place: str) -> None:
    (root / place).rename(tmp_path / "moved")
    (root / place).symlink_to(tmp_path / "moved")
    lines, code = _verify(root / "manifest.json")
    assert code == 1
    assert f"{place} is a link" in lines[0]
    assert not any(line.startswith("extra") for line in lines)


def test_folders_pipes_and_loops_in_place_of_files(root: Path) -> None:
    for name in FILES:
        (root / name).unlink()
    (root / FILES[0]).mkdir()
    os.mkfifo(root / FILES[1])
    (root / FILES[2]).symlink_to(FILES[2])
    lines, code = _verify(root / "manifest.json")
    assert code == 1
    assert [line.partition(": ")[2] for line in lines[:3]] == [
        "a folder stands there",
        "no ordinary file stands there",
        "table.csv is a link",
    ]


def test_names_forge_no_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "x\x1b[2K\r3 files of smoke compared: 0 differing files, 0 missing\n"
    (root / evil.replace("/", "")).write_text("x")
    (root / os.fsdecode(b"bad\xff")).write_text("x")
    content = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    content["files"] |= {
        f"{evil}2": content["files"]["table.csv"],
        "y" * 9000: content["files"]["table.csv"],
        "\ud800": content["files"]["table.csv"],
    }
    content["made_from"] = {"commit\n\x1b[1A": evil}
    (root / "manifest.json").write_text(json.dumps(content))
    assert main(["verify", str(root / "manifest.json")]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    assert sum("files of smoke compared" in line and line[0].isdigit() for line in out.split("\n")) == 1
    assert max(map(len, out.split("\n"))) < 1200


BAD: list[tuple[str, Any]] = [
    ("no grid", lambda content: content.pop("grid")),
    ("grid is a number", lambda content: content.update(grid=1)),
    ("grid is a line", lambda content: content.update(grid="x\n0 missing")),
    ("no files", lambda content: content["files"].clear()),
    ("files is a list", lambda content: content.update(files=[])),
    ("format true", lambda content: content.update(format=True)),
    ("format 2", lambda content: content.update(format=2)),
    ("no hash", lambda content: content["files"]["table.csv"].update(sha256="0" * 63)),
    ("hash with a break", lambda content: content["files"]["table.csv"].update(sha256="0" * 64 + "\n")),
    ("hash is null", lambda content: content["files"]["table.csv"].update(sha256=None)),
    ("bytes is a text", lambda content: content["files"]["table.csv"].update(bytes="8")),
    ("bytes is true", lambda content: content["files"]["table.csv"].update(bytes=True)),
    ("bytes of another file", lambda content: content["files"]["table.csv"].update(bytes=9)),
    ("entry is null", lambda content: content["files"].update({"table.csv": None})),
    (
        "a name twice, written otherwise",
        lambda content: content["files"].update({"a//metrics.jsonl": content["files"]["table.csv"]}),
    ),
    ("made_from is a list", lambda content: content.update(made_from=[1])),
    ("values_sha256 is a number", lambda content: content.update(values_sha256=1)),
]


@pytest.mark.parametrize("change", [change for _, change in BAD], ids=[name for name, _ in BAD])
def test_a_manifest_that_cannot_be_trusted_cannot_tell(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    assert _edit(root, change)[1] == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"format": 1, "grid": "\xe9", "files": {}}',
        b"[" * 100_000,
        b'{"format": 1, "grid": "x", "made_from": '
        + b'{"a":' * 900
        + b"1"
        + b"}" * 900
        + b', "files": {"t": {"sha256": "'
        + b"0" * 64
        + b'", "bytes": 1}}}',
        b'{"format": 1, "format": 1, "grid": "x", "files": {"t": {"sha256": "' + b"0" * 64 + b'", "bytes": 1}}}',
        b'{"format": 1, "grid": "x", "files": {"t": {"sha256": "' + b"0" * 64 + b'", "bytes": ' + b"9" * 5000 + b"}}}",
    ],
    ids=["empty", "list", "null", "UTF-16", "Latin-1", "deep list", "deep mapping", "key twice", "long number"],
)
def test_content_that_is_no_manifest(root: Path, content: bytes) -> None:
    (root / "manifest.json").write_bytes(content)
    assert _verify(root / "manifest.json")[1] == (1 if b'"t"' in content and b'"a"' in content else 2), (
        "deep, but a manifest: its file is missing"
    )


def test_a_file_twice_in_the_manifest(root: Path) -> None:
    path = root / "manifest.json"
    text = path.read_text(encoding="utf-8")
    entry = f'"table.csv": {{"bytes": 1, "sha256": "{"0" * 64}"}},'
    path.write_text(text.replace('"files": {', f'"files": {{{entry}'), encoding="utf-8")
    lines, code = _verify(path)
    assert (code, "'table.csv' stands twice" in lines[0]) == (2, True)


@pytest.mark.parametrize("values", [b"{", b"[1]", b"\xff", b'{"table.csv": 1}'])
def test_damaged_values_cost_the_numbers_alone(root: Path, values: bytes) -> None:
    (root / VALUES).write_bytes(values)
    assert _verify(root / "manifest.json")[1] == 0
    (root / "table.csv").write_text("a,b\n1,3\n")
    for digest in ("0" * 64, sha256_file(root / VALUES)):
        lines, code = _edit(root, lambda content, digest=digest: content.update(values_sha256=digest))
        assert (code, lines[0]) == (1, "differs  table.csv: other bytes")
        assert any(line.startswith("note ") and VALUES in line and "told without it" in line for line in lines)


def test_a_file_that_cannot_be_read_cannot_tell(root: Path) -> None:
    """As another user than root, whom permissions do not stop; what Python reads of itself is read before."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom alp.reporting import verify\n"
        f"os.chdir({str(root)!r})\nassert verify.verify(Path('manifest.json'), None)[1] == 0\nverify.provenance()\n"
        "os.chmod('table.csv', 0)\nos.chmod('a/model', 0)\nif os.getuid() == 0: os.setuid(65534)\n"
        "lines, code = verify.verify(Path('manifest.json'), None)\nprint(chr(10).join(lines))\nsys.exit(code)"
    )
    try:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8")
    finally:
        (root / "a/model").chmod(0o755)
    assert done.returncode == 2, done.stderr[-500:]
    for name in ("table.csv", "a/model/model.safetensors", "a/model"):
        assert f"cannot be read {name}: PermissionError: Permission denied" in done.stdout


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["0" * 64, "..", "/", "a/../b", "table.csv"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["sha256", "bytes", *FILES]), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, value in inner for found in _places(value, (*path, key)))]


@settings(max_examples=400 if ALL else 60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_edit_of_a_manifest_passes_for_the_same(data: st.DataObject, root: Path) -> None:
    path = root / "manifest.json"
    kept = root.parent / "kept"
    if not kept.exists():
        os.replace(path, kept)
    text = kept.read_bytes()
    content = json.loads(text)
    if data.draw(st.booleans()):
        place = data.draw(st.sampled_from(_places(content)))
        edited = copy.deepcopy(content)
        node = edited
        for key in place[:-1]:
            node = node[key]
        if not place:
            edited = data.draw(_JSON)
        elif data.draw(st.booleans()):
            del node[place[-1]]
        else:
            node[place[-1]] = data.draw(_JSON)
        path.write_text(json.dumps(edited), encoding="utf-8")
    else:
        at, byte = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 255))
        path.write_bytes(text[:at] + (bytes([byte]) + text[at + 1 :] if data.draw(st.booleans()) else b""))
    lines, code = _verify(path)
    assert code in (0, 1, 2)
    assert all(line.isprintable() for line in lines)
    if code == 0:
        found = json.loads(path.read_bytes())
        assert (found["files"], found["format"]) == (content["files"], content["format"])
