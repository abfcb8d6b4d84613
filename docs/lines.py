"""Line ranges in the links of the pages beside this file: ``[name](../alp/….py#L1-L2)`` follows ``name`` wherever it moves.

python docs/lines.py           rewrite what has moved (make format)
python docs/lines.py --check   say what has moved, exit code 1 (make lint)
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
LINK = re.compile(r"\[`?(?P<name>[\w.]+)`?\]\(\.\./(?P<path>alp/[\w/]+\.py)#L\d+-L\d+\)")


def span(path: Path, name: str) -> tuple[int, int]:
    """First and last line of a function, class, method (``Class.method``) or constant. Raises SystemExit where there is none."""
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((node for node in body if part in names(node)), None)
        body = getattr(found, "body", [])
    if found is None or found.end_lineno is None:
        raise SystemExit(f"docs: no {name} in {path.name}")
    first = min([found.lineno, *(one.lineno for one in getattr(found, "decorator_list", []))])
    return first, found.end_lineno


def names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    return [target.id for target in node.targets if isinstance(target, ast.Name)] if isinstance(node, ast.Assign) else []


def refreshed(text: str) -> str:
    """The page with today's lines."""

    def link(match: re.Match[str]) -> str:
        first, last = span(DOCS.parent / match["path"], match["name"])
        return f"[`{match['name']}`](../{match['path']}#L{first}-L{last})"

    return LINK.sub(link, text)


def main() -> int:
    """Rewrite, or check."""
    stale = [page for page in sorted(DOCS.glob("*.md")) if refreshed(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        for page in stale:
            print(f"docs/{page.name}: line numbers have moved: make format", file=sys.stderr)
        return 1 if stale else 0
    for page in stale:
        page.write_text(refreshed(page.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
