"""A table is a data frame with a specification of how people and machines see it, until the last moment.

CSV, Markdown, LaTeX and HTML are four renderings of it; none is ever read back.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from alp.rendering.numbers import Cell, six_decimals, six_significant, text

Row = dict[str, Cell]
# fmt: off
_TEX = (  # plain text, its underscores escaped already, and what pdflatex knows
    ("π\\_θ,δ", r"$\pi_{\theta,\delta}$"), ("π\\_θ", r"$\pi_\theta$"),
    ("π\\_old", r"$\pi_{\mathrm{old}}$"), ("μ", r"$\mu$"),
    ("σ₀", r"$\sigma_0$"), ("σ", r"$\sigma$"), ("Π", r"$\prod$"), ("r²", "$r^2$"), ("∞", r"$\infty$"), ("<", "$<$"),
    ("Δ", r"$\Delta$"), ("π", r"$\pi$"), ("×", r"$\times$"),
    ("†", r"$\dagger$"),    ("−", "$-$"), ("–", "--"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#"),
)
# fmt: on


@dataclass(frozen=True)
class Column:
    """A column as people see it.

    ``source`` is the frame's column, ``unit`` stands behind the header, ``show`` makes a cell's text. ``interval``
    names the two columns whose values follow in brackets, ``aside`` one that follows in parentheses, ``mark`` one whose
    truth puts a dagger behind all that; each only where the cell itself and what would follow are not missing. ``link``
    leads from a cell of a page to ``#<link>-<value>`` there.
    """

    source: str
    header: str
    show: Callable[[Cell], str] = text
    unit: str = ""
    align: Literal["left", "right"] = "right"
    interval: tuple[str, str] | None = None
    aside: str | None = None
    mark: str | None = None
    link: str | None = None

    @property
    def heading(self) -> str:
        return f"{self.header}, {self.unit}" if self.unit else self.header

    def cell(self, row: Row) -> str:
        """The finished text of this column in one row."""
        shown = self.show(row[self.source])
        if row[self.source] is None:
            return shown
        if self.interval is not None and None not in (ends := [row[end] for end in self.interval]):
            shown = f"{shown} [{', '.join(map(self.show, ends))}]"
        if self.mark is not None and row[self.mark]:
            shown += " †"
        return shown if self.aside is None else f"{shown} ({text(row[self.aside])})"


def words(source: str, header: str, show: Callable[[Cell], str] = text, link: str | None = None) -> Column:
    """A column of text, set left."""
    return Column(source, header, show, align="left", link=link)


@dataclass(frozen=True)
class Table:
    """``frame`` holds the measured values, one row per line of the CSV file; ``columns`` are what people see of it.

    Machines get the columns ``exported`` (all by default) with six decimals, those of ``significant`` with six
    significant digits. ``wide`` is the frame that people see instead, where they read several rows as one. ``best``
    marks cells (row, source) set in bold.
    """

    frame: pd.DataFrame
    columns: Sequence[Column]
    exported: Sequence[str] | None = None
    significant: frozenset[str] = frozenset()
    wide: pd.DataFrame | None = None
    best: frozenset[tuple[int, str]] = frozenset()

    @property
    def seen(self) -> list[Row]:
        """The rows that people see."""
        return records(self.frame if self.wide is None else self.wide)

    def shown(self) -> list[list[str]]:
        """Finished text, row by row."""
        return [[column.cell(row) for column in self.columns] for row in self.seen]

    def exact(self) -> list[dict[str, str]]:
        """What machines read, row by row: empty for a missing figure and for an infinity."""
        names = list(self.frame.columns) if self.exported is None else self.exported
        return [{name: self._exact(name, row[name]) for name in names} for row in records(self.frame)]

    def rounded(self) -> list[Row]:
        """The exported rows with their numbers as exact as the CSV file has them: what sentences quote."""
        rows: list[Row] = []
        for row, exact in zip(records(self.frame), self.exact(), strict=True):
            rows.append({name: _number(exact[name]) if isinstance(row[name], float) else row[name] for name in exact})
        return rows

    def _exact(self, name: str, cell: Cell) -> str:
        if not isinstance(cell, float):
            return text(cell)
        if not math.isfinite(cell):
            return ""
        return six_significant(cell) if name in self.significant else six_decimals(cell)


def _number(exact: str) -> float | None:
    return float(exact) if exact else None


def frame(rows: Sequence[Sequence[Cell]], columns: Sequence[str]) -> pd.DataFrame:
    """Cells as they were computed: whole numbers stay whole, a missing figure is None and no NaN."""
    return pd.DataFrame([list(row) for row in rows], columns=list(columns), dtype=object)


def records(cells: pd.DataFrame) -> list[Row]:
    """The rows of a frame as mappings."""
    rows: list[Any] = cells.to_dict("records")
    return rows


# ---- four renderings -------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Comma-separated lines for machines."""
    names = list(table.frame.columns) if table.exported is None else list(table.exported)
    stream = io.StringIO()
    pd.DataFrame(table.exact(), columns=names, dtype=object).to_csv(stream, index=False, lineterminator="\n")
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """A pipe table, text columns left and figures right."""
    rule = [":---" if column.align == "left" else "---:" for column in table.columns]
    lines = [[column.heading for column in table.columns], rule, *_emphasised(table, "**{}**".format)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def to_latex(table: Table) -> str:
    """A booktabs tabular, to be read with \\input inside a table environment."""
    alignment = "".join("l" if column.align == "left" else "r" for column in table.columns)
    head = " & ".join(_tex(column.heading) for column in table.columns) + r" \\"
    body = [" & ".join(cells) + r" \\" for cells in _emphasised(table, "\\textbf{{{}}}".format, _tex)]
    lines = [
        "% needs the booktabs package",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """A ``<table>``; its cells are plain text, some of them links to places of the same page."""
    kinds = ["text" if column.align == "left" else "number" for column in table.columns]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))

    def linked(row: Row, cells: Sequence[str]) -> list[str]:
        return [
            f'<a href="#{column.link}-{html.escape(str(row[column.source]))}">{cell}</a>'
            if column.link and row[column.source] is not None
            else cell
            for column, cell in zip(table.columns, cells, strict=True)
        ]

    head = line("th", [html.escape(column.heading) for column in table.columns])
    rows = zip(table.seen, _emphasised(table, "<strong>{}</strong>".format, html.escape), strict=True)
    body = "".join(f"<tr>{line('td', linked(row, cells))}</tr>\n" for row, cells in rows)
    if not body:
        body = f'<tr><td colspan="{len(kinds)}">nothing to compare in this grid</td></tr>\n'
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


RENDERINGS: dict[str, Callable[[Table], str]] = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}


def _emphasised(table: Table, bold: Callable[[str], str], escape: Callable[[str], str] = str) -> list[list[str]]:
    """The shown cells, escaped, the best ones in bold."""
    return [
        [
            bold(escape(cell)) if (number, column.source) in table.best else escape(cell)
            for column, cell in zip(table.columns, cells, strict=True)
        ]
        for number, cells in enumerate(table.shown())
    ]


def _tex(plain: str) -> str:
    plain = plain.replace("_", r"\_")
    for character, command in _TEX:
        plain = plain.replace(character, command)
    return plain
