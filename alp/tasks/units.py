"""What stands behind a number: a unit, counted things, or words that say another number.

Only what is known as a unit, or reads as counted things (a plural, with one or two adjectives), may be left out by one
of two answers. Anything else behind a number is part of the answer.
"""

from __future__ import annotations

import re

from alp.tasks.latex import radians
from alp.tasks.lexicon import (
    IRREGULAR,
    NO_ADJECTIVES,
    NO_PLURALS,
    POWERS,
    SPEEDS,
    UNITS,
)
from alp.tasks.notation import Tokens, balanced, is_text, word

Unit = dict[str, int]
_MOST_WORDS = 8
_PER = ("per", "Per", "/", "a", "an", "every", "each")


def measured(items: Tokens) -> tuple[Tokens, Tokens]:
    """Value and what stands behind it; nothing behind it where that is no word, degree or currency."""
    if items[:1] == [r"\$"]:
        return items[1:], [r"\text{dollars}"]
    if items[:2] == ["-", r"\$"]:
        return ["-", *items[2:]], [r"\text{dollars}"]
    if items[-1:] == ["°"] and r"\pi" in radians(items) and r"\pi" not in items:
        return items, []  # a sine's own degrees
    start = len(items)
    while start > 0 and (_is_unit_part(items[start - 1]) or _raised(items, start - 1)):
        start -= 1
    while start < len(items) and not (is_text(items[start]) or items[start] in ("°", r"\$")):
        start += 1
    if start == 0 or start == len(items) or items[start - 1] in ("_", "^", "=", "+", "-", "*", "/", ",", ";"):
        return items, []
    if not balanced(items[:start]):
        return items, []
    return items[:start], items[start:]


def _is_unit_part(item: str) -> bool:
    return is_text(item) or item in ("/", "*", "^", "-", "°", r"\$", "{", "}", ".", r"\mu")


def _raised(items: Tokens, place: int) -> bool:
    """A digit in an exponent of a unit."""
    return place > 0 and items[place].isdigit() and items[place - 1] in ("^", "-")


def read(items: Tokens) -> Unit | None:
    """Powers of base units of what stands behind a number (``miles per hour`` and ``mi/h`` are one); None: no unit."""
    if len(items) > 4 * _MOST_WORDS:
        return None
    found: Unit = {}
    above, group, place = 1, list[tuple[str, int]](), 0
    groups: list[tuple[int, list[tuple[str, int]]]] = [(above, group)]
    while place < len(items):
        item, place = items[place], place + 1
        name = word(item) if is_text(item) else {"°": "degrees", r"\$": "dollars"}.get(item, item)
        if name in _PER:
            group = []
            groups.append((-1, group))
        elif name in ("*", "^", "-", "{", "}", ".") or name.isdigit():
            if name in ("*", "{", "}", ".") or not group:
                continue
            exponent, place = _exponent(items, place - 1)
            if exponent is None:
                return None
            group[-1] = (group[-1][0], exponent)
        else:
            group.append((name, 1))
    for sign, group in groups:
        part = _group(group, below=sign < 0)
        if part is None:
            return None
        for base, exponent in part.items():
            found[base] = found.get(base, 0) + sign * exponent
    return {base: exponent for base, exponent in found.items() if exponent and base}


def _exponent(items: Tokens, place: int) -> tuple[int | None, int]:
    """The number behind a ``^`` and the place after it."""
    found = re.match(r"\^\{?(-?\d)\}?", "".join(items[place : place + 5]))
    if not found:
        return None, place + 1
    width, text = 0, ""
    while len(text) < found.end():
        text, width = text + items[place + width], width + 1
    return int(found[1]), place + width


def _group(words: list[tuple[str, int]], *, below: bool) -> Unit | None:
    """Units multiplied with each other, or one kind of counted things."""
    if not words:
        return None
    found: Unit = {}
    power = 1
    for name, exponent in words:
        low = name.lower()
        if low in POWERS:
            power = POWERS[low]
            continue
        if low in ("squared", "cubed") and found:
            found[next(reversed(found))] *= 2 if low == "squared" else 3
            continue
        parts = SPEEDS.get(low)
        if parts is None:
            short = UNITS.get(name, UNITS.get(low) if len(name) > 1 else None)
            if short is None:
                return _things([each.lower() for each, _ in words], below=below)
            parts = {short: 1}
        for base, times in parts.items():
            found[base] = found.get(base, 0) + times * exponent * power
        power = 1
    return found


def _things(words: list[str], *, below: bool) -> Unit | None:
    """``red marbles`` as a unit of its own; None for words that name nothing countable."""
    last = words[-1]
    plural = last in IRREGULAR or (bool(re.fullmatch(r"[a-z]{2,}[^su]s", last)) and last not in NO_PLURALS)
    named = plural or (below and last.isalpha() and len(last) > 2)
    if not named or len(words) > 3 or any(each in NO_ADJECTIVES or not each.isalpha() for each in words):
        return None
    return {last.removesuffix("s"): 1}


def alike(one: Tokens, other: Tokens) -> bool | None:
    """Whether two units are one; where neither is known, whether they are the same words; None: one of them only."""
    left, right = read(one), read(other)
    if left is None and right is None:
        return [word(item).lower() for item in one] == [word(item).lower() for item in other]
    if left is None or right is None:
        return None
    return left == right or not left or not right
