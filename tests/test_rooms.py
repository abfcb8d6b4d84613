"""The house (README, CONTRIBUTING.md): imports point down, modules and functions stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "alp"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST_MODULE, LONGEST_FUNCTION = 400, 50  # lines
# From the bottom up. Modules beside the rooms (files, ownership, errors …) are below all of them but `policy`.
LEVELS = {
    "policy": 0,
    "": 1,
    "rendering": 2,
    "configuration": 2,
    "models": 3,
    "tasks": 3,
    "rollout": 4,
    "training": 5,
    "evaluation": 5,
    "diagnosis": 6,
    "reporting": 6,
    "planning": 6,
    "cli": 7,
}
# The commands themselves stand beside the rooms, and call into them.
COMMANDS = {"cli", "commands", "verbs", "fetch", "preflight", "clean", "warm"}


def _room(dotted: str) -> str:
    first = dotted.split(".")[1] if "." in dotted else ""
    if first in COMMANDS:
        return "cli"
    return first if first in LEVELS else ""


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules of ours that are imported when the module is run, not for its types alone, and not inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield from (f"{node.module}.{alias.name}" if node.module == "alp" else node.module for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imports(node)


@pytest.mark.parametrize("path", MODULES, ids=map(_name, MODULES))
def test_a_module_is_small_and_imports_point_down(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_MODULE
    tree, room = ast.parse(text), _room(_name(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{node.name}: {lines} lines"
    for imported in _imports(tree):
        if imported.partition(".")[0] == "alp" and (other := _room(imported)) != room:
            assert LEVELS[other] < LEVELS[room], f"{room or 'alp'} imports {imported}"
