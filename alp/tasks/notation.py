"""Mathematical answers as tokens: the many ways to write one thing in LaTeX, or as a program, become one.

``tokens("\\left( \\dfrac12,\\, 3 \\right)") == tokens("(\\frac{1}{2}, 3)")``. Everything here is linear in the text and
decides nothing about mathematics; :mod:`alp.tasks.equality` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Tokens = list[str]

_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "’": "'",
        "′": "'",
        "$": " ",
        "\u00a0": " ",
        "~": " ",
        "²": "^{2}",
        "³": "^{3}",
        "½": r"\frac{1}{2}",
        "°": r"^\circ ",
    }
    | {
        char: rf"\{name} "
        for char, name in zip(
            "×·⋅π∞√≤≥≠∪∩∈±θλ",
            [
                "times",
                "cdot",
                "cdot",
                "pi",
                "infty",
                "sqrt",
                "le",
                "ge",
                "ne",
                "cup",
                "cap",
                "in",
                "pm",
                "theta",
                "lambda",
            ],
            strict=True,
        )
    }
)
_FUNCTIONS = {
    name: name
    for name in ["arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "exp", "log", "ln", "sqrt"]
}
_FUNCTIONS |= {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_FUNCTION = "|".join(sorted(_FUNCTIONS, key=len, reverse=True))
_UNITS = "cm|mm|km|kg|mg|nm|erg|ergs|ft|hr|hrs|min|sec|mol|eV|keV|MeV|GeV|Hz|kHz|MHz|Pa|kPa|mph|Mpc|kpc|pc|ly|AU|rad"

# In this order. Each pattern is a plain sequence, so no text makes one slow.
_REWRITES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\\$"), " "),
    (re.compile(r",\\!\s*|\{,\}"), ","),  # a thousands separator, not a list
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?"), " "),
    (
        re.compile(
            r"\\(?:displaystyle|textstyle|limits|quad|qquad|hfill|enspace|thinspace)(?![a-zA-Z])|(?<!\\)\\[,;:! ]"
        ),
        " ",
    ),
    (
        re.compile(
            r"\\(?:mathrm|textrm|textnormal|mbox|textbf|textit|mathbf|boldsymbol|operatorname|textup)\*?\s*(?=\{)"
        ),
        r"\\text",
    ),
    (re.compile(r"\\text\s*\{\s*\}"), " "),
    (re.compile(r"\\begin\s*\{[pb]?matrix\}"), r"\\begin "),
    (re.compile(r"\\end\s*\{[pb]?matrix\}"), r"\\end "),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])"), " "),
    (re.compile(r"\\text\s*\{\s*(?:degrees?|dollars?)\s*\}"), " "),
    (re.compile(r"(?<![\\a-zA-Z])(?:np|numpy|math|sp|sympy)\.(?=[a-z])"), ""),
    (re.compile(rf"(?<![\\a-zA-Z])({_FUNCTION})(?=\s*[({{])"), lambda found: "\\" + _FUNCTIONS[found[1]]),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<=[\s\d})])(?:and|or)(?=[\s\d\\({-])"), ","),
    (re.compile(r"(?<=[\d}])\s+(" + _UNITS + r")(?![a-zA-Z])"), r"\\text{\1}"),
    (re.compile(r"\*\*"), "^"),
]
_SYNONYMS = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\leq": r"\le",
    r"\geq": r"\ge",
    r"\leqslant": r"\le",
}
_SYNONYMS |= {
    r"\geqslant": r"\ge",
    r"\neq": r"\ne",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
}
_SYNONYMS |= {
    r"\*": "*",
    r"\cdot": "*",
    r"\times": "*",
    r"\%": "%",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\vert": "|",
    r"\to": r"\rightarrow",
}
_SYNONYMS |= {
    r"\langle": "(",
    r"\rangle": ")",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\colon": ":",
    r"\approx": "=",
    r"\varnothing": r"\emptyset",
}
_SCIENTIFIC = r"\d+\.\d*[eE][+-]?\d+|\d+[eE]\d+|\.\d+[eE][+-]?\d+"
_TOKEN = (
    r"\\text\s*\{[^{}]*\}|\\[a-zA-Z]+|\\.|(?:@NUMBER@)(?![a-zA-Z]*\^)"
    r"|\d+\.?\d*|\.\d+|(?<![\\a-zA-Z])[a-zA-Z]{4,}|[a-zA-Z]|\S"
)
_TOKENS = {  # 3e-2 is a number among physicists and 3e - 2 among mathematicians
    False: re.compile(_TOKEN.replace("@NUMBER@", _SCIENTIFIC), re.ASCII | re.DOTALL),
    True: re.compile(_TOKEN.replace("@NUMBER@", _SCIENTIFIC + r"|\d+[eE][+-]\d+"), re.ASCII | re.DOTALL),
}
_CLOSING = {"{": "}", "(": ")", "[": "]", r"\{": r"\}"}
OPENERS, CLOSERS = {"(", "[", "{", r"\{", r"\begin"}, {")", "]", "}", r"\}", r"\end"}


def tokens(text: str, *, program_numbers: bool = False) -> Tokens:
    """Tokens of an answer; ``program_numbers`` reads 3e-2 as 0.03."""
    text = text.translate(_CHARACTERS).strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".,;:").strip() if not re.fullmatch(r"[+-]?\d+\.", text.strip()) else text
    found = [_plain(item) for item in _TOKENS[program_numbers].findall(text)]
    return _implicit_products(_braced(_primes(found)))


def _plain(token: str) -> str:
    """One spelling of a token."""
    if token.startswith(r"\text"):
        inside = " ".join(token[token.index("{") + 1 : -1].split()) if "{" in token else ""
        return (
            rf"\text{{{inside}}}"
            if inside and not re.fullmatch(r"[-+]?[\d.,]+", inside)
            else inside.replace(",", "") or "{}"
        )
    if re.fullmatch(r"\d+\.?\d*|\.\d+", token, re.ASCII):
        whole, point, rest = token.partition(".")
        return (whole.lstrip("0") or "0") + (point + rest if rest else "")
    if len(token) >= 4 and token.isalpha():
        return rf"\text{{{token}}}"
    return _SYNONYMS.get(token, token)


def _primes(items: Tokens) -> Tokens:
    """f' and f^{\\prime} are one."""
    found: Tokens = []
    for item in items:
        found += ["^", r"\prime"] if item == "'" else [item]
    return found


