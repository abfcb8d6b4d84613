"""Files are whole or not there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from alp.reproducibility import write_json, write_text


def test_writes_are_whole_and_refuse_what_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"b": 1, "a": [1.5]})
    assert path.read_text(encoding="utf-8") == '{\n  "a": [\n    1.5\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": math.nan})
    assert path.read_text(encoding="utf-8").startswith("{"), "the old file survives a failed write"
    write_text(path, "new\n")
    assert [item.name for item in path.parent.iterdir()] == ["file.json"], "no temporary files stay"
