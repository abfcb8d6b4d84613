"""The notebook runs from its first cell to its last, and holds no results of anybody's run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "diagnose.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(CODE):
        exec(compile("".join(cell["source"]), f"code cell {number}", "exec"), names)
    assert any(sentence.startswith("likely cause: ") for sentence in names["found"].sentences)
    assert list(names["by_step"]) == [1, 2, 3]
    assert all(figures["k3_kl"] > 0 for figures in names["by_step"].values())
    assert names["kept"]["truncate"] == 1
    assert 0.5 < names["kept"]["mask"] < 1
    assert "<img" in (tmp_path / "results" / "notebook" / "report.html").read_text(encoding="utf-8")
    assert "KiB" in capsys.readouterr().out


def test_no_output_is_kept() -> None:
    assert CODE
    assert not [cell for cell in CODE if cell["outputs"] or cell["execution_count"] is not None]
