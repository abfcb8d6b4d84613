"""One page of tables and figures, self-contained but for figures that would make it too large: nothing to fetch from
elsewhere, nothing hidden without its script, no clock and no host name."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from alp.rendering.artefact import PHONE, Artefact
from alp.rendering.tables import Table, to_html

ROOM = 3_000_000  # characters of figures in a page, which leaves a million for its tables and texts


@dataclass(frozen=True)
class Shown:
    """A figure or table of the page: ``content`` is a data URI, the address of a file, or finished HTML; ``files`` are
    names and relative addresses of its files; a figure that carries no signal says so in ``silent``, and is not drawn.
    ``narrow`` is the figure once more, for a phone, and ``healthy`` what it looks like where nothing is wrong."""

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


def within(figures: Sequence[Shown], room: int) -> list[Shown]:
    """Figures in their order, each in the page as long as all of them take at most ``room`` characters; one that does
    not fit is shown from its files beside the page."""
    kept = []
    for figure in figures:
        size = 0 if figure.silent else len(figure.content) + len(figure.narrow)
        if size <= room:
            room -= size
            kept.append(figure)
        else:
            wide = next(address for _, address in figure.files if address.endswith(".svg"))
            kept.append(replace(figure, content=wide, narrow=wide.removesuffix(".svg") + PHONE))
    return kept


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
