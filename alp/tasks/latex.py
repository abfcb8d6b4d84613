"""Tokens as LaTeX that math-verify's parser reads."""

from __future__ import annotations

from alp.tasks.formulas import decimal
from alp.tasks.lexicon import TRIGONOMETRIC
from alp.tasks.notation import Tokens, closing, is_opener

# E is Euler's number to the parser and a variable to everybody else; e is a variable with an index; it knows no sun.
_LATEX = {
    "E": r"\Upsilon",
    r"\odot": r"\Xi",
    "*": r"\cdot",
    "%": r"\%",
    r"\begin": r"\begin{pmatrix}",
    r"\end": r"\end{pmatrix}",
}
_STOPS = {"+", "-", "=", ",", ";", "<", ">", ")", "]", "}", "/"}


def latex(items: Tokens) -> str:
    """Arguments of powers and indices in braces, a sign where a number multiplies a bracket, brackets around what a
    sign behind a product begins and around a mixed number."""
    items = _signed(explicit(items))
    found: Tokens = []
    for place, item in enumerate(items):
        before = items[place - 1] if place else ""
        if before in ("^", "_") and item != "{":
            found.append(f"{{{_LATEX.get(item, item)}}}")
            continue
        if item == "(" and before and before[0] in "0123456789":
            found.append(r"\cdot")
        if "(" in item and len(item) > 1 and (value := decimal(item)) is not None:
            found.append(rf"\frac{{{value.numerator}}}{{{value.denominator}}}")
            continue
        found.append(r"\upsilon" if item == "e" and items[place + 1 : place + 2] == ["_"] else _LATEX.get(item, item))
    return " ".join(found).replace(" _ ", "_").replace("_ {", "_{")  # the parser knows indices without spaces alone


def explicit(items: Tokens) -> Tokens:
    """Degrees inside functions as radians, and mixed numbers as sums: what the letters alone do not say."""
    return _mixed(radians(items))


def radians(items: Tokens) -> Tokens:
    """Degrees inside a sine become radians; elsewhere the sign is a unit, and goes."""
    found: Tokens = []
    inside = 0  # brackets open since a function began; None of them: it takes what stands behind it
    running = False
    for item in items:
        if item in TRIGONOMETRIC:
            running, inside = True, 0
        elif running:
            inside += (item in ("(", "{", "[")) - (item in (")", "}", "]"))
            if inside < 0 or (inside == 0 and item in _STOPS - {")", "]", "}"}):
                running = False
        if item != "°":
            found.append(item)
        elif running and found:
            start = _operand(found)
            found[start:] = ["(", r"\frac", "{", *found[start:], r"\pi", "}", "{", "180", "}", ")"]
    return found


def _operand(items: Tokens) -> int:
    """Where the operand that ends here begins: a bracket or one token."""
    depth = 0
    for place in range(len(items) - 1, -1, -1):
        depth += (items[place] in (")", "}", "]")) - is_opener(items[place])
        if depth == 0:
            return place
    return 0


def _mixed(items: Tokens) -> Tokens:
    """2 1/3 in a formula is (2 + 1/3)."""
    found: Tokens = []
    place = 0
    while place < len(items):
        item = items[place]
        above = closing(items, place + 2) if items[place + 1 : place + 3] == [r"\frac", "{"] else -1
        parts = items[place + 3 : place + 4] + items[place + 6 : place + 7]
        if item.isdigit() and above == place + 4 and items[place + 7 : place + 8] == ["}"] and _proper(parts):
            found += ["(", item, "+", *items[place + 1 : place + 8], ")"]
            place += 8
        else:
            found.append(item)
            place += 1
    return found


def _proper(parts: Tokens) -> bool:
    return (
        len(parts) == 2
        and all(part.isdigit() and len(part) < 8 for part in parts)
        and 0 < int(parts[0]) < int(parts[1])
    )


def _signed(items: Tokens) -> Tokens:
    """A sign behind a product sign, and what it signs, in brackets."""
    found: Tokens = []
    place = 0
    while place < len(items):
        if items[place] == "*" and items[place + 1 : place + 2] in (["-"], ["+"]) and place + 2 < len(items):
            end = _term(items, place + 2)
            found += ["*", "(", items[place + 1], *_signed(items[place + 2 : end]), ")"]
            place = end
        else:
            found.append(items[place])
            place += 1
    return found


def _term(items: Tokens, start: int) -> int:
    """The place behind the factor that begins at ``start``, with its power and index."""
    place, item = start, items[start]
    arguments = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1}.get(item, 0)
    place += 1 if not is_opener(item) else 0
    for _ in range(arguments or int(is_opener(item))):
        end = closing(items, place) if place < len(items) else -1
        if end < 0:
            return len(items)
        place = end + 1
    while items[place : place + 1] in (["^"], ["_"]):
        place += 1
        end = closing(items, place) if items[place : place + 1] == ["{"] else place
        if end < 0:
            return len(items)
        place = end + 1
    return max(place, start + 1)
