"""The numbers behind a figure's named curves and points, inside its SVG file, for whoever shows it: a page's script
names those under the pointer. A line is named by its label, which nothing else here reads."""

from __future__ import annotations

import html
import json
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from alp.rendering.numbers import significant

ID = "values"  # of the element that holds them, as JSON


def within(svg: str, figure: Figure) -> str:
    """The finished file of ``figure`` with its numbers; unchanged where none of its lines has a name."""
    panels = [panel for axes in figure.axes if axes.get_visible() and (panel := _panel(figure, axes))["lines"]]
    if not panels:
        return svg
    text = html.escape(json.dumps(panels, ensure_ascii=False, separators=(",", ":")), quote=False)
    body, end, rest = svg.rpartition("</svg>")
    return f'{body}<metadata id="{ID}">{text}</metadata>\n{end}{rest}'


def _panel(figure: Figure, axes: Axes) -> dict[str, Any]:
    """``box`` is left, top, width and height; those and places are in parts of the figure, from its upper left."""
    box = axes.bbox
    (left, bottom), (right, top) = _parts(figure, np.array([[box.x0, box.y0], [box.x1, box.y1]]))
    ends = [left, top, right - left, bottom - top]
    named = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {"box": [round(end, 4) for end in ends], "lines": [_line(figure, axes, line) for line in named]}


def _line(figure: Figure, axes: Axes, line: Line2D) -> dict[str, Any]:
    """``points`` are place across, place down, x and y."""
    values = np.column_stack([np.asarray(data, dtype=np.float64) for data in line.get_data()])
    known = values[np.isfinite(values).all(axis=1)]
    points = [
        [round(float(across), 4), round(float(down), 4), f"{x:.6g}", significant(float(y), 4)]
        for (across, down), (x, y) in zip(_parts(figure, axes.transData.transform(known)), known, strict=True)
        if math.isfinite(across) and math.isfinite(down)
    ]
    return {"name": str(line.get_label()), "colour": to_hex(line.get_color()), "points": points}


def _parts(figure: Figure, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places (points, 2) in parts of the figure, the second counted from the top."""
    parts = np.asarray(pixels, dtype=np.float64).reshape(-1, 2) / [figure.bbox.width, figure.bbox.height]
    return np.column_stack([parts[:, 0], 1 - parts[:, 1]])
