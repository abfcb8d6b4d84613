"""``alp demo``: a stranger's first command."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from alp.diagnosis.demo import DUMP


def _demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alp.cli", "demo", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_packaged_dump_is_diagnosed_anywhere_and_again(tmp_path: Path) -> None:
    first = _demo(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "read as log-probs under our field names, 3 steps" in first.stdout
    assert first.stdout.splitlines()[-1].startswith("the page: results/demo/report.html")
    page = (tmp_path / "results/demo/report.html").read_bytes()
    record = json.loads((tmp_path / "results/demo/diagnostics.json").read_text(encoding="utf-8"))
    assert record["input/sha256"] == hashlib.sha256(DUMP.read_bytes()).hexdigest()
    assert record["count/valid_tokens"] > 1000
    assert _demo(tmp_path).returncode == 0
    assert (tmp_path / "results/demo/report.html").read_bytes() == page


def test_what_it_is_not_asked_is_one_line(tmp_path: Path) -> None:
    done = _demo(tmp_path, "mine.npz")
    assert done.returncode == 2
    said = "alp: error: demo: takes output and replace alone, not 'mine.npz'; a dump of your own: alp diagnose <file>\n"
    assert done.stderr == said
    assert not (tmp_path / "results").exists()


def test_what_the_refusal_of_a_folder_advises_is_taken(tmp_path: Path) -> None:
    (tmp_path / "results/demo").mkdir(parents=True)
    (tmp_path / "results/demo/mine.txt").write_text("mine")
    refused = _demo(tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.endswith("build elsewhere: output=<another folder>\n")
    done = _demo(tmp_path, "output=elsewhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("the page: elsewhere/report.html")
    assert (tmp_path / "elsewhere/report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "alp: error: diagnose: no input given: "),  # a shell variable that is not set
        (["one.npz", "two.npz"], "alp: error: diagnose: one input at a time, not 2: 'one.npz', 'two.npz'\n"),
        (["."], "alp: error: diagnose: {name}: no dump in this folder: "),
    ],
)
def test_careless_inputs_are_one_line_and_read_nothing(words: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "alp.cli", "diagnose", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert message.format(name=tmp_path.name) in done.stderr
    assert not list(tmp_path.iterdir())
