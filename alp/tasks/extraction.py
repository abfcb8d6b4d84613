"""The final answer of a response: what stands in its last box, or where else answers are given."""

from __future__ import annotations

import re

LONGEST_ANSWER = 2000  # characters; the longest gold answer of the benchmarks has 245
_LONGEST_SENTENCE = 300  # characters of a response without a box that may be an answer as a whole
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_UNBRACED = re.compile(r"\\[a-zA-Z]+(?:\{[^{}]*\})*|[^\s${}\\.,;]+(?:[.,]\d+)*")
_EMPTY = re.compile(
    r"(?:\\(?:text|mathrm|phantom|hphantom|underline)\s*\{[^{}]*\}|\\[,:;! ]|\\(?:quad|ldots|dots|cdots)|[\s~?_.…])*"
)
_BLANK = re.compile(r"\\(?:text|mathrm)\s*\{[^{}]*[a-zA-Z0-9]")
_ANNOUNCED = re.compile(
    r"^\\(?:text|mathrm|textbf)\s*\{[^{}]*\b(?:answer|result|value) (?:is|are):?\s*\}", re.IGNORECASE
)
_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_MARK = re.compile(r"\banswers?\b\s*\**\s*(?:is|are|:|=)\**\s*:?", re.IGNORECASE)
_GSM8K = re.compile(r"^[ \t]*####(?!#)[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_DISPLAY = re.compile(r"\s*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\])", re.DOTALL)
_CLAUSE = re.compile(
    r"[,;:]?\s+(?:because|since|hence|therefore|thus|where|when|which|i\.e\.|as\s+(?:the|we|it|there)|so\s+(?:the|we|it|that))\b.*"
    r"|,\s*(?:not|so|as|and\s+not)\b.*|\s+\(\s*(?:because|since|not|by|using|from)\b.*",
    re.IGNORECASE | re.DOTALL,
)


def final_answer(response: str) -> str | None:
    """What stands in the last box that holds anything; without a box what stands between the last answer tags, what
    follows the last ``####`` or "answer is", or a single line as a whole. None when a box is begun and never closed, or
    there is nothing."""
    boxes = list(_BOX.finditer(response))
    for box in reversed(boxes):
        if response[box.end() : box.end() + 1] == "{":
            inside = _braces(response, box.end())
            if inside is None:
                return None
        else:
            bare = _UNBRACED.match(response, box.end())
            inside = bare[0] if bare else ""
        if not _is_empty(inside):
            return _within_a_box(inside.strip())
    tail = response[-20 * _LONGEST_SENTENCE :]
    if tagged := [text for text in _TAGS.findall(tail) if text.strip()]:
        return str(tagged[-1]).strip()
    return _without_box(response)


def _is_empty(inside: str) -> bool:
    """Nothing, spaces, or what keeps a place free."""
    return bool(_EMPTY.fullmatch(inside[:200])) and len(inside) <= 200 and not _BLANK.search(inside)


def _within_a_box(inside: str) -> str:
    """A box within a box."""
    inside = _ANNOUNCED.sub("", inside).strip() or inside
    box = _BOX.match(inside)
    if box and inside[box.end() : box.end() + 1] == "{":
        core = _braces(inside, box.end())
        if core is not None and box.end() + len(core) + 2 == len(inside):
            return _within_a_box(core.strip()) if core.strip() else inside
    return inside


def _braces(text: str, opening: int) -> str | None:
    """What stands between the brace at ``opening`` and the one that closes it; escaped braces are no braces."""
    depth, place = 0, opening
    limit = min(len(text), opening + 50 * LONGEST_ANSWER)
    while place < limit:
        char = text[place]
        if char == "\\":
            place += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[opening + 1 : place]
        place += 1
    return None


def _without_box(response: str) -> str | None:
    tail = response[-4 * _LONGEST_SENTENCE :].strip()
    marks = [(found.start(), found[1]) for found in _GSM8K.finditer(tail) if _is_gsm8k(found, tail)]
    if marks:
        return _sentence(marks[-1][1])
    places = list(_MARK.finditer(tail))
    if places:
        return _sentence(tail[places[-1].end() :])
    if len(response) <= _LONGEST_SENTENCE and "\n" not in response.strip() and not _BOX.search(response):
        return _sentence(response)
    return None


def _is_gsm8k(found: re.Match[str], tail: str) -> bool:
    """A heading of four signs is no answer: words stand in it and text follows."""
    return not tail[found.end() :].strip() or not re.search(r"[a-zA-Z]{3,}", re.sub(r"\\[a-zA-Z]+", "", found[1]))


def _sentence(text: str) -> str | None:
    """Display maths; or the first line, without emphasis, colon, full stop and what explains it."""
    if (display := _DISPLAY.match(text)) and (inside := (display[1] or display[2]).strip()):
        return inside.rstrip(".,;").strip() or None
    lines = text.strip().strip("*:").strip().splitlines()
    if not lines:
        return None
    line = _CLAUSE.sub("", lines[0].split(". ")[0])
    return line.strip("* ").rstrip(".* \t") or None
