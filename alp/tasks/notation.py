"""Mathematical answers as tokens: the many ways to write one thing in LaTeX, or as a program, become one.

``tokens("\\left( \\dfrac12,\\, 3 \\right)") == tokens("(\\frac{1}{2}, 3)")``. A token is a number, a letter, a command,
a sign, a word (``\\text{miles}``), a numeral with its base (``3412@7``) or with repeating digits (``0.1(6)``), a degree
sign, or :data:`BESIDE` between two numbers that stand side by side. Everything here is linear in the text and decides
nothing about mathematics; :mod:`alp.tasks.equality` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from alp.tasks.characters import CLOSE, OPEN, plain, upright
from alp.tasks.lexicon import BASE_NAMES, FACTORS, FUNCTIONS, OPERATOR_WORDS, UNIT_LETTERS, UNIT_SYMBOLS

Tokens = list[str]
ECHO = r"\Xi"  # stands for a formula of the question (alp/tasks/operators.py)
BESIDE = r"\ "  # between two numbers: 4 5 is neither 45 nor 20

_GAP = r"(?:\{,\}|,\\!|\\[,:;! ]|[ ~\u00a0])\s*"
_GROUPED = re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{_GAP}\d{{3}})+(?!\d)", re.ASCII)
_MIXED = re.compile(r"(?<![\d./^_{,])(\d{1,4})(?:\\[ ,;:!]|[ ~\u00a0])+(\d{1,4})\s*/\s*(\d{1,4})(?![\d./])", re.ASCII)
_FUNCTION = "|".join(sorted(FUNCTIONS, key=len, reverse=True))

# In this order. Each pattern is a plain sequence, so no text makes one slow.
_REWRITES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\$"), " "),
    (re.compile("\ue002"), r"\\$ "),
    (re.compile(r"(?<![a-zA-Z])([apAP])\.\s?[mM]\.?(?![a-zA-Z])"), r"\1m"),
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?"), " "),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits|hfill|rm|bf|it|,)(?![a-zA-Z])|\\!"), " "),
    (re.compile(r"\\(?:quad|qquad|enspace|thinspace)(?![a-zA-Z])|(?<!\\)\\[,:; ]|[~\u00a0]"), " "),
    (re.compile(r"\\begin\s*\{[pbB]?(?:small)?matrix\*?\}"), r"\\begin "),
    (re.compile(r"\\end\s*\{[pbB]?(?:small)?matrix\*?\}"), r"\\end "),
    (re.compile(r"\\(begin|end)\s*\{([a-zA-Z]{1,16})\*?\}"), r"\\\1\2 "),
    (re.compile(r"\^\s*\{\s*\\(?:circ|degree)\s*\}|\^\s*\\(?:circ|degree)(?![a-zA-Z])|\\degree(?![a-zA-Z])"), "° "),
    (re.compile(r"\{([^{}]{1,40})\\choose(?![a-zA-Z])([^{}]{1,40})\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\bper\s?cent(?:age)?\b", re.IGNORECASE), "%"),
    (re.compile(r"(?<![\\a-zA-Z])(?:np|numpy|math|sp|sympy)\.(?=[a-z])"), ""),
    (re.compile(rf"(?<![\\a-zA-Z])({_FUNCTION})(?=\s*[({{])"), lambda found: rf"\{FUNCTIONS[found[1]]} "),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"(?<![\\a-zA-Z])infinity(?![a-zA-Z])", re.IGNORECASE), r"\\infty "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\.\.\."), r"\\ldots "),
]
_SYNONYMS = {
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac", r"\nicefrac", r"\sfrac"), r"\frac"),
    **dict.fromkeys((r"\leq", r"\leqslant", r"\leqq"), r"\le"),
    **dict.fromkeys((r"\geq", r"\geqslant", r"\geqq"), r"\ge"),
    **dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom"),
    **dict.fromkeys((r"\*", r"\cdot", r"\times", r"\ast", r"\bullet"), "*"),
    **dict.fromkeys((r"\lvert", r"\rvert", r"\vert"), "|"),
    **dict.fromkeys((r"\langle", r"\lparen"), "("),
    **dict.fromkeys((r"\rangle", r"\rparen"), ")"),
    **dict.fromkeys((r"\simeq", r"\thickapprox", r"\doteq", r"\cong"), r"\approx"),
    **dict.fromkeys((r"\dots", r"\dotsc", r"\dotsb", r"\ldots"), r"\cdots"),
    **dict.fromkeys((r"\setminus", r"\backslash", r"\smallsetminus"), r"\setminus"),
    r"\neq": r"\ne",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\%": "%",
    r"\to": r"\rightarrow",
    r"\div": "/",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\colon": ":",
    r"\varnothing": r"\emptyset",
    r"\lt": "<",
    r"\gt": ">",
    r"\R": r"\mathbb",
    r"\pounds": r"\$",
    r"\euro": r"\$",
    r"\land": ",",
    r"\lor": ",",
    r"\vee": ",",
    r"\wedge": ",",
    r"\pmod": r"\bmod",
    r"\mod": r"\bmod",
    r"\arcsinh": r"\arsinh",
    r"\tg": r"\tan",
    r"\ctg": r"\cot",
}
_SCIENTIFIC = r"\d+\.\d*[eE][+-]?\d+|\d+[eE]\d+|\.\d+[eE][+-]?\d+"
_REPEATING = r"\d*\.\d*\s*\\(?:overline|bar|dot|overbar)\s*(?:\{\s*\d+\s*\}|\d)|\d*\.\d+\s*\\[lc]?dots(?![a-zA-Z])"
_TOKEN = (
    rf"({_REPEATING})|(\\[a-zA-Z]+|\\.)|((?:@NUMBER@)(?![a-zA-Z]*\^)|\d+\.\d+|\d+\.(?![\\\d.a-zA-Z])|\d+|\.\d+)"
    r"|([a-zA-Z]+)|(\S)"
)
_TOKENS = {  # 3e-2 is a number among physicists and 3e - 2 among mathematicians
    False: re.compile(_TOKEN.replace("@NUMBER@", _SCIENTIFIC), re.ASCII | re.DOTALL),
    True: re.compile(_TOKEN.replace("@NUMBER@", _SCIENTIFIC + r"|\d+[eE][+-]\d+"), re.ASCII | re.DOTALL),
}
OPENERS, CLOSERS = {"(", "[", "{", r"\{"}, {")", "]", "}", r"\}"}


def tokens(text: str, *, program_numbers: bool = False) -> Tokens:
    """Tokens of an answer; ``program_numbers`` reads 3e-2 as 0.03."""
    text = upright(plain(text.replace(r"\$", "\ue002")))
    text = _GROUPED.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = _MIXED.sub(_mixed, text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip()
    text = text.rstrip(".,;:").strip() if not re.fullmatch(r"[+-]?\d+\.", text) else text
    found = _primes(_scanned(text, _TOKENS[program_numbers]))
    return _scaled(_implicit_products(_based(_braced(found))))


def joined(text: str) -> str:
    """The text without thousands commas, outside every bracket: there 58,500 is a number or a list."""
    depth, start, parts = 0, 0, []
    for found in re.finditer(r"\\?[(\[{)\]}]|(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])", text):
        bracket = found[0].removeprefix("\\")
        if bracket in ("(", "[") or found[0] == r"\{":
            depth += 1
        elif bracket in (")", "]") or found[0] == r"\}":
            depth -= 1
        elif depth == 0 and bracket[0].isdigit():
            parts += [text[start : found.start()], found[0].replace(",", "")]
            start = found.end()
    return "".join([*parts, text[start:]])


def is_text(item: str) -> bool:
    """Whether a token is a word."""
    return item.startswith(r"\text{")


def word(item: str) -> str:
    """The word of a token that is one."""
    return item[6:-1]


def _mixed(found: re.Match[str]) -> str:
    """3 2/5, as people type it."""
    return rf"{found[1]}\frac{{{found[2]}}}{{{found[3]}}}" if int(found[2]) < int(found[3]) else found[0]


def _scanned(text: str, pattern: re.Pattern[str]) -> Tokens:
    """The tokens as they stand."""
    found: Tokens = []
    upright, end = 0, 0
    for match in pattern.finditer(text):
        repeating, command, number, letters, sign = match.groups()
        if sign in (OPEN, CLOSE):
            upright += 1 if sign == OPEN else -1
            continue
        if number or repeating:
            if found and found[-1][0] in "0123456789." and match.start() > end:
                found.append(BESIDE)
            found.append(_repeating(repeating) if repeating else _number(number))
        elif letters:
            spaced = match.start() > end or bool(upright)
            found += _letters(letters, found, upright=bool(upright), spaced=spaced, whole=letters == text.strip())
        else:
            found += [r"\mathbb", "R"] if command == r"\R" else [_SYNONYMS.get(command or sign, command or sign)]
        end = match.end()
    return found


def _number(text: str) -> str:
    """Without zeros in front; 5. is 5."""
    if not re.fullmatch(r"\d+\.?\d*|\.\d+", text, re.ASCII):
        return text
    whole, point, rest = text.partition(".")
    return (whole.lstrip("0") or "0") + (point + rest if rest else "")


def _repeating(text: str) -> str:
    """``0.1(6)`` for 0.1\\overline{6} and for 0.1666...; what shows no repetition is no number."""
    whole, _, rest = text.partition(".")
    fixed, _, tail = rest.partition("\\")
    digits = re.sub(r"\D", "", tail)
    fixed = fixed.strip().rstrip(".")
    if not digits:
        shown = re.fullmatch(r"(\d*?)(\d+?)\2+", fixed, re.ASCII)
        if not shown or len(fixed) < 2:
            return rf"\unending{{{whole}.{fixed}}}"
        fixed, digits = shown[1], shown[2]
    return f"{whole.lstrip('0') or '0'}.{fixed}({digits})"


def _letters(run: str, before: Tokens, *, upright: bool, spaced: bool, whole: bool) -> Tokens:
    """A run of letters: a word, a function, a unit, or variables side by side."""
    low = run.lower()
    behind = bool(before) and (before[-1][-1] in "0123456789.)}°" or before[-1][0].isalnum())
    if low in ("and", "or") and (upright or (spaced and behind)):
        return [","]
    if len(run) == 1:
        if (upright and run in UNIT_LETTERS and behind) or (upright and before and before[-1] in ("/", r"\mu", "*")):
            return [rf"\text{{{run}}}"] if run not in "ied" else [run]
        return [run]
    if run in FUNCTIONS and (upright or len(run) > 2) and not (upright and run in ("sec", "exp") and behind):
        return [rf"\{FUNCTIONS[run]}"]
    if run in OPERATOR_WORDS and not (run == "min" and behind):
        return [rf"\{run}"]
    if upright or len(run) >= 4 or (behind and (spaced or len(run) > 2) and run in UNIT_SYMBOLS):
        return [rf"\text{{{run}}}"]
    if whole and low in ("yes", "no", "odd", "all"):
        return [rf"\text{{{run}}}"]
    return list(run)


def _primes(items: Tokens) -> Tokens:
    """f' and f^{\\prime} are one."""
    found: Tokens = []
    for item in items:
        found += ["^", r"\prime"] if item == "'" else [item]
    return found


