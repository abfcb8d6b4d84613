"""The pages say where things are: every test, file and line that they name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_line_numbers_are_todays() -> None:
    done = subprocess.run([sys.executable, "docs/lines.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
