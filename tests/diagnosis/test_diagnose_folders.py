"""`alp diagnose` and what is not its own: a user's files, folders that cannot be written, values that no log-prob
has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alp.cli import main

from .test_diagnose import GOOD, fails, run, simulate, write


def refused(capsys: pytest.CaptureFixture[str], source: Path, output: str) -> str:
    """The one line of a refusal of the output folder."""
    capsys.readouterr()  # of a run before
    assert main(["diagnose", f"input='{source}'", f"output='{output}'"]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "Traceback" not in captured.err
    (line,) = [line for line in captured.err.splitlines() if line.startswith("alp: error: diagnose: ")]
    return line


@pytest.mark.parametrize(
    "mine", ["figures/steps.png", "tables/steps.csv", "report.html", "tables/methods.tex", "diagnostics.json"]
)
def test_files_of_the_users_are_never_touched(mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds anything by a name of ours, the report of a grid say, is refused as a whole."""
    source, theirs = write(tmp_path / "a.jsonl", simulate(4)), tmp_path / "out" / mine
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    said = refused(capsys, source, str(tmp_path / "out"))
    assert f"{tmp_path / 'out'} holds {mine}, and no mark says that this version of alp made it" in said
    assert said.endswith("output=<another folder>")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]
    assert theirs.read_text(encoding="utf-8") == "{}"


@pytest.mark.long
def test_a_diagnosis_is_replaced_by_one_of_the_same_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run1/dump.npz` and `run2/other.npz` in one folder: the first result would be lost. Other files there stay."""
    source = write(tmp_path / "a.jsonl", simulate(4))
    run(source, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = (tmp_path / "out" / "diagnostics.json").read_bytes()
    said = refused(capsys, write(tmp_path / "b.jsonl", simulate(4, seed=1)), str(tmp_path / "out"))
    assert "(input: a.jsonl there, b.jsonl here)" in said
    assert (tmp_path / "out" / "diagnostics.json").read_bytes() == before
    run(source, tmp_path / "out")
    assert (tmp_path / "out" / "diagnostics.json").read_bytes() == before
    assert (tmp_path / "out" / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not list(tmp_path.rglob("tmp"))


@pytest.mark.parametrize("output", ["", "/proc/x", "x" * 300])
def test_folders_that_cannot_be_written_are_refused(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback, or half of the files."""
    assert "output: " in refused(capsys, write(tmp_path / "a.jsonl", simulate(4)), output)


@pytest.mark.parametrize("part", ["figures", "report.html/x", "tables/steps.csv/x", "loop"])
def test_something_else_in_the_place_of_a_file_is_refused(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where a folder belongs, a folder where a file belongs, a link to nowhere."""
    source, out = write(tmp_path / "a.jsonl", simulate(4)), tmp_path / "out"
    if part == "loop":
        out.symlink_to(tmp_path / "nowhere")
    else:
        (out / part).parent.mkdir(parents=True)
        (out / part).write_text("mine")
    assert "output: " in refused(capsys, source, str(out))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == (1 if part == "loop" else 2)


LINES: dict[str, tuple[str, str]] = {
    "below every softmax": (
        json.dumps(GOOD | {"old_log_probs": [-1e30] * len(GOOD["old_log_probs"])}),
        "-1e+30 on a valid token (its mask is 1), and 100 % of them are no log-probs",
    ),
    "an integer without end": (json.dumps(GOOD).replace("[-", "[-1" + "0" * 400 + ", -", 1), "a number is too large"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "twice": (json.dumps(GOOD)[:-1] + ', "response_mask": []}', "field 'response_mask' stands twice"),
    "a step without end": (json.dumps(GOOD | {"step": 1e30}), "no whole number of size below 2^53"),
    "cut, with an end": (json.dumps(GOOD)[:40] + "\n", "it ends too soon: was it cut off?"),
}


@pytest.mark.parametrize("name", list(LINES))
def test_values_that_cannot_be_meant(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Accepted, they give plausible figures or a traceback."""
    (tmp_path / "a.jsonl").write_text(LINES[name][0])
    assert LINES[name][1] in fails(capsys, tmp_path / "a.jsonl")


def test_compressed_lines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\x1f\x8b rest")
    assert "a.jsonl is compressed" in fails(capsys, tmp_path / "a.jsonl")


def test_whole_numbers_are_no_log_probs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Token ids or a mask under the name of log-probs."""
    arrays: dict[str, Any] = {name: np.array([values]) for name, values in GOOD.items()}
    np.savez(tmp_path / "a.npz", **(arrays | {"old_log_probs": -np.ones_like(arrays["old_log_probs"], dtype=np.int64)}))
    assert "every value is a whole number" in fails(capsys, tmp_path / "a.npz")


def test_advantages_in_a_column_and_one_step_for_all(tmp_path: Path) -> None:
    """(sequences, 1), as verl has them, and a number for the whole file."""
    sequences = simulate(6)
    width = max(len(one["old_log_probs"]) for one in sequences)
    names = ("old_log_probs", "rollout_log_probs", "response_mask")
    arrays = {
        name: np.array([[*one[name], *[0.0] * (width - len(one[name]))] for one in sequences], dtype=float)
        for name in names
    }
    given = np.array([[0.5], [-1.0], [1.0], [0.25], [-0.5], [0.0]])
    for folder, advantages in (("column", given), ("flat", given[:, 0])):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "a.npz", **arrays, advantages=advantages, step=np.array(3))
        run(tmp_path / folder / "a.npz", tmp_path / folder / "out")
    for table in ("methods.csv", "steps.csv"):
        assert (tmp_path / "column/out/tables" / table).read_bytes() == (
            tmp_path / "flat/out/tables" / table
        ).read_bytes()


def test_a_sequence_that_carries_all_weights_is_said(tmp_path: Path) -> None:
    """An effective sample size is then about that one."""
    sequences = simulate(6)
    sequences[2]["rollout_log_probs"] = [value - 30 for value in sequences[2]["rollout_log_probs"]]
    run(write(tmp_path / "a.jsonl", sequences), tmp_path / "out")
    assert "one sequence of 5 carries 100 % of all sequence weights" in (tmp_path / "out" / "report.html").read_text(
        encoding="utf-8"
    )
