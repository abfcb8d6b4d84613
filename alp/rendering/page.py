"""One self-contained page of tables and figures: nothing to fetch, nothing hidden without its script, no clock and no
host name."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from alp.rendering.artefact import Artefact
from alp.rendering.tables import Table, to_html


@dataclass(frozen=True)
class Shown:
    """A figure or table of the page: ``content`` is a data URI or finished HTML; ``files`` are names and relative
    addresses of its files; a figure that carries no signal says so in ``silent``, and is not drawn. ``narrow`` is the
    figure once more, for a phone, and ``healthy`` what it looks like where nothing is wrong."""

    name: str
    title: str
    caption: str
    content: str
    files: Sequence[tuple[str, str]] = ()
    silent: str = ""
    narrow: str = ""
    healthy: str = ""


def shown_table(artefact: Artefact[Any, Any, Any], table: Table, files: Sequence[tuple[str, str]] = ()) -> Shown:
    """The table with what it is registered with."""
    return Shown(artefact.name, artefact.title, artefact.caption, to_html(table), files)


def shown_figure(
    artefact: Artefact[Any, Any, Any],
    svg: bytes,
    files: Sequence[tuple[str, str]] = (),
    silent: str = "",
    narrow: bytes = b"",
) -> Shown:
    """The figure likewise. An <img> is a document of its own: ids of different figures cannot meet, as they would
    inline."""
    content, small = (f"data:image/svg+xml;base64,{base64.b64encode(one).decode()}" for one in (svg, narrow))
    return Shown(
        artefact.name,
        artefact.title,
        artefact.caption,
        content,
        files,
        silent,
        small if narrow else "",
        artefact.healthy,
    )


def render(template: Path, **values: Any) -> str:
    """A page of the template, which extends ``base.html.j2``: escaped, no undefined names."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)
