"""Tables and figures are registered where they are made: one module each, read without running it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from alp.configuration import grid as grids
from alp.rendering.artefact import Kind
from alp.reporting import registry

WHOLE = 'ARTEFACT = Declaration(order=1, title="T", caption="C.")\ndef make(loaded): ...\n'


def test_the_page_s_order_and_the_conditions() -> None:
    quick, mismatch = grids.load("quick"), grids.load("engines")
    others = ["controls", "ratio_tails", "noise_budget", "pass_at_k"]
    assert registry.names("tables", quick) == ["main", *others]
    assert registry.names("tables", mismatch) == ["main", "mismatch", *others]
    assert "sigma" in registry.names("figures", quick)
    assert "mismatch" not in registry.names("figures", quick)
    assert Path("figures/tails.svg") in registry.paths_of("figures", quick)


def test_a_new_module_is_a_new_artefact(tmp_path: Path) -> None:
    for name, text in {"later": WHOLE.replace("order=1", "order=2"), "first": WHOLE, "__init__": ""}.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    assert [artefact.name for artefact in registry.read(tmp_path, "nowhere")] == ["first", "later"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE.replace(', caption="C."', ""), "missing: caption; unexpected: nothing"),
        (WHOLE.replace('"T"', '""'), "missing: title"),
        (WHOLE.replace("title", "titel"), "missing: title; unexpected: titel"),
        (WHOLE.replace('"C."', '"C.", condition="sometimes"'), "has no condition 'sometimes'"),
        (WHOLE.replace('"C."', "CAPTION"), "no literal"),
        (WHOLE.replace("ARTEFACT", "OTHER"), "missing: ARTEFACT"),
        (WHOLE.replace("def make", "def draw"), "missing: a function 'make'"),
    ],
)
def test_a_faulty_declaration_is_an_error_at_once(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"mine\.py: .*{re.escape(message)}"):
        registry.read(tmp_path, "nowhere")


def test_the_workflow_asks_without_plotting() -> None:
    code = (
        "import sys; from alp.configuration import grid; from alp.reporting import registry;"
        " registry.names('figures', grid.load('quick'));"
        " print(sorted({'torch', 'matplotlib', 'pandas', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("kind", ["tables", "figures"])
def test_captions_are_plain_text(kind: Kind) -> None:
    for artefact in registry.registered(kind):
        assert not re.search(r"[{}*`|\n]|\w_\s|  ", artefact.caption), artefact.name
        assert artefact.caption.endswith("."), artefact.name
