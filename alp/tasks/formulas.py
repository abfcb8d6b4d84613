"""A small grammar of formulas over tokens whose every reading is the only one possible.

What could be read in two ways (a function's name before a bracket, ``1/2x``, ``\\sin x (y+1)``, numbers side by side)
is not read at all: algebra has to tell (:mod:`alp.tasks.algebra`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from alp.tasks.lexicon import GREEK, TRIGONOMETRIC
from alp.tasks.notation import Tokens, closing

Node = tuple[Any, ...]  # (operation, operands…)
FUNCTIONS = {
    *TRIGONOMETRIC,
    *(rf"\{name}" for name in ("sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "ln", "log")),
}
_LONGEST = 400  # tokens
_ORNAMENTS = {rf"\{name}" for name in ("dot", "ddot", "hat", "vec", "tilde", "bar", "overline", "widehat")}
_FUNCTION_NAMES = set("fghFGHP")  # before a bracket hardly a factor
_END = {"+", "-", ")", "]", "}", "|", ","}


class UnreadError(Exception):
    """The formula has no reading here, or two; or no value."""


def formula(items: Tokens) -> Node:
    """The formula as a tree. Raises UnreadError."""
    node = _tree(tuple(items))
    if node is None:
        raise UnreadError
    return node


@lru_cache(maxsize=16384)  # a gold answer is compared with many responses
def _tree(items: tuple[str, ...]) -> Node | None:
    if len(items) > _LONGEST:
        return None
    try:
        reader = _Reader(list(items))
        node = reader.sum()
        return node if reader.done() else None
    except (UnreadError, RecursionError):
        return None


@lru_cache(maxsize=16384)
def names(node: Node) -> frozenset[str]:
    """Its variables."""
    if node[0] == "name":
        return frozenset([node[1]])
    return frozenset().union(*(names(part) for part in node[1:] if isinstance(part, tuple)))


class _Reader:
    """Recursive descent over tokens."""

    def __init__(self, items: Tokens) -> None:
        self._items, self._place = items, 0

    def done(self) -> bool:
        """Whether everything was read."""
        return self._place == len(self._items)

    def _next(self) -> str:
        return self._items[self._place] if self._place < len(self._items) else ""

    def _take(self) -> str:
        self._place += 1
        return self._items[self._place - 1]

    def sum(self) -> Node:
        """Terms with signs between."""
        terms: list[Node] = []
        sign = 1
        if self._next() in ("+", "-"):
            sign = -1 if self._take() == "-" else 1
        while True:
            term = self._product()
            terms.append(("neg", term) if sign < 0 else term)
            if self._next() not in ("+", "-"):
                return ("sum", *terms) if len(terms) > 1 else terms[0]
            sign = -1 if self._take() == "-" else 1

    def _product(self) -> Node:
        factors = [self._power()]
        divided = False
        while self._place < len(self._items) and self._next() not in _END:
            sign = self._next()
            if sign in ("*", "/"):
                self._take()
                divided = divided or sign == "/"
                negative = self._next() == "-"
                if self._next() in ("+", "-"):
                    self._take()
                factor = self._power()
                factor = ("neg", factor) if negative else factor
                factors.append(("inverse", factor) if sign == "/" else factor)
                continue
            if divided or sign == r"\ ":  # 1/2x
                raise UnreadError
            before = self._items[self._place - 1]
            if sign == "(" and before in _FUNCTION_NAMES:
                raise UnreadError
            if (sign == r"\frac" and before[0].isdigit()) or sign[0].isdigit():  # 2 3/2; 2 3, x2
                raise UnreadError
            factors.append(self._power())
        return ("product", *factors) if len(factors) > 1 else factors[0]

    def _power(self) -> Node:
        base = self._postfix(self._atom())
        if self._next() == "^":
            self._take()
            if self._next() in ("", "°", r"\prime", "*"):
                raise UnreadError
            exponent = self._group()
            if self._next() in ("^", "!"):
                raise UnreadError
            return ("power", base, exponent)
        return base

    def _postfix(self, node: Node) -> Node:
        while self._next() in ("!", "%"):
            node = ("factorial", node) if self._take() == "!" else ("product", node, ("number", Fraction(1, 100)))
        return node

    def _group(self) -> Node:
        """What stands in braces, or the next token alone."""
        if self._next() != "{":
            return self._atom()
        self._take()
        node = self.sum()
        if self._next() != "}":
            raise UnreadError
        self._take()
        return node

    def _atom(self) -> Node:
        item = self._next()
        if not item:
            raise UnreadError
        if item == "{":
            return self._group()
        if item in ("(", "[", "|"):
            return self._bracket(self._take())
        self._take()
        if (number := decimal(item)) is not None:
            return ("number", number)
        if item in (r"\pi", "e", "i"):
            return (item,)
        if (len(item) == 1 and item.isalpha()) or item[1:] in GREEK:
            return ("name", item + self._index())
        if item in _ORNAMENTS:
            return ("name", f"{item} {self._ornamented()}{self._index()}")
        if item in (r"\frac", r"\binom"):
            return ("fraction" if item == r"\frac" else "binomial", self._group(), self._group())
        if item == r"\sqrt":
            return self._root()
        if item in FUNCTIONS:
            return self._function(item)
        raise UnreadError

    def _bracket(self, opening: str) -> Node:
        node = self.sum()
        expected = {"(": ")", "[": "]", "|": "|"}[opening]
        if self._next() != expected:
            raise UnreadError
        self._take()
        return ("absolute", node) if opening == "|" else node

    def _index(self) -> str:
        if self._next() != "_":
            return ""
        start = self._place
        self._take()
        if self._next() == "{":
            self._place = closing(self._items, self._place) + 1
            if not self._place:
                raise UnreadError
        else:
            self._place += 1
        return "".join(self._items[start : self._place])

    def _ornamented(self) -> str:
        """The letter below a dot or an arrow."""
        letter = self._take() if self._next() else ""
        if not (len(letter) == 1 and letter.isalpha()) and letter[1:] not in GREEK:
            raise UnreadError
        return letter

    def _root(self) -> Node:
        if self._next() != "[":
            return ("root", self._group(), ("number", Fraction(2)))
        self._take()
        order = self.sum()
        if self._next() != "]":
            raise UnreadError
        self._take()
        return ("root", self._group(), order)

    def _function(self, name: str) -> Node:
        """A function of a bracket, or of what is multiplied behind it; anything else has two readings."""
        base: Node | None = None
        exponent: Node | None = None
        if self._next() == "_" and name == r"\log":
            self._take()
            base = self._group()
        if self._next() == "^":
            self._take()
            if self._next() in ("-", "{") and "-" in self._items[self._place : self._place + 2]:
                raise UnreadError  # an inverse function, or one over it
            exponent = self._group()
        if self._next() in ("(", "{", "[", "|"):
            argument = self._bracket(self._take()) if self._next() != "{" else self._group()
            if self._next() not in ("", *_END, "*", "/", "}"):
                raise UnreadError
        else:
            argument = self._bare_argument()
        node: Node = ("call", name, argument) if base is None else ("logarithm", argument, base)
        return node if exponent is None else ("power", node, exponent)

    def _bare_argument(self) -> Node:
        factors = [self._power()]
        while self._next() and self._next() not in (*_END, "*", "/") and self._next() not in FUNCTIONS:
            if self._next() in ("(", "[", "{") or self._next()[0].isdigit():
                raise UnreadError
            factors.append(self._power())
        return ("product", *factors)


def decimal(item: str) -> Fraction | None:
    """A decimal, also in scientific notation or with repeating digits."""
    if found := re.fullmatch(r"(\d*)\.(\d*)\((\d+)\)", item, re.ASCII):
        return _repeating(*found.groups())
    if len(item) > 60 or not re.fullmatch(r"(\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?", item, re.ASCII):
        return None
    return Fraction(item.rstrip("."))


def _repeating(whole: str, fixed: str, block: str) -> Fraction:
    """The value of ``whole.fixed`` with ``block`` repeated for ever."""
    scale = 10 ** len(fixed)
    return (
        Fraction(int(whole or "0"))
        + Fraction(int(fixed or "0"), scale)
        + Fraction(int(block), (10 ** len(block) - 1) * scale)
    )
