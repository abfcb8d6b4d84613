"""Answers that are no answers: those that leave the work undone, or give the question back.

A grader that computes what an answer leaves open would do the policy's work: boxing the integral that was asked for
must earn nothing. So an operator that is still to be carried out counts only where the gold answer holds it too, and an
answer that is a formula of the question only where the gold answer is written with that formula.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from alp.tasks.lexicon import GREEK, OPERATOR_WORDS
from alp.tasks.notation import ECHO, OPENERS, Tokens, closing, is_text, split, tokens
from alp.tasks.values import differ

_SIGNS = {
    **dict.fromkeys((r"\int", r"\iint", r"\iiint", r"\oint"), "an integral"),
    **dict.fromkeys((r"\sum", r"\bigoplus"), "a sum"),
    **dict.fromkeys((r"\prod", r"\coprod"), "a product"),
    **dict.fromkeys((r"\lim", r"\limsup", r"\liminf"), "a limit"),
    **dict.fromkeys((r"\lfloor", r"\lceil", r"\floor", r"\ceil"), "rounding"),
    **dict.fromkeys((r"\bmod", r"\mod", r"\equiv"), "a remainder"),
    **dict.fromkeys((r"\det", r"\begindet", r"\beginvmatrix", r"\beginVmatrix"), "a determinant"),
    **dict.fromkeys((r"\partial", r"\nabla", r"\prime"), "a derivative"),
    **dict.fromkeys((r"\Re", r"\Im", r"\arg", r"\deg", r"\dim", r"\ker"), "a part of something"),
    **dict.fromkeys((r"\begincases", r"\beginarray", r"\beginaligned", r"\beginalign"), "a system"),
    r"\cdots": "an ellipsis",
}
_SIGNS |= {rf"\{name}": f"a {name}" for name in OPERATOR_WORDS if rf"\{name}" not in _SIGNS}
_RELATIONS = {"=", "<", ">", r"\le", r"\ge", r"\ne", r"\in", r"\approx", r"\equiv", ":", r"\rightarrow", r"\mapsto"}
_LISTS = {",", ";", r"\text{and}", r"\text{or}", r"\cup", r"\cap"}
_MATHS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PICTURE = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_ARITHMETIC = re.compile(r"[\d(][\d\s+\-*/^().!×÷·−]{0,300}[\d)!]", re.ASCII)
_LONGEST = 1500  # characters of a formula of the question
_NEUTRAL = {"(", ")", "{", "}"}


def undone(response: Tokens, gold: Tokens, prompt: str | None) -> bool:
    """Whether an answer leaves to the reader what the gold answer does not, or gives a formula of the question back."""
    if response == gold:
        return False
    said = [part for part in split(response, {"=", r"\approx"}) if part]  # an integral = 1 says 1
    if said and unfinished(said[-1]) - unfinished(gold):
        return True
    if prompt is None:
        return False
    formulas = question(prompt)
    return given(response, gold, formulas) or [ECHO] in _echoes(response, gold, formulas)


def ornaments(response: Tokens, gold: Tokens, prompt: str | None) -> list[Tokens]:
    """The answer with :data:`ECHO` in the place of a formula of the question, for each that stands in it and that the
    gold answer is not written with."""
    return [] if prompt is None or response == gold else _echoes(response, gold, question(prompt))


def unfinished(items: Tokens) -> set[str]:
    """What is still to be carried out in an answer."""
    found = {_SIGNS[item] for item in items if item in _SIGNS}
    if any("@" in item for item in items) and any(item in ("+", "-", "*", "/", "^") for item in items[1:]):
        found.add("arithmetic in another base")
    for place, item in enumerate(items[:-2]):
        if item == r"\frac" and _is_rate(items, place):
            found.add("a derivative")
    return found


def _is_rate(items: Tokens, place: int) -> bool:
    r"""\frac{d …}{d x}"""
    above = closing(items, place + 1)
    return above > 0 and items[place + 2] == "d" and items[above + 1 : above + 3] == ["{", "d"]


def given(items: Tokens, gold: Tokens, question: tuple[Tokens, ...]) -> bool:
    """Whether an answer holds a binomial coefficient or factorial of numbers that stands in the question and not in the
    gold answer."""
    for part in _counted(items):
        if not _stands_in(part, gold) and any(_stands_in(part, formula) for formula in question):
            return True
    return False


def _counted(items: Tokens) -> list[Tokens]:
    found = []
    for place, item in enumerate(items):
        if item == r"\binom" and (above := closing(items, place + 1)) > 0 and (end := closing(items, above + 1)) > 0:
            found.append(items[place : end + 1])
        elif item == "!" and place and items[place - 1].isdigit():
            found.append(items[place - 1 : place + 1])
    return found


@lru_cache(maxsize=8192)
def question(prompt: str) -> tuple[Tokens, ...]:
    """The formulas of a question, and the sides of its relations, as tokens."""
    prompt = _PICTURE.sub(" ", prompt)
    found = [next(filter(None, match.groups())) for match in _MATHS.finditer(prompt)]
    rest = _MATHS.sub(" ", prompt)
    found += [run for run in _ARITHMETIC.findall(rest) if re.search(r"[+\-*/^!×÷·−]", run)]
    parts: dict[tuple[str, ...], None] = {}
    for text in found:
        if len(text) > _LONGEST:
            continue
        whole = tokens(text)
        for listed in (whole, *split(whole, _LISTS)):
            sides = split(listed, _RELATIONS)
            for side in sides if _is_simple(sides[0]) else (listed, *sides):  # x = is a name, the rest is the formula
                bare = _stripped(side)
                if not _is_literal(bare):
                    parts.setdefault(tuple(bare))
    return tuple(list(part) for part in parts)


def _stripped(items: Tokens) -> Tokens:
    while items and (is_text(items[-1]) or items[-1] in (".", "?", ",", ";", ":", r"\\")):
        items = items[:-1]
    return _unwrapped(items)


def _unwrapped(items: Tokens) -> Tokens:
    while len(items) > 1 and items[0] in OPENERS - {"[", r"\{"} and closing(items, 0) == len(items) - 1:
        items = items[1:-1]
    return items


def _is_literal(items: Tokens) -> bool:
    """Whole numbers and decimals, names, words, and tuples of them: what may be an answer though the question says it.

    A fraction is a division, which a question may ask for.
    """
    if not items or all(is_text(item) for item in items):
        return True
    parts = split(_unwrapped(items) if items[0] != r"\{" else items[1:-1], {",", ";"})
    if items[0] in ("(", "[") and closing(items, 0) == len(items) - 1:
        parts = split(items[1:-1], {",", ";"})
    return all(_is_simple(part) for part in parts)


def _is_simple(items: Tokens) -> bool:
    items = items[1:] if items[:1] in (["-"], ["+"]) else items
    items = [item for item in items if not is_text(item) and item not in ("°", "%", r"\$")]
    if len(items) <= 1:
        return not items or not _repeats(items[0])
    text = "".join(items)
    name = re.fullmatch(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?(?:\(\\?[a-zA-Z](?:,[a-zA-Z])*\))?|[a-zA-Z]+", text)
    return bool(name) and len(items) < 8 and (items[0][0] != "\\" or items[0][1:] in GREEK)


def _repeats(item: str) -> bool:
    """A decimal with repeating digits, which a question may ask to be written as a fraction."""
    return item[0].isdigit() and "(" in item


def _stands_in(part: Tokens, items: Tokens) -> bool:
    return bool(_places(part, items))


def _places(part: Tokens, items: Tokens) -> list[int]:
    found: list[int] = []
    for place in range(len(items) - len(part) + 1):
        if items[place : place + len(part)] == part and (not found or place >= found[-1] + len(part)):
            found.append(place)
    return found


def _echoes(items: Tokens, gold: Tokens, formulas: tuple[Tokens, ...]) -> list[Tokens]:
    """The answer with each formula replaced; ``[ECHO]`` where it is one, also in another order."""
    found = []
    bag, gold_bag = _bag(items), _bag(gold)
    for part in formulas:
        part_bag = _bag(part)
        if part_bag == gold_bag or _stands_in(part, gold):
            continue
        if part_bag == bag and not differ(part, items):
            return [[ECHO]]
        if places := _places(part, items):
            replaced = list(items)
            for place in reversed(places):
                replaced[place : place + len(part)] = [ECHO]
            found.append(replaced)
    return found


def _bag(items: Tokens) -> Counter[str]:
    return Counter(item for item in items if item not in _NEUTRAL and item != "*")