def is_opener(item: str) -> bool:
    """Whether a bracket opens here."""
    return item in OPENERS or item.startswith(r"\begin")


def is_closer(item: str) -> bool:
    """Whether a bracket closes here."""
    return item in CLOSERS or item.startswith(r"\end")


def closing(items: Tokens, start: int) -> int:
    """Place of the bracket that closes the one at ``start`` (any closing bracket: intervals mix them), or -1."""
    depth = 0
    for place in range(start, len(items)):
        depth += is_opener(items[place]) - is_closer(items[place])
        if depth == 0:
            return place
    return -1


def balanced(items: Tokens) -> bool:
    """Whether every bracket closes; the ends of an interval may be of any kind."""
    depth = 0
    for item in items:
        depth += is_opener(item) - is_closer(item)
        if depth < 0:
            return False
    return depth == 0


def _argument(items: Tokens, start: int, *, digits: bool) -> tuple[Tokens, int]:
    """What a command at ``start - 1`` takes, without its braces, and the place after it; ``digits``: of bare numbers
    the first digit."""
    if items[start : start + 1] == [BESIDE]:
        start += 1
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
            if token == "_" and found[-2:-1] == [r"\log"] and items[place : place + 1] == [BESIDE]:
                place += 1
            inside = _braced(inside)
            found += inside if len(inside) == 1 and token != r"\sqrt" else ["{", *inside, "}"]
        elif token == "{" and (end := closing(items, place - 1)) == place + 1:
            found, place = [*found, items[place]], end + 1
        else:
            found.append(token)
    return found


