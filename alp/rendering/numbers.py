"""Numbers as text: rounded for people, with six digits for machines. A missing figure is None."""

from __future__ import annotations

import math

Cell = str | int | float | None


def text(cell: Cell) -> str:
    """A word or a count as it is, a truth value as true or false; empty for a missing one."""
    if isinstance(cell, bool):
        return str(cell).lower()
    return "" if cell is None else str(cell)


def number(value: Cell, digits: int, *, signed: bool = False) -> str:
    """Rounded, with a true minus sign and no negative zero; empty for a missing figure."""
    if value is None or not math.isfinite(float(value)):
        return ""
    rounded = f"{float(value):+.{digits}f}" if signed else f"{float(value):.{digits}f}"
    if float(rounded) == 0:
        rounded = rounded.lstrip("+-")
    return rounded.replace("-", "−")


def one_decimal(value: Cell) -> str:
    """A mean of counts."""
    return number(value, 1)


def three_decimals(value: Cell) -> str:
    """A log-ratio, in nats."""
    return number(value, 3)


def percent(fraction: Cell, *, signed: bool = False) -> str:
    """A fraction in percent, one digit."""
    return number(None if fraction is None else 100 * float(fraction), 1, signed=signed)


def points(fraction: Cell) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return percent(fraction, signed=True)


def percent_as_published(fraction: Cell) -> str:
    """A fraction in percent with the two digits that papers print."""
    return number(None if fraction is None else 100 * float(fraction), 2)


def share(fraction: Cell) -> str:
    """A share in percent: two digits after the point, and neither 0 nor 100 for what is not quite that."""
    if fraction is None:
        return "–"
    rounded = f"{100 * float(fraction):.2f}"
    if fraction in (0, 1):
        return f"{100 * float(fraction):g}"
    return {"0.00": "< 0.01", "100.00": "> 99.99"}.get(rounded, rounded)


def significant(value: Cell, digits: int = 3) -> str:
    """Three significant digits, a true minus sign; a dash for a missing figure."""
    if value is None:
        return "–"
    if not math.isfinite(float(value)):
        return "∞"
    return (f"{float(value):.{digits}g}" if value else "0").replace("-", "−")


def six_decimals(value: float) -> str:
    """For machines: fixed decimals, so that bytes do not depend on the last bits of a sum."""
    return f"{value:.6f}".replace("-0.000000", "0.000000")


def six_significant(value: float) -> str:
    """For machines: divergences of 1e-6 are common, and fixed decimals would round them away."""
    return f"{value:.6g}" if value else "0"
