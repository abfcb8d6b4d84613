"""Sets of real numbers, however they are written: intervals, inequalities, set builders, the line without points."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from alp.tasks.notation import Tokens, balanced, closing, split

_LESS, _MORE = {"<": False, r"\le": True}, {">": False, r"\ge": True}  # and whether the end belongs to it
_INFINITE = ([r"\infty"], ["+", r"\infty"], ["-", r"\infty"])
_BAR = {"|", r"\mid", ":"}


@dataclass(frozen=True)
class Piece:
    """From ``low`` to ``high``; an end that is None is infinite. ``closed``: whether each end belongs to it."""

    low: Tokens | None
    high: Tokens | None
    closed: tuple[bool, bool]


@dataclass(frozen=True)
class Region:
    """Pieces of the line, and the variable that runs over them where one is named. ``plain``: brackets alone."""

    name: Tokens | None
    pieces: tuple[Piece, ...]
    plain: bool


def region(items: Tokens) -> Region | None:
    """The set that an answer names; None where it names none."""
    belongs = split(items, {r"\in"})
    if len(belongs) == 2 and _is_variable(belongs[0]):
        inside = region(belongs[1])
        return None if inside is None or inside.name else Region(belongs[0], inside.pieces, False)
    if items[:1] == [r"\{"] and closing(items, 0) == len(items) - 1:
        return _built(items[1:-1])
    parts = split(items, {r"\cup", ",", ";"})
    if len(parts) > 1:
        return _together([region(part) for part in parts], commas=any(item in (",", ";") for item in _bare(items)))
    without = split(items, {r"\setminus", "-"})
    if len(without) == 2 and without[0] == [r"\mathbb", "R"]:
        points = without[1][1:-1] if without[1][:1] == [r"\{"] else None
        return None if points is None else Region(None, _punctured(split(points, {",", ";"})), False)
    if items == [r"\mathbb", "R"]:
        return Region(None, (Piece(None, None, (False, False)),), False)
    return _interval(items) or _inequality(items)


def _bare(items: Tokens) -> Tokens:
    """What stands in no bracket."""
    found, depth = [], 0
    for item in items:
        depth += (item in ("(", "[", "{", r"\{")) - (item in (")", "]", "}", r"\}"))
        if depth == 0:
            found.append(item)
    return found


def _together(regions: list[Region | None], *, commas: bool) -> Region | None:
    """A union; a comma is one between inequalities alone (between brackets it makes a list of points)."""
    found = [each for each in regions if each is not None]
    if len(found) < len(regions) or (commas and any(each.plain for each in found)):
        return None
    names = [each.name for each in found if each.name is not None]
    if any(name != names[0] for name in names):
        return None
    return Region(
        names[0] if names else None,
        tuple(piece for each in found for piece in each.pieces),
        all(each.plain for each in found),
    )


def _built(items: Tokens) -> Region | None:
    """{x | x > 2}"""
    for bar in _BAR:
        parts = split(items, {bar})
        if len(parts) == 2 and _is_variable(split(parts[0], {r"\in"})[0]):
            inside = region(parts[1])
            return inside if inside is not None and inside.name == split(parts[0], {r"\in"})[0] else None
    return None


def _punctured(points: list[Tokens]) -> tuple[Piece, ...]:
    ends: list[Tokens | None] = [None, *points, None]
    return tuple(Piece(low, high, (False, False)) for low, high in pairwise(ends))


def _interval(items: Tokens) -> Region | None:
    """(a, b], also with brackets turned outwards."""
    if len(items) < 5 or items[0] not in ("(", "[", "]") or items[-1] not in (")", "]", "["):
        return None
    parts = split(items[1:-1], {",", ";"})
    if len(parts) != 2 or not all(parts) or not balanced(items[1:-1]):
        return None
    closed = (items[0] == "[", items[-1] == "]")
    outwards = items[0] == "]" or items[-1] == "["
    return Region(None, (_piece(parts[0], parts[1], closed),), not outwards)


def _piece(low: Tokens | None, high: Tokens | None, closed: tuple[bool, bool]) -> Piece:
    ends = [None if end in _INFINITE else end for end in (low, high)]
    return Piece(ends[0], ends[1], (closed[0] and ends[0] is not None, closed[1] and ends[1] is not None))


def _inequality(items: Tokens) -> Region | None:
    """x < b, a < x <= b, x != a; the variable is what stands alone as a letter."""
    signs = [item for item in _bare(items) if item in {*_LESS, *_MORE, r"\ne"}]
    parts = split(items, {*_LESS, *_MORE, r"\ne"})
    if not signs or len(parts) > 3 or not all(parts):
        return None
    if signs == [r"\ne"] and _is_variable(parts[0]):
        return Region(parts[0], _punctured([parts[1]]), False)
    if len(parts) == 2 and signs[0] != r"\ne":
        variable = 0 if _is_variable(parts[0]) else 1
        if not _is_variable(parts[variable]) or _is_variable(parts[1 - variable]):
            return None
        below = (signs[0] in _LESS) == (variable == 0)  # the variable is the smaller side
        end, closed = parts[1 - variable], {**_LESS, **_MORE}[signs[0]]
        piece = _piece(None, end, (False, closed)) if below else _piece(end, None, (closed, False))
        return Region(parts[variable], (piece,), False)
    if len(parts) == 3 and _is_variable(parts[1]) and not any(map(_is_variable, parts[::2])):
        for table in (_LESS, _MORE):
            if signs[0] in table and signs[1] in table:
                low, high = (parts[0], parts[2]) if table is _LESS else (parts[2], parts[0])
                first, second = (table[sign] for sign in (signs if table is _LESS else signs[::-1]))
                return Region(parts[1], (_piece(low, high, (first, second)),), False)
    return None


def _is_variable(items: Tokens) -> bool:
    return (bool(items) and len(items[0]) == 1 and items[0].isalpha() and (len(items) == 1 or items[1] == "_")) or (
        len(items) == 1 and items[0] in (r"\theta", r"\alpha", r"\beta", r"\lambda", r"\mu", r"\phi", r"\omega")
    )