def _based(items: Tokens) -> Tokens:
    """A whole number and the base that its index names, as one numeral; also where words name the base."""
    found: Tokens = []
    place = 0
    while place < len(items):
        if found and items[place] == "_" and (numeral := _numeral(found)):
            index, after = _argument(items, place + 1, digits=False)
            base = _base([item for item in index if item not in "()"])
            if base is not None:
                del found[-numeral:]
                digits = "".join(items[place - numeral : place])
                found, place = [*found, f"{digits}@{base}"], after
                continue
        if items[place] in (r"\text{base}", r"\text{Base}") and found and found[-1].isdigit():
            base = _base(items[place + 1 : place + 2])
            if base is not None:
                found, place = [*found[:-1], f"{found[-1]}@{base}"], place + 2
                continue
        found.append(items[place])
        place += 1
    return found


def _numeral(items: Tokens) -> int:
    """How many tokens at the end are digits of one numeral: 2 A F in base 16."""
    count = 0
    while count < len(items) and count < 16 and (items[-1 - count].isdigit() or items[-1 - count] in "ABCDEF"):
        count += 1
    while count and not items[-count].isdigit():
        count -= 1
    return count


def _base(items: Tokens) -> int | None:
    if len(items) != 1:
        return None
    if items[0].isdigit() and 2 <= int(items[0][:3]) <= 36:
        return int(items[0])
    return BASE_NAMES.get(word(items[0]).lower()) if is_text(items[0]) else None


