"""Dumps of other trainers: recognised by their content, read to the values that were written, a folder as one."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alp.cli import main
from alp.configuration import compose
from alp.diagnosis import checking, readers
from alp.diagnosis.dumps import Dump
from alp.errors import UserError

from . import native

WANTED = compose.load("diagnose").fields.model_dump()
HERE = Path(__file__).parent


def load(path: Path) -> Dump:
    return checking.check(readers.read(path, WANTED).raw)


def expected(name: str, steps: tuple[int, ...], field: str) -> list[float]:
    """The written values on valid tokens, step by step."""
    found: list[float] = []
    for step in steps:
        some = native.sequences(step)
        for one in some[::2] + some[1::2] if name == "miles_train" else some:  # a file per rank
            keep = np.ones_like(one["response_mask"]) if name in native.EVERY_TOKEN else one["response_mask"]
            found += np.broadcast_to(one[field], keep.shape)[keep == 1].astype(float).tolist()
    return found


@pytest.mark.parametrize("name", native.FORMATS)
def test_a_folder_of_steps_is_one_input(tmp_path: Path, name: str) -> None:
    writer, source, fields = native.FORMATS[name]
    steps = (9, 10, 11)  # in the order of numbers, not of names
    for step in steps:
        writer(tmp_path, step)
    dump = load(tmp_path)
    assert dump.source == f"{source}, 3 steps"
    assert set(dump.tokens) == set(fields)
    for field in fields:
        assert dump.tokens[field].tolist() == expected(name, steps, field), field
    assert dump.steps is not None
    assert sorted(set(dump.steps.tolist())) == list(steps)
    assert not dump.notes


@pytest.mark.parametrize("name", [name for name in native.FORMATS if name != "miles_train"])
def test_a_file_alone(tmp_path: Path, name: str) -> None:
    writer, source, fields = native.FORMATS[name]
    dump = load(writer(tmp_path, 4))
    assert dump.source == source
    for field in fields:
        assert dump.tokens[field].tolist() == expected(name, (4,), field), field
    assert dump.steps is not None
    assert set(dump.steps.tolist()) == {4}


@pytest.mark.parametrize("layout", ["verl_batch", "verl_batch_consolidated"])
def test_pickles_of_verl(layout: str) -> None:
    """Both layouts of a TensorDict, made from one seed: the same numbers."""
    dump = load(HERE / "dumps" / f"{layout}.pkl")
    torch.manual_seed(0)
    assert dump.source == "verl saved batch"
    assert dump.tokens["old_log_probs"].tolist() == (-torch.rand(6, 5)).double().flatten().tolist()
    gap = dump.difference("old_log_probs", "rollout_log_probs")
    assert 0 < np.abs(gap).max() < 0.1
    assert dump.steps is not None
    assert set(dump.steps.tolist()) == {7}


@pytest.mark.parametrize("name", native.TEXTS)
def test_what_holds_no_log_probs_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file, record, source = native.TEXTS[name]
    if file.endswith(".pt"):
        torch.save(record, tmp_path / file)
    else:
        (tmp_path / file).write_text(json.dumps(record) + "\n")
    for source_path in (tmp_path / file, tmp_path):
        assert main(["diagnose", f"input='{source_path}'", f"output='{tmp_path}/out'"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"read as {source}" in said
        assert "no log-probs in it; " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["prime_rl", "slime_rollout"])
def test_from_folder_to_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """All that can be told without π_old, or with μ alone, is told; the rest is named."""
    writer, source, _ = native.FORMATS[name]
    for step in (1, 2):
        writer(tmp_path / "dumps", step)
    assert main(["diagnose", f"input='{tmp_path}/dumps'", f"output='{tmp_path}/out'"]) == 0
    said = capsys.readouterr().out
    assert f"read as {source}, 2 steps: 12 sequences" in said
    record = json.loads((tmp_path / "out" / "diagnostics.json").read_text(encoding="utf-8"))
    assert record["input/name"] == "dumps"
    assert record["input/read_as"] == f"{source}, 2 steps"
    tables = {path.stem for path in (tmp_path / "out" / "tables").glob("*.csv")}
    methods = (tmp_path / "out" / "tables" / "methods.csv").read_text() if "methods" in tables else ""
    if name == "prime_rl":
        assert "current_rollout/rollout_corr/k3_kl" in record
        assert "no old_log_probs" in said
        assert "needs old_log_probs" in methods
        assert "\nseq_bypass,log_probs," in methods
    else:
        assert tables == {"policies"}
        assert "log-probs of the engine alone" in said


BY_TRL = {"TRL generation batch", "TRL completions"}  # tests/examples/test_trl_diagnosis.py


def test_every_kind_has_a_test_file_and_a_row_of_the_docs() -> None:
    written = {source for _, source, _ in native.FORMATS.values()} | BY_TRL
    beginnings = tuple(source for _, _, source in native.TEXTS.values())
    kinds = {one.name for one in readers.READERS}
    assert {name for name in kinds - written if not name.startswith(beginnings)} == set()
    assert written <= kinds
    page = (HERE.parents[1] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and line.count(" | ") == 4][1:]
    trainers = {trainer for row in rows for trainer in row[0].strip("| ").split(", ")}
    assert trainers == {trainer for one in readers.READERS for trainer in one.trainer.split("/")}
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[4])}
    assert named == {"TEXTS", *native.FORMATS}
    assert sum("**none**" in row[2] for row in rows) == len([one for one in readers.READERS if one.sequences is None])


def test_a_folder_s_other_files_are_named(tmp_path: Path) -> None:
    """Evaluations, logs and checkpoints beside the dumps; the train dump is the one that tells more."""
    native.slime_train(tmp_path / "train", 3)
    native.slime_rollout(tmp_path / "rollout", 3)
    shutil.copy(tmp_path / "train" / "train_3.pt", tmp_path / "train" / "train_eval_3.pt")
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1.0}\n')
    torch.save({"weight": torch.ones(2)}, tmp_path / "checkpoint.pt")
    dump = load(tmp_path)
    assert dump.source == "slime/miles train dump"
    assert dump.total == 6
    assert any("rollout_3.pt" in note for note in dump.notes)
    assert any("evaluations left out: train_eval_3.pt" in note for note in dump.notes)
    assert any("checkpoint.pt" in note and "metrics.jsonl" in note for note in dump.notes)


def test_our_own_form_in_a_folder(tmp_path: Path) -> None:
    """Steps of different widths, the step in the file's name."""
    for step in (2, 10):
        some = native.sequences(step)
        names = ("old_log_probs", "rollout_log_probs", "response_mask")
        np.savez(tmp_path / f"dump-{step}.npz", **{name: native.padded(some, name).numpy() for name in names})
    dump = load(tmp_path)
    assert dump.source == "log-probs under our field names, 2 steps"
    assert dump.steps is not None
    assert dump.steps.tolist() == [2] * 6 + [10] * 6
    assert dump.tokens["old_log_probs"].tolist() == expected("", (2, 10), "old_log_probs")
    assert dump.place(7) == "dump-10.npz, row 1 (from 0)"


