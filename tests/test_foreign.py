"""The guard around what comes from elsewhere: one line for any content, and never a word for a fault of our own behind
it."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alp import foreign
from alp.cli import main
from alp.errors import UserError
from alp.lifetime import unblock
from alp.places import check_place
from tests.conftest import TINY_TASK
from tests.faults.damage import BOMB, ODD_PLACES, put
from tests.reporting.conftest import GRID, fabricate, write_grid

ROOT = Path(__file__).resolve().parents[1]
DUMP = {"old_log_probs": [[-1.0, -0.5]], "rollout_log_probs": [[-1.1, -0.4]], "response_mask": [[1, 1]]}


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal."""
    assert main(words) == 2
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alp: error: ")]
    assert len(found) == 1
    return found[0]


# ---- YAML ------------------------------------------------------------------------------------------------------------

LAUGHS = BOMB.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS + b"title: *i\n", "once its aliases are written out"),
        (b"title: &a [*a]\n", "an alias stands inside of what it names"),
        (b"title: *a\n", "undefined alias"),
        (b"title: " + b"[" * 50_000, "nested too deeply"),
        (b"- " * 5_000, "nested too deeply"),
        (b"title: x\ntitle: y\n", "line 2: the key 'title' stands twice"),
        (b"title: caf\xe9\n", "UnicodeDecodeError"),
        ("title: café\n".encode("utf-16"), "UnicodeDecodeError"),
        (b"title: \0\n", "is no valid YAML"),
        (b"title: x\n---\ntitle: y\n", "is no valid YAML"),
        (b"[1, 2]\n", "is not of type 'object'"),
        (b"", "is not of type 'object'"),
        (b"title: 2020-99-99\n", "cannot be read: ValueError"),
        (b"1: 2\n", "unknown field '1'"),
        (b"? [a, b]\n: c\n", "is no valid YAML"),
        (b"title: " + b"x" * 2**21, "characters, more than"),
        (b"title: " + b"9" * 5000, "cannot be read: ValueError"),
    ],
)
def test_a_grid_that_cannot_be_meant(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert message in fails(["aggregate", f"grid='{path}'"], capsys)


def test_a_byte_order_mark_and_aliases_are_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n", encoding="utf-8-sig")
    assert foreign.read_yaml("x", path) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


@pytest.mark.parametrize("kind", ODD_PLACES)
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.touch()
    put(kind)(path)
    with pytest.raises(UserError, match=r"mine\.json (is no file|cannot be read)"):
        foreign.read_json("x", path)
    assert foreign.is_file(path) is False


def test_half_a_pair_of_surrogates_is_no_text(tmp_path: Path) -> None:
    """It would be found when it is written again, hours later."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"problem": "\\ud83d\\ude00"}\n{"problem": "\\ud83d"}\n')
    lines = foreign.read_lines("x", path)
    assert next(lines) == (1, {"problem": "😀"})
    with pytest.raises(UserError, match="line 2 cannot be read: ValueError: it holds half a character"):
        next(lines)


# ---- dumps -----------------------------------------------------------------------------------------------------------


def _npy(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def test_an_array_that_claims_more_than_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "dump.npz", "w") as archive:
        archive.writestr("old_log_probs.npy", _npy((1600, 1_000_000), b"\0" * 64))
    assert "old_log_probs.npy is damaged: it claims 12800000000 bytes" in fails(
        ["diagnose", f"input='{tmp_path}/dump.npz'"], capsys
    )


def test_an_archive_that_explodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "dump.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", _npy((0,)))
    raw = (tmp_path / "dump.npz").read_bytes()
    size = len(_npy((0,)))
    central = raw.rindex(b"PK\x01\x02")
    claimed = raw[:central] + raw[central:].replace(size.to_bytes(4, "little"), (3 * 2**30).to_bytes(4, "little"), 1)
    (tmp_path / "dump.npz").write_bytes(claimed)
    assert "unpacks to 3.22e+09" in fails(["diagnose", f"input='{tmp_path}/dump.npz'"], capsys)


def test_an_encrypted_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "dump.npz", old_log_probs=np.array(DUMP["old_log_probs"]))
    raw = bytearray((tmp_path / "dump.npz").read_bytes())
    for start in (raw.index(b"PK\x03\x04") + 6, raw.index(b"PK\x01\x02") + 8):
        raw[start] |= 1
    (tmp_path / "dump.npz").write_bytes(bytes(raw))
    assert "is encrypted" in fails(["diagnose", f"input='{tmp_path}/dump.npz'"], capsys)


def test_a_column_that_explodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({name: [[0.0] * 1_000_000] for name in DUMP}), tmp_path / "dump.parquet", compression="zstd"
    )
    monkeypatch.setattr("alp.diagnosis.dump_formats._UNPACKED", 2**20)  # 1 GiB takes a while to write
    assert "unpacks to 2.4e+07" in fails(["diagnose", f"input='{tmp_path}/dump.parquet'"], capsys)


# ---- words and folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "trainer.steps=" + "[" * 3000,
        "trainer.steps=" + "9" * 5000,
        "run.dir=${run.dir}",
        "run.dir='\udcff'",
        "model.path='" + "a" * 300 + "'",
        "model.path='\0'",
        "task.data='" + "b/" * 3000 + "'",
        "run.dir='" + "a" * 300 + "'",
        "run.dir='x/" + "a" * 300 + "'",
        "run.dir='" + "b/" * 3000 + "'",
        "run.dir='x\0y'",
    ],
)
def test_odd_words(word: str, base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = word.split("=")[0]
    words = [*TINY_TASK, f"model.path='{base_model}'", f"run.dir='{tmp_path}/run'", "run.tracking=null"]
    fails(["train", *(one for one in words if one.split("=")[0] != key), word], capsys)
    assert not key.startswith("run") or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["grid='" + "a" * 300 + ".yaml'", "grid=" + "a" * 5000])
def test_odd_grids(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(["aggregate", name], capsys)


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "not there")
    (tmp_path / "file").touch()
    for name in ("circle", "circle/x", "file", "file/x", "a" * 256, "x/" + "é" * 128, "b/" * 2100, "\0"):
        with pytest.raises(UserError, match="can be no folder"):
            check_place(tmp_path / name, "run.dir")
    (tmp_path / "good").symlink_to(tmp_path)
    for name in ("x/y/z", "good/x", "a" * 255, "é" * 127):
        check_place(tmp_path / name, "run.dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file", "good", "nowhere"]


# ---- encodings -------------------------------------------------------------------------------------------------------


def test_texts_are_the_same_under_any_locale(tmp_path: Path) -> None:
    """UTF-8 problems, prepared where Python would read ASCII, are the same bytes; what is said of them cannot fail
    either."""
    for name in ("train", "tést"):
        rows = [
            {"id": f"é{number}", "problem": f"Größe {number} ≤ σ? {name} 数\u2028", "answer": f"{number}°"}
            for number in range(4)
        ]
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    words = ["prepare", "task=mathematics", f"task.train=[{{path: '{tmp_path}/train.jsonl'}}]", "task.validation=1"]
    words.append(f"task.test={{own: {{path: '{tmp_path}/tést.jsonl'}}}}")
    assert main([*words, f"run.dir='{tmp_path}/here'"]) == 0
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "alp.cli", *words, f"run.dir='{tmp_path}/thé re'"],
        env={key: value for key, value in os.environ.items() if key not in ("LANG", "PYTHONIOENCODING")} | plain,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    names = sorted(path.name for path in (tmp_path / "here").iterdir() if path.suffix == ".jsonl")
    assert len(names) >= 3
    for name in names:
        assert (tmp_path / "thé re" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_a_terminal_without_the_characters() -> None:
    reader, writer = os.openpty()
    with open(writer, "w", encoding="latin-1") as terminal:
        stream = unblock(terminal)
        assert stream is terminal
        print("σ = é", file=stream, flush=True)
        assert os.read(reader, 100).rstrip() == b"\\u03c3 = \xe9"
    os.close(reader)


# ---- the guard's extent ----------------------------------------------------------------------------------------------


def test_an_interrupt_and_a_full_disk_are_no_bad_file() -> None:
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device")):
        with pytest.raises(type(error)), foreign.reading("x", "y"):
            raise error


def test_the_traceback_is_there_for_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff")
    monkeypatch.setenv("ALP_TRACEBACK", "1")
    assert main(["aggregate", f"grid='{tmp_path}/mine.yaml'"]) == 2
    assert "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff" in capsys.readouterr().err


class Planted(ValueError):
    """A fault of our own, of a kind that readers raise too."""


def _planted(*_: Any, **__: Any) -> Any:
    raise Planted


@pytest.mark.parametrize(
    ("verb", "place"),
    [
        ("diagnose", "alp.diagnosis.measures.diagnostics"),
        ("diagnose", "alp.diagnosis.tables.mismatch"),
        ("evaluate", "alp.evaluation.evaluate.collect"),
        ("evaluate", "alp.evaluation.evaluate.summarise"),
        ("train", "alp.training.scoring.collect"),
        ("train", "alp.training.update.Updater.update"),
        ("aggregate", "alp.evaluation.statistics.interval"),
        ("aggregate", "alp.reporting.runs.ArmRuns.step_mean"),
        ("aggregate", "alp.configuration.grid._build"),
        ("prepare", "alp.tasks.sources.merged"),
        ("prepare", "alp.tasks.sources._unique"),
    ],
)
def test_a_fault_of_our_own_stays_a_traceback(
    verb: str, place: str, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = [*TINY_TASK, f"model.path='{base_model}'", f"run.dir='{tmp_path}/run'"]
    words = {
        "diagnose": [f"input='{tmp_path}/dump.npz'", f"output='{tmp_path}/out'"],
        "aggregate": [f"grid='{tmp_path}/tiny.yaml'", f"results='{tmp_path}/results'"],
        "prepare": [
            f"task.{kind}={value}"
            for kind, value in {"train": f"[{{path: '{tmp_path}/x.jsonl'}}]", "validation": "1"}.items()
        ],
        "evaluate": [*job, "evaluation.samples=1"],
        "train": [*job, "run.tracking=null", "trainer.device=cpu"],
    }[verb]
    if verb == "diagnose":
        np.savez(tmp_path / "dump.npz", **{name: np.array(value) for name, value in DUMP.items()})  # type: ignore[arg-type]
    elif verb == "aggregate":
        fabricate(write_grid(tmp_path, GRID), tmp_path / "results", steps=3)
    elif verb == "prepare":
        (tmp_path / "x.jsonl").write_text(
            "".join(json.dumps({"problem": f"{n}?", "answer": str(n)}) + "\n" for n in range(3))
        )
        words += ["task=mathematics", f"task.test={{own: {{path: '{tmp_path}/x.jsonl'}}}}", f"run.dir='{tmp_path}/run'"]
    monkeypatch.setattr(place, _planted)
    with pytest.raises(Planted):
        main([verb, *words])


def test_the_guard_stands_around_few_lines() -> None:
    """Reading and checking alone: no guarded block is long, and none calls what computes."""
    found = 0
    for path in (ROOT / "alp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            entered = [ast.unparse(item.context_expr) for item in node.items] if isinstance(node, ast.With) else []
            if isinstance(node, ast.With) and any(one.startswith(("reading(", "foreign.reading(")) for one in entered):
                found += 1
                inside = [one for body in node.body for one in ast.walk(body) if isinstance(one, ast.stmt)]
                assert len(inside) <= 7, f"{path}:{node.lineno}"
    assert found > 10