def _implicit_products(items: Tokens) -> Tokens:
    """A product sign stays between two numbers, a number and a fraction, and before a sign: nowhere else does it
    matter."""
    found: Tokens = []
    for place, token in enumerate(items):
        if token == "*" and found and place + 1 < len(items):
            before, after = found[-1], items[place + 1]
            numbers = before[0] in "0123456789.})" and after[0] in "0123456789."
            fraction = before[0] in "0123456789." and after == r"\frac"
            if not numbers and not fraction and after not in ("+", "-", r"\pm"):
                continue
        found.append(token)
    return found


def _scaled(items: Tokens) -> Tokens:
    """8 million is a number: a word for a power of ten behind a value multiplies it."""
    found: Tokens = []
    for item in items:
        factor = FACTORS.get(word(item).lower().removesuffix("s")) if is_text(item) else None
        alone = len(found) == 1 or (len(found) > 1 and found[-2] in ("+", "-", ",", "(", "=", r"\$", r"\approx"))
        if factor is None or not found:
            found.append(item)
        elif alone and re.fullmatch(r"\d{1,20}|\d*\.\d{1,20}", found[-1], re.ASCII):
            found[-1] = _product(found[-1], factor)
        else:
            found += ["*", str(factor)]
    return found


def _product(decimal: str, factor: int) -> str:
    whole, _, rest = decimal.partition(".")
    digits = str(int(whole + rest) * factor).rjust(len(rest) + 1, "0")
    return _number(f"{digits[: -len(rest)]}.{digits[-len(rest) :]}".rstrip("0").rstrip(".")) if rest else digits


def split(items: Tokens, separators: set[str]) -> list[Tokens]:
    """Parts between separators outside every bracket; one part when there is none."""
    parts: list[Tokens] = [[]]
    depth = 0
    for item in items:
        depth += is_opener(item) - is_closer(item)
        if depth == 0 and item in separators:
            parts.append([])
        else:
            parts[-1].append(item)
    return parts
