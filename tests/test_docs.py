"""The pages say where things are: every test, file and symbol that they name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


SYMBOL = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<path>\.\./alp/[\w/]+\.py)\)")


def _defines(path: Path, name: str) -> bool:
    """Whether a module defines that function, class, method (``Class.method``) or constant."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        node = next((node for node in body if part in _names(node)), None)
        if node is None:
            return False
        body = getattr(node, "body", [])
    return True


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_linked_symbols_exist(page: Path) -> None:
    links = SYMBOL.findall(page.read_text(encoding="utf-8"))
    assert links or page.stem != "method"
    for name, path in links:
        assert _defines(page.parent / path, name), f"{path} defines no {name}"


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_named_tests_and_links_exist(page: Path) -> None:
    """A row of the table whose test was renamed or never written."""
    text = page.read_text(encoding="utf-8")
    for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        found = list((ROOT / "tests").rglob(file))
        assert any(f"def {name}(" in path.read_text(encoding="utf-8") for path in found), f"{file}::{name}"
    for path in re.findall(r"\]\(([^)#:]+)", text):
        assert (page.parent / path).exists(), path


def test_every_public_name_of_the_policy_is_in_the_table() -> None:
    import alp.policy

    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    for name in alp.policy.__all__:
        assert f"[`{name}`](" in text, name


def test_every_page_is_in_the_site() -> None:
    """mkdocs.yml names each page once, and no other: `make docs` says the same, which few run."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = re.findall(r"[\w-]+\.md", nav)
    assert sorted(pages) == sorted([*(page.name for page in PAGES), "index.md", "contributing.md", "changelog.md"])


def test_no_page_points_outside_the_repository() -> None:
    for page in (*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text(encoding="utf-8")
        assert "../shared" not in text, page
        for path in re.findall(r"\]\(([^)#:\s]+)", text):
            assert (page.parent / path).resolve().is_relative_to(ROOT), f"{page}: {path}"