def test_fields_by_name_are_our_own_form(tmp_path: Path) -> None:
    """Who maps names means them, whatever the file looks like."""
    wanted = WANTED | {"rollout_log_probs": "inference_logprobs", "old_log_probs": "trainer_logprobs"}
    dump = checking.check(readers.read(native.prime_rl(tmp_path, 1), wanted | {"response_mask": "loss_mask"}).raw)
    assert dump.tokens["old_log_probs"].tolist() == expected("", (1,), "log_probs")


def test_sequences_without_log_probs_are_counted(tmp_path: Path) -> None:
    """An aborted sample has none."""
    path = native.open_instruct(tmp_path, 1)
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"logprobs": [None, -1.0], "advantage": None})
    path.write_text("\n".join(lines))
    assert load(path).notes[0] == "1 of 6 sequences lack advantage: left out"


def test_faults_of_native_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(path: Path) -> str:
        assert main(["diagnose", f"input='{path}'", f"output='{tmp_path}/out'"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    path = native.prime_rl(tmp_path, 1)
    record = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(record | {"inference_logprobs": [-1.0]}) + "\n")
    assert "line 1: inference_logprobs has 1 tokens, loss_mask" in said(path)
    batch = native.verl(tmp_path, 1)
    content = torch.load(batch)
    content["batch"]["old_log_probs"] = content["batch"]["old_log_probs"].T
    torch.save(content, batch)
    assert "it looks transposed" in said(batch)
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    assert "those of no dump of NeMo-RL, OpenRLHF, SkyRL" in said(tmp_path / "model.pt")
    (tmp_path / "empty").mkdir()
    assert "no dump in this folder: looked for .jsonl" in said(tmp_path / "empty")
    (tmp_path / "cut.pt").write_bytes(batch.read_bytes()[:200])
    assert "cut.pt cannot be read" in said(tmp_path / "cut.pt")


class _Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".legacy.pt"])
def test_a_file_s_code_is_never_run(tmp_path: Path, suffix: str) -> None:
    """What it names is not imported; the data beside it is read."""
    some = native.sequences(1)
    names = ("old_log_probs", "rollout_log_probs", "response_mask")
    content = {name: native.padded(some, name) for name in names} | {"extra": _Bomb(tmp_path / "exploded")}
    path = tmp_path / f"batch{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=suffix == ".pt")
    assert load(path).tokens["old_log_probs"].tolist() == expected("", (1,), "old_log_probs")
    assert not (tmp_path / "exploded").exists()


def test_a_module_that_a_file_names_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "own.pkl").write_bytes(b"cantigravity\nfly\n.")
    with pytest.raises(UserError):
        readers.read(tmp_path / "own.pkl", WANTED)
    import sys

    assert "antigravity" not in sys.modules
