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
KEYS = ("output", "replace")  # of `alp diagnose`: what its refusal of a folder advises


def demo(words: list[str]) -> str:
    """Diagnose the dump into ``results/demo``, or where the words say; returns what `alp diagnose` says, and how to go
    on. Raises UserError."""
    given = dict(word.partition("=")[::2] for word in words)
    for word in words:
        if word.partition("=")[0] not in KEYS:
            raise UserError(
                f"demo: takes {' and '.join(KEYS)} alone, not '{word[:60]}'; a dump of your own: alp diagnose <file>"
            )
    folder, replace = given.get("output") or FOLDER, given.get("replace", "false")
    if replace not in ("true", "false"):
        raise UserError(f"demo: replace: true or false expected, not '{replace[:60]}'")
    said = write(DUMP, folder, {field: field for field in FIELDS}, replace=replace == "true")
    return f"{said}\nthe page: {Path(folder) / 'report.html'}; a dump of your own: alp diagnose <file>"
