"""What an answer is made of: a list, a tuple, a matrix, a name, a lettered choice, words; from its tokens alone."""

from __future__ import annotations

import re
from itertools import pairwise

from alp.tasks.lexicon import FUNCTIONS
from alp.tasks.notation import BESIDE, ECHO, Tokens, balanced, closing, is_text, split, word

# What no formula ends with.
_BEGINNINGS = {*"+-*/^_=<>", r"\frac", r"\sqrt", r"\sin", r"\cos", r"\tan", r"\ln", r"\log"}
_SHORT = re.compile(  # commands of at most three letters; any other is a longer one that breaks off
    r"pi|mu|nu|xi|ln|le|ge|ne|in|ni|to|pm|mp|ll|gg|Re|Im|Pi|Xi|wp|cup|cap|sin|cos|tan|cot|sec|csc|log|exp|det|dim|gcd|lcm"
    r"|max|min|sup|inf|lim|arg|deg|ker|int|sum|phi|psi|rho|tau|eta|chi|Phi|Psi|dot|hat|bar|vec|mid|sim|end|ell|mod|div"
)


def _is_cut(item: str) -> bool:
    """A command of which only the first letters are there."""
    name = item[1:]
    return item[0] == "\\" and name.isalpha() and len(name) <= 3 and not _SHORT.fullmatch(name)


def choice(items: Tokens) -> tuple[str, Tokens] | None:
    """The letter of a lettered choice, and its text: (B) 5, B. 5, B) 5."""
    if items[0] == "{" and 0 < (end := closing(items, 0)) < len(items) - 1:
        items = [*items[1:end], *items[end + 1 :]]
    if len(items) > 3 and items[0] == "(" and items[2] == ")":
        letter, rest = single_letter(items[1:2]), items[3:]
    elif len(items) > 2 and items[1] in (".", ")", ":"):
        letter, rest = single_letter(items[:1]), items[2:]
    else:
        return None
    if letter is None or letter not in "ABCDEFGHIJ" or rest[0] in ("+", "-", "*", "/", "^", "=", "<", ">", "(", "!"):
        return None
    return letter, rest


def single_letter(items: Tokens) -> str | None:
    """The one letter that an answer is."""
    items = bare(items)
    if len(items) != 1:
        return None
    name = word(items[0]) if is_text(items[0]) else items[0]
    return name if len(name) == 1 and name.isalpha() else None


def is_words(items: Tokens) -> bool:
    """Words, and nothing that could be counted or computed."""
    return any(map(is_text, items)) and all(
        is_text(item) or item in (",", "-", "'", ".", "^", r"\prime", "(", ")", "{", "}", ":", "/") for item in items
    )


def spoken(items: Tokens) -> str:
    """Letters, digits and signs, whatever their case: Right-angled is right angled."""
    return "".join(
        (word(item) if is_text(item) else item) for item in items if item not in ("-", "'", ".", "(", ")", "{", "}")
    ).casefold()


def is_name(items: Tokens) -> bool:
    """y, f(x), f^{-1}(x), m_{max}, AB, (x, y): what an answer may be called."""
    if (
        not items
        or ECHO in items
        or any(item[1:] in FUNCTIONS for item in items if item[0] == "\\")
        or len(items) > 12
        or any(item in "+*/<>!=%|" or item in (r"\frac", r"\sqrt", r"\pi", r"\cdot") for item in items)
    ):
        return False
    text = "".join(items)
    inverse = text.replace("^{-1}", "")
    index = re.sub(r"_(?:\{[^{}]*\}|\d+|\w|\\[a-zA-Z]+|\\text\{\w+\})", "", inverse)
    if re.search(r"[\d^@.\-]", index):
        return False
    return bool(re.search(r"[a-zA-Z]", index)) and index not in ("e", "i", r"\infty")


def bare(items: Tokens) -> Tokens:
    """Without braces or round brackets around the whole, unless they hold a list; without a plus in front."""
    while len(items) > 1 and items[0] in ("{", "(") and closing(items, 0) == len(items) - 1 and items[-1] in ("}", ")"):
        if items[0] == "(" and len(split(items[1:-1], {",", ";"})) > 1:
            break
        items = items[1:-1]
    while items[:1] in (["+"], [r"\approx"], ["="], [":"]):
        items = items[1:]
    while items[-1:] == [r"\\"]:
        items = items[:-1]
    return items


def named(items: Tokens) -> list[Tokens] | None:
    """The values of x = 4, y = -1 by the order of their names; None where the answer is no such list."""
    parts = [split(part, {"="}) for part in split(items, {",", ";"})]
    if len(parts) < 2 or not all(len(part) == 2 and single_letter(part[0]) and part[1] for part in parts):
        return None
    by_name = {str(single_letter(part[0])): part[1] for part in parts}
    return [by_name[name] for name in sorted(by_name)] if len(by_name) == len(parts) else None


def listed_name(items: Tokens) -> Tokens | None:
    """The name of a list's elements, where it stands before the first alone: x = 1, 2."""
    parts = [split(part, {"="}) for part in split(items, {",", ";"}) if part]
    named = len(parts) > 1 and len(parts[0]) == 2 and is_name(parts[0][0]) and all(len(part) == 1 for part in parts[1:])
    return parts[0][0] if named else None


def elements(items: Tokens) -> list[Tokens]:
    """Elements of a set or of a bare list; ± is two of them; a name before the first is the name of all."""
    braced = items[:1] == [r"\{"] and items[-1:] == [r"\}"] and closing(items, 0) == len(items) - 1
    parts = [part for part in split(items[1:-1] if braced else items, {",", ";"}) if part]
    if listed_name(items):
        parts = [split(parts[0], {"="})[1], *parts[1:]]
    found: list[Tokens] = []
    for element in parts:
        signs = [place for place, item in enumerate(element) if item == r"\pm"]
        if len(signs) == 1:
            found += [[*element[: signs[0]], sign, *element[signs[0] + 1 :]] for sign in "+-"]
        else:
            found.append(element)
    return found


def enclosed(items: Tokens) -> list[Tokens] | None:
    """Parts of a tuple or an interval, or None."""
    if items[0] not in ("(", "[") or items[-1] not in (")", "]") or closing(items, 0) != len(items) - 1:
        return None
    parts = split(items[1:-1], {",", ";"})
    return parts if len(parts) > 1 else None


def cells(items: Tokens) -> list[list[Tokens]] | None:
    """Rows of cells of a matrix, or None."""
    if items[0] != r"\begin" or closing(items, 0) != len(items) - 1:
        return None
    rows = [split(row, {"&"}) for row in split(items[1:-1], {"\\\\"})]
    return [row for row in rows if row != [[]]]


def is_formula(items: Tokens) -> bool:
    """Whether algebra may be asked: no words, no numeral in another base, no two numbers side by side, and brackets
    that close."""
    if not items or items[-1] in _BEGINNINGS or any(_is_cut(item) for item in items):
        return False
    if any(pair == ("{", "}") for pair in pairwise(items)):  # an argument that is missing
        return False
    if any(one[0].isdigit() and other == "_" for one, other in pairwise(items)):  # an index that is no base
        return False
    return balanced(items) and not any(
        is_text(item) or "@" in item or item in (BESIDE, r"\$", r"\cdots") or item.startswith(r"\unending")
        for item in items
    )
