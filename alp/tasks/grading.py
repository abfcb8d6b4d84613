"""Whether a response answers a question: its final answer against the gold answer (docs/tasks.md).

Nothing here trusts the text: cheap limits on length and depth come first, then comparison in this process where no algebra is needed,
then math-verify in another process with limits on time and memory (:mod:`alp.tasks.bounded`). A verdict is a function of the two answers
and the style alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from alp.tasks.bounded import Limits, pool
from alp.tasks.equality import NoAlgebra, UndecidedError, equal

if TYPE_CHECKING:  # run in workers alone, but their source is part of what a verdict follows from (alp.reproducibility.code_hash)
    from alp.tasks import algebra  # noqa: F401

Style = Literal["math", "minerva", "exact"]
STYLES: tuple[str, ...] = get_args(Style)
LIMITS = Limits(cpu_seconds=4.0, memory_bytes=2 * 1024**3, wall_seconds=60.0)
LONGEST_ANSWER = 2000  # characters; the longest gold answer of the benchmarks has 210
DEEPEST_ANSWER = 40  # brackets within brackets
_LONGEST_SENTENCE = 300  # characters of a response without a box that may be an answer as a whole
_log = logging.getLogger(__name__)
counts: Counter[str] = Counter()  # graded, algebra, and of those that hit a limit: time, memory, depth, died, error


def grade(response: str, answer: str, *, style: str = "math") -> bool:
    """Whether the final answer of ``response`` is ``answer``. Never raises on any string; at most the limits in time and memory.

    Styles: ``math`` compares exactly; ``minerva`` also allows rounding of measured quantities; ``exact`` to the letter.
    Raises ValueError for an unknown style.
    """
    return grade_all([response], [answer], style=style)[0]


def grade_all(responses: Sequence[str], answers: Sequence[str], *, style: str = "math") -> list[bool]:
    """``grade`` of many at once, in order; formulas are spread over the workers, equal ones graded once."""
    if style not in STYLES:
        raise ValueError(f"style: '{style}' is no valid choice; choose from {', '.join(STYLES)}")
    pairs = [(final_answer(response), answer.strip()) for response, answer in zip(responses, answers, strict=True)]
    verdicts = {pair: _settle(*pair, style) for pair in dict.fromkeys(pairs)}
    open_pairs = [pair for pair, verdict in verdicts.items() if verdict is None]
    for pair, outcome in zip(open_pairs, _algebra(open_pairs, style), strict=True):
        verdicts[pair] = outcome
    counts["graded"] += len(pairs)
    return [bool(verdicts[pair]) for pair in pairs]


def final_answer(response: str) -> str | None:
    """What stands in the last box that holds anything; without a box what follows the last ``####``, the last "answer is", or a single
    line as a whole. None when a box is begun and never closed, or there is nothing."""
    end = len(response)
    while (start := response.rfind(r"\boxed", 0, end)) >= 0:
        end = start
        opening = start + len(r"\boxed")
        while opening < len(response) and response[opening] == " ":
            opening += 1
        if response[opening : opening + 1] != "{":
            continue
        inside = _braces(response, opening)
        if inside is None:
            return None
        if inside.strip():
            return inside.strip()
    return _without_box(response)


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
    lowered = tail.lower()
    for mark in ("####", "answer is", "answer:"):
        if (place := lowered.rfind(mark)) >= 0:
            return _sentence(tail[place + len(mark) :])
    if len(response) <= _LONGEST_SENTENCE and "\n" not in response.strip():
        return _sentence(response)
    return None


def _sentence(text: str) -> str | None:
    """The first line, without emphasis, colon and full stop."""
    lines = text.strip().strip("*:").strip().splitlines()
    return lines[0].split(". ")[0].strip().strip("*").rstrip(".").strip() or None if lines else None


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    return deepest


@lru_cache(maxsize=65536)
def _settle(response: str | None, answer: str, style: str) -> bool | None:
    """The verdict where it needs no algebra, else None."""
    if response is None or not answer:
        return False
    if response == answer:
        return True
    if style == "exact":
        return False
    if max(len(response), len(answer)) > LONGEST_ANSWER or max(_depth(response), _depth(answer)) > DEEPEST_ANSWER:
        return False
    try:
        return equal(response, answer, style, NoAlgebra())
    except UndecidedError:
        return None


_known: dict[tuple[str | None, str, str], bool] = {}


def _algebra(pairs: list[tuple[str | None, str]], style: str) -> list[bool]:
    """Verdicts that need math-verify. A limit that was hit is a wrong answer, and is counted and said."""
    fresh = [pair for pair in pairs if (*pair, style) not in _known]
    hit: Counter[str] = Counter()
    outcomes = pool().map("alp.tasks.algebra", "grade", [[*pair, style] for pair in fresh], LIMITS) if fresh else []
    if len(_known) > 65536:
        _known.clear()
    found = {}
    for pair, outcome in zip(fresh, outcomes, strict=True):
        found[(*pair, style)] = outcome.value is True
        if outcome.fault is not None:
            hit[outcome.fault if outcome.fault in ("time", "memory", "depth", "died") else "error"] += 1
    _known.update(found)
    counts["algebra"] += len(fresh)
    counts.update(hit)
    limits = {kind: number for kind, number in hit.items() if kind != "error"}
    if limits:
        _log.warning("%d of %d answers hit a limit of grading and count as wrong: %s", sum(limits.values()), len(fresh), dict(limits))
    return [found[(*pair, style)] if (*pair, style) in found else _known[(*pair, style)] for pair in pairs]
