"""``alp demo``: the diagnosis of a dump that comes with the package, as a stranger's first look at what a page says.

The dump is of a small model in trouble, made by ``python -m benchmarks.demo_dump``.
"""

from __future__ import annotations

from pathlib import Path

from alp.diagnosis.dumps import FIELDS
from alp.diagnosis.verb import write
from alp.errors import UserError

DUMP = Path(__file__).parent / "demo.npz"
FOLDER = Path("results") / "demo"


def demo(words: list[str]) -> str:
    """Diagnose the dump into ``results/demo``; returns what `alp diagnose` says, and how to go on. Raises UserError."""
    if words:
        raise UserError(f"demo: takes no words, not '{words[0][:60]}'; a dump of your own: alp diagnose <file>")
    said = write(DUMP, FOLDER, {field: field for field in FIELDS})
    return f"{said}\nthe page: {FOLDER / 'report.html'}; a dump of your own: alp diagnose <file>"
