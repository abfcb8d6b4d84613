"""A table once exact, for machines, and once rounded, for people; as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Cell = str | int | float | None
# fmt: off
_TEXT = (  # set left
    "Engine", "Method", "Set", "Ratio", "Level", "Reference", "Control", "Differs in", "Range", "Quantity",
    "Reads as", "Remark",
)
_TEX = (  # plain text, its underscores escaped already, and what pdflatex knows
    ("π\\_θ,δ", r"$\pi_{\theta,\delta}$"), ("π\\_θ", r"$\pi_\theta$"),
    ("π\\_old", r"$\pi_{\mathrm{old}}$"), ("μ", r"$\mu$"),
    ("σ₀", r"$\sigma_0$"), ("σ", r"$\sigma$"), ("Π", r"$\prod$"), ("r²", "$r^2$"), ("∞", r"$\infty$"), ("<", "$<$"),
    ("−", "$-$"), ("–", "--"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#"),
)
# fmt: on


@dataclass(frozen=True)
class Table:
    """One table twice: exact ``columns``/``rows`` for CSV, finished text ``shown_columns``/``shown_rows`` for people.

    ``best`` marks shown cells (row, column) that are set in bold.
    """

    columns: list[str]
    rows: list[list[Cell]]
    shown_columns: list[str]
    shown_rows: list[list[str]]
    best: set[tuple[int, int]] = field(default_factory=set)


def to_csv(table: Table) -> str:
    """Comma-separated lines; floats with six digits, so that bytes do not depend on the last bits of a sum."""
    lines = [table.columns, *([_exact(cell) for cell in row] for row in table.rows)]
    return "".join(",".join(f'"{cell}"' if "," in cell else cell for cell in line) + "\n" for line in lines)


def to_markdown(table: Table) -> str:
    """A pipe table, text columns left and figures right."""
    rule = [":---" if _is_text(table, column) else "---:" for column in range(len(table.shown_columns))]
    rows = [
        [f"**{cell}**" if (row, column) in table.best else cell for column, cell in enumerate(cells)]
        for row, cells in enumerate(table.shown_rows)
    ]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [table.shown_columns, rule, *rows])


def to_latex(table: Table) -> str:
    """A booktabs tabular, to be read with \\input inside a table environment."""
    rows = [
        [
            f"\\textbf{{{_tex(cell)}}}" if (row, column) in table.best else _tex(cell)
            for column, cell in enumerate(cells)
        ]
        for row, cells in enumerate(table.shown_rows)
    ]
    columns = "".join("l" if _is_text(table, column) else "r" for column in range(len(table.shown_columns)))
    body = [" & ".join(cells) + r" \\" for cells in rows]
    head = " & ".join(map(_tex, table.shown_columns)) + r" \\"
    lines = ["% needs the booktabs package", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _is_text(table: Table, column: int) -> bool:
    return table.shown_columns[column] in _TEXT


def _exact(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.6f}".replace("-0.000000", "0.000000")
    return str(cell)


def _tex(text: str) -> str:
    text = text.replace("_", r"\_")
    for plain, command in _TEX:
        text = text.replace(plain, command)
    return text


def number(value: Cell, digits: int, *, signed: bool = False) -> str:
    """Rounded, with a true minus sign and no negative zero; empty for a missing figure."""
    if value is None or not math.isfinite(float(value)):
        return ""
    text = f"{float(value):+.{digits}f}" if signed else f"{float(value):.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def percent(fraction: Cell, *, signed: bool = False) -> str:
    return number(None if fraction is None else 100 * float(fraction), 1, signed=signed)


def with_interval(mean: Cell, low: Cell, high: Cell, *, signed: bool = False) -> str:
    if mean is None:
        return ""
    return f"{percent(mean, signed=signed)} [{percent(low, signed=signed)}, {percent(high, signed=signed)}]"


def exact(value: float | None) -> Cell:
    """Six significant digits: divergences of 1e-6 are common, and fixed decimals would round them away."""
    if value is None or not math.isfinite(value):
        return None
    return f"{value:.6g}" if value else "0"


def significant(value: float | None, digits: int = 3) -> str:
    """For people: three significant digits, a true minus sign; a dash for a missing figure."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "∞"
    return (f"{value:.{digits}g}" if value else "0").replace("-", "−")
