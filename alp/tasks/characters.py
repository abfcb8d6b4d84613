"""One spelling of every character that an answer may hold, as LaTeX: symbols, superscripts, full-width forms; and marks
around what is set upright.

Nothing is thrown away that means something: ``x²`` is ``x^{2}`` and ``3²`` is not ``32``.
"""

from __future__ import annotations

import re
import unicodedata

_GREEK = {
    "αβγδεζηθικλμνξοπρστυφχψω": (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi"
        " chi psi omega"
    ),
    "ΓΔΘΛΞΠΣΥΦΨΩ": "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega",
    "ςϑϕϵ": "sigma theta phi epsilon",
}
_SYMBOLS = {
    "×·⋅∙∗÷√∞≤≥≠≈≃∪∩∈∉±∓∖∅→∫∑∏∂∇": (
        "times cdot cdot cdot cdot div sqrt infty le ge ne approx approx cup cap in notin pm mp setminus emptyset"
        " rightarrow int sum prod partial nabla"
    ),
    "⩽⩾≦≧∠△⌊⌋⌈⌉…⋯": "le ge le ge angle triangle lfloor rfloor lceil rceil ldots cdots",
}
_PLAIN = {
    **dict.fromkeys("−–—‐‑‒﹣➖", "-"),
    **dict.fromkeys("’′‘ʹ", "'"),
    **dict.fromkeys("\u2009\u202f\u2007\u2005\u2006\u2008\u200a\u2002\u2003\u2004\u3000", "\u00a0"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u200e\u200f", ""),
    "∶": ":",
    "″": "''",
    "°": r"^\circ ",
    "º": r"^\circ ",
    "ℝ": r"\mathbb{R}",
    "ℕ": r"\mathbb{N}",
    "ℤ": r"\mathbb{Z}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "⟨": "(",
    "⟩": ")",
    "µ": r"\mu ",
    "€": r"\$",
    "£": r"\$",
}
_CHARACTERS = str.maketrans(
    _PLAIN
    | {
        char: rf"\{name} "
        for table in (_GREEK, _SYMBOLS)
        for chars, names in table.items()
        for char, name in zip(chars, names.split(), strict=True)
    }
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ"
_LEVELS = [
    (re.compile(f"[{_RAISED}]+"), "^", str.maketrans(_RAISED, "0123456789+-()ni")),
    (re.compile(f"[{_LOWERED}]+"), "_", str.maketrans(_LOWERED, "0123456789+-()n")),
]
_FRACTION = re.compile("[¼-¾⅐-⅞]")
_FORMS = re.compile(
    "[\uff01-\uff5e\uffe0-\uffee\U0001d400-\U0001d7ff\ufb00-\ufb06]"
)  # full-width, mathematical letters


OPEN, CLOSE = "\ue000", "\ue001"  # around what was upright
_WRAPPER = re.compile(
    r"\\(text|mathrm|textrm|textnormal|mbox|hbox|textup|operatorname|mathop|textbf|textit|mathbf|boldsymbol|bm|mathit"
    r"|mathsf|textsf|texttt|mathtt|emph|underline)\*?\s*\{"
)
_LETTERS_ONLY = {"textbf", "textit", "mathbf", "boldsymbol", "bm", "mathit", "emph", "underline"}  # no units in them


def plain(text: str) -> str:
    """The text with every symbol as LaTeX."""
    for pattern, mark, table in _LEVELS:
        text = pattern.sub(rf"{mark}{{\g<0>}}", text).translate(table)
    text = _FRACTION.sub(lambda found: _fraction(found[0]), text)
    text = _FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return text.translate(_CHARACTERS)


def _fraction(char: str) -> str:
    above, _, below = unicodedata.normalize("NFKC", char).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def upright(text: str) -> str:
    """Marks around what is set in text or upright type, instead of the command and its braces."""
    found, start = [], 0
    while match := _WRAPPER.search(text, start):
        end = _closing_brace(text, match.end() - 1)
        found.append(text[start : match.start()])
        if end < 0:
            start = match.end() - 1
            continue
        inside = text[match.end() : end]
        letters = match[1] in _LETTERS_ONLY and not re.search(r"[a-zA-Z]{2}", inside)
        inside = upright(inside) if _WRAPPER.search(inside) else inside
        found.append(f"{{{inside}}}" if letters else f"{OPEN}{inside}{CLOSE}")
        start = end + 1
    return "".join([*found, text[start:]])


def _closing_brace(text: str, opening: int) -> int:
    depth = 0
    for found in re.finditer(r"(?<!\\)[{}]", text[opening:]):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return opening + found.start()
    return -1
