"""Atomic files and the code hashes that decide what re-runs."""

from __future__ import annotations

import ast
import math
import sys
from pathlib import Path

import pytest

from alp import reproducibility
from alp.reproducibility import PACKAGE, import_closure, write_json, write_text

FLOORS = {
    "errors": 0,
    "foreign": 1,
    "own_code": 1,
    "places": 1,
    "ownership": 1,
    "model_files": 1,
    "tracking_uri": 1,
    "tracking_database": 2,
    "schema": 1,
    "schema_base": 1,
    "schema_models": 1,
    "schema_tasks": 1,
    "config": 1,
    "grid": 1,
    "reproducibility": 1,
    "lifetime": 1,
    "progress": 1,
    "models": 1,
    "fetch": 2,
    "policy": 1,
    "tasks": 1,
    "rollout": 2,
    "tracking": 2,
    "training": 3,
    "analysis": 3,
    "cli": 4,
}


def _names(module: str) -> set[str]:
    return {str(path.relative_to(PACKAGE)) for path in import_closure(module)}


def test_closures_hold_what_a_verb_runs_and_no_more() -> None:
    train, evaluate, pretrain = (
        _names("alp.training.trainer"),
        _names("alp.evaluation.evaluate"),
        _names("alp.training.pretrain"),
    )
    assert {
        "policy/ratio.py",
        "policy/streams.py",
        "rollout/hf.py",
        "training/update.py",
        "tasks/arithmetic.py",
    } <= train
    for other in (
        "reporting/figures.py",
        "reporting/aggregate.py",
        "reporting/report.py",
        "reporting/tracking.py",
        "cli.py",
    ):
        assert other not in train
    assert not any(name.startswith("policy/") for name in evaluate | pretrain), (
        "a change of the loss must not repeat the base model"
    )
    assert "reporting/aggregate.py" not in _names("alp.reporting.figures")
    assert "reporting/figures.py" not in _names("alp.reporting.aggregate")


def test_code_hash_follows_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "alp"
    package.mkdir()
    for name, text in {"__init__": "", "a": "from alp import b\n", "b": "x = 1\n", "c": "y = 1\n"}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.setattr(reproducibility, "PACKAGE", package)
    monkeypatch.setattr(reproducibility, "ROOT", tmp_path)

    def fresh() -> str:
        reproducibility.code_hash.cache_clear()
        return reproducibility.code_hash("alp.a")

    first = fresh()
    (package / "c.py").write_text("y = 2\n")
    assert fresh() == first
    (package / "b.py").write_text("x = 2\n")
    assert fresh() != first
    reproducibility.code_hash.cache_clear()


def test_writes_are_whole_and_refuse_what_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"b": 1, "a": [1.5]})
    assert path.read_text(encoding="utf-8") == '{\n  "a": [\n    1.5\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": math.nan})
    assert path.read_text(encoding="utf-8").startswith("{"), "the old file survives a failed write"
    write_text(path, "new\n")
    assert [item.name for item in path.parent.iterdir()] == ["file.json"], "no temporary files stay"


def test_imports_point_down_and_policy_knows_torch_alone() -> None:
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE)
        room = place.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [
                    f"{node.module}.{alias.name}" if node.module == "alp" else str(node.module) for alias in node.names
                ]
                relative = node.level > 0
            elif isinstance(node, ast.Import):
                names, relative = [alias.name for alias in node.names], False
            else:
                continue
            for name in names:
                parts = name.split(".")
                if room == "policy":
                    allowed = relative or parts[0] == "torch" or parts[0] in sys.stdlib_module_names
                    assert allowed, f"{place} imports {name}"
                elif parts[0] == "alp" and len(parts) > 1 and parts[1] in FLOORS:
                    assert FLOORS[parts[1]] <= FLOORS[room], f"{place} imports {name}, which stands above it"


def test_modules_stay_small() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, f"{path.name}: two ideas in one room"