def closing(items: Tokens, start: int) -> int:
    """Place of the bracket that closes the one at ``start`` (any closing bracket: intervals mix them), or -1."""
    depth = 0
    for place in range(start, len(items)):
        depth += (items[place] in OPENERS) - (items[place] in CLOSERS)
        if depth == 0:
            return place
    return -1


def _argument(items: Tokens, start: int, *, digits: bool) -> tuple[Tokens, int]:
    """What a command at ``start - 1`` takes, without its braces, and the place after it; ``digits``: of bare numbers
    the first digit."""
    if start >= len(items):
        return [], start
    first = items[start]
    if first == "{" and (end := closing(items, start)) > 0:
        return items[start + 1 : end], end + 1
    if digits and first.isdigit() and len(first) > 1:
        items[start] = first[1:]
        return [first[0]], start
    return [first], start + 1


def _braced(items: Tokens) -> Tokens:
    """Arguments of fractions, roots and powers in braces when, and only when, they need them; groups of one token
    bare."""
    items, found, place = list(items), Tokens(), 0
    while place < len(items):
        token, place = items[place], place + 1
        if token in (r"\frac", r"\binom"):
            above, place = _argument(items, place, digits=True)
            below, place = _argument(items, place, digits=True)
            found += [token, "{", *_braced(above), "}", "{", *_braced(below), "}"]
        elif token in (r"\sqrt", r"\exp", "^", "_"):
            found += [{r"\exp": "e"}.get(token, token)] + (["^"] if token == r"\exp" else [])
            if token == r"\sqrt" and items[place : place + 1] == ["["] and (end := closing(items, place)) > 0:
                found, place = [*found, "[", *_braced(items[place + 1 : end]), "]"], end + 1
            if items[place : place + 1] == ["("] and (end := closing(items, place)) > 0:
                inside, place = items[place + 1 : end], end + 1
            elif token in "^_" and items[place : place + 1] in (["-"], ["+"]) and place + 1 < len(items):
                inside, place = items[place : place + 2], place + 2  # x^-1, as people write it
            else:
                inside, place = _argument(items, place, digits=False)
            inside = _braced(inside)
            found += inside if len(inside) == 1 and token != r"\sqrt" else ["{", *inside, "}"]
        elif token == "{" and (end := closing(items, place - 1)) == place + 1:
            found, place = [*found, items[place]], end + 1
        else:
            found.append(token)
    return found


def _implicit_products(items: Tokens) -> Tokens:
    """A product sign stays between two numbers alone."""
    found: Tokens = []
    for place, token in enumerate(items):
        if token == "*" and found and place + 1 < len(items):
            numbers = found[-1][0] in "0123456789.})" and items[place + 1][0] in "0123456789."
            if not numbers:
                continue
        found.append(token)
    return found


def latex(items: Tokens) -> str:
    """Tokens as LaTeX that a parser reads: arguments of powers and indices in braces, a sign where a number multiplies
    a bracket."""
    found: Tokens = []
    for place, item in enumerate(items):
        before = items[place - 1] if place else ""
        if before in ("^", "_") and item != "{":
            found.append(f"{{{_LATEX.get(item, item)}}}")
            continue
        if item == "(" and before and before[0] in "0123456789":
            found.append(r"\cdot")
        found.append(r"\upsilon" if item == "e" and items[place + 1 : place + 2] == ["_"] else _LATEX.get(item, item))
    return " ".join(found).replace(" _ ", "_").replace("_ {", "_{")  # the parser knows indices without spaces alone


# E is Euler's number to the parser and a variable to everybody else; e is a variable with an index; it knows no sun.
_LATEX = {
    "E": r"\Upsilon",
    r"\odot": r"\Xi",
    "*": r"\cdot",
    "%": r"\%",
    r"\begin": r"\begin{pmatrix}",
    r"\end": r"\end{pmatrix}",
}


def split(items: Tokens, separators: set[str]) -> list[Tokens]:
    """Parts between separators outside every bracket; one part when there is none."""
    parts: list[Tokens] = [[]]
    depth = 0
    for item in items:
        depth += (item in OPENERS) - (item in CLOSERS)
        if depth == 0 and item in separators:
            parts.append([])
        else:
            parts[-1].append(item)
    return parts
