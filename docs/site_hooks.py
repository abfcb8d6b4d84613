"""What the site (mkdocs.yml) needs beside the pages of this folder: README.md and its neighbours as pages of it, and
links that leave the folder as links into the repository, or as plain text where nobody says which (``repo_url``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}  # pages of the site, files of the root
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie above this folder, with links as if they lay in it."""
    for page, name in ABOVE.items():
        text = LINK.sub(_moved, (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def _moved(link: re.Match[str]) -> str:
    mark, text, target = link.groups()
    if "://" in target or target.startswith("#"):
        return link[0]
    inside = target.removeprefix("docs/")
    return f"{mark}[{text}]({inside if inside != target else f'../{target}'})"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001 (names are mkdocs')
    """Links to files of the repository that are no pages."""
    return LINK.sub(lambda link: _outward(link, config.repo_url), markdown)


def _outward(link: re.Match[str], repository: str | None) -> str:
    mark, text, target = link.groups()
    place, _, anchor = target.partition("#")
    if mark or "://" in target or not place or (not place.startswith("../") and place.endswith(".md")):
        return link[0]
    path = place.removeprefix("../") if place.startswith("../") else f"docs/{place}"
    page = next((page for page, name in ABOVE.items() if name == path), None)
    if page:
        return f"[{text}]({page}{'#' * bool(anchor)}{anchor})"
    return f"[{text}]({repository.rstrip('/')}/blob/main/{path})" if repository else text
