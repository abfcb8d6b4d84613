"""docs/parity.md names the tests that assert its rows."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "parity.md"


def test_document_and_tests_name_each_other() -> None:
    """A row of the TRL table whose test is gone, or a difference that is asserted but nowhere written down."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_trl_*.py"))
    tests = set(re.findall(r"^def (test_\w+)", source, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    assert not named - tests
    assert not tests - named
