"""`python -m alp.diagnosis`: the page without Hydra; every mistake is one line."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from alp.diagnosis import diagnose
from alp.diagnosis.__main__ import main


def _dump(path: Path, mask: str = "response_mask") -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    old = -random.gamma(0.5, 1.0, size=(8, 12))
    rollout = (old + 0.02 * random.normal(size=old.shape)).clip(max=0)
    fields = {"old_log_probs": old, "rollout_log_probs": rollout, "response_mask": np.ones(old.shape)}
    np.savez(path, **{mask if name == "response_mask" else name: values for name, values in fields.items()})
    return fields


def test_the_page_has_the_figures_of_the_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = _dump(tmp_path / "dump.npz", mask="mask")
    words = [str(tmp_path / "dump.npz"), f"output={tmp_path / 'page'}", "fields.response_mask=mask", "threads=1"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(tmp_path / "page")
    record = json.loads((tmp_path / "page" / "diagnostics.json").read_text())
    found = diagnose(**fields)
    assert len(found.figures) > 10
    assert {name: record[name] for name in found.figures} == found.figures
    assert "<img" in (tmp_path / "page" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.npz"], "nowhere.npz"),
        (["a.npz", "b.npz"], "one file or folder at a time, not 2"),
        (["a.npz", "ouput=x"], "unknown key 'ouput'; did you mean 'output'?"),
        (["a.npz", "fields.response_maks=x"], "did you mean 'fields.response_mask'?"),
        (["a.npz", "threads=0"], "threads: a whole number from 1 expected, got '0'"),
        (["a.npz", "replace=yes"], "replace: true or false expected, got 'yes'"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_without_words_it_says_how_to_be_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: python -m alp.diagnosis" in capsys.readouterr().out


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr("alp.diagnosis.verb.write", write)
    assert main([str(tmp_path / "dump.npz")]) == 1
    assert capsys.readouterr().err == f"alp.diagnosis: error: {tmp_path / 'out'}: No space left on device\n"
