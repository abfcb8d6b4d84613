"""``alp demo``: the diagnosis of a dump that comes with the package, as a stranger's first look at what a page says.

The dump is of a small model in trouble, made by ``python -m benchmarks.demo_dump``.
"""

from __future__ import annotations

from pathlib import Path

from alp.configuration import compose
from alp.configuration.grid import quoted
from alp.diagnosis.verb import diagnose
from alp.errors import UserError

DUMP = Path(__file__).parent / "demo.npz"
FOLDER = Path("results") / "demo"


def demo(words: list[str]) -> str:
    """Diagnose the dump into ``results/demo``; returns what `alp diagnose` says, and how to go on. Raises UserError."""
    if words:
        raise UserError(f"demo: takes no words, not '{words[0][:60]}'; a dump of your own: alp diagnose <file>")
    said = diagnose(compose.load("diagnose", [f"input={quoted(DUMP)}", f"output={quoted(FOLDER)}"]))
    return f"{said}\nthe page: {FOLDER / 'report.html'}; a dump of your own: alp diagnose <file>"
