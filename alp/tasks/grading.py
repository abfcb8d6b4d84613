"""Whether a response answers a question: its final answer against the gold answer (docs/tasks.md).

Nothing here trusts the text: cheap limits on length and depth come first, then comparison in this process where no
algebra is needed, then formulas in another process (:mod:`alp.tasks.grading_pool`), where limits on their form come
before any computing and limits on time and memory are a backstop. A verdict is a function of the two answers and the
style alone; a grader that cannot work is a GraderError.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from alp.errors import GraderError
from alp.tasks.equality import NoAlgebra, UndecidedError, equal
from alp.tasks.grading_pool import Limits, Outcome, Work, pool
from alp.tasks.tally import SERIOUS, count, counts, note, summary

__all__ = ["STYLES", "GraderError", "Style", "counts", "final_answer", "grade", "grade_all", "summary"]

Style = Literal["math", "minerva", "exact"]
STYLES: tuple[str, ...] = get_args(Style)
LIMITS = Limits(
    cpu_seconds=20.0, memory_bytes=2 * 1024**3, wall_seconds=900.0
)  # a backstop: what the rules let through takes 3 s
LONGEST_ANSWER = 2000  # characters; the longest gold answer of the benchmarks has 245
DEEPEST_ANSWER = 40  # brackets within brackets; the deepest gold answer has 4
_LONGEST_SENTENCE = 300  # characters of a response without a box that may be an answer as a whole
_KNOWN = (  # each goes all the way to math-verify
    ("grade", [r"\sqrt{8}", r"2\sqrt{2}", "math"], [True, None, ""]),
    ("grade", [r"f(x)+\sqrt{8}", r"f(x)+\sqrt{2}", "math"], [False, None, ""]),
)
WORK = Work("alp.tasks.algebra", "grade", _KNOWN)
_log = logging.getLogger(__name__)


class Verdict(NamedTuple):
    """Right or wrong; where wrong for more than a difference, the kind (:mod:`alp.tasks.tally`) and what is known of
    it."""

    right: bool
    kind: str | None = None
    detail: str = ""


def grade(response: str, answer: str, *, style: str = "math") -> bool:
    """Whether the final answer of ``response`` is ``answer``. Never raises on any string; at most the limits in time
    and memory.

    Styles: ``math`` compares exactly; ``minerva`` also allows rounding of measured quantities; ``exact`` to the letter.
    Raises ValueError for an unknown style, GraderError when the grader is broken whatever the strings.
    """
    return grade_all([response], [answer], style=style)[0]


def grade_all(responses: Sequence[str], answers: Sequence[str], *, style: str = "math") -> list[bool]:
    """``grade`` of many at once, in order; formulas are spread over the workers, equal ones graded once."""
    if style not in STYLES:
        raise ValueError(f"style: '{style}' is no valid choice; choose from {', '.join(STYLES)}")
    pairs = [(final_answer(response), answer.strip()) for response, answer in zip(responses, answers, strict=True)]
    verdicts = {pair: _settle(*pair, style) for pair in dict.fromkeys(pairs)}
    open_pairs = [pair for pair, verdict in verdicts.items() if verdict is None]
    verdicts |= dict(zip(open_pairs, _algebra(open_pairs, style), strict=True))
    found = [verdicts[pair] or Verdict(False) for pair in pairs]
    count("graded", len(pairs))
    for (response, _), verdict in zip(pairs, found, strict=True):
        if verdict.kind is not None:
            note(verdict.kind, response or "", verdict.detail)
    return [verdict.right for verdict in found]


def final_answer(response: str) -> str | None:
    """What stands in the last box that holds anything; without a box what follows the last ``####``, the last "answer
    is", or a single line as a whole. None when a box is begun and never closed, or there is nothing."""
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
def _settle(response: str | None, answer: str, style: str) -> Verdict | None:
    """The verdict where it needs no algebra, else None."""
    if response is None or not answer:
        return Verdict(False)
    if response == answer:
        return Verdict(True)
    if style == "exact":
        return Verdict(False)
    if max(len(response), len(answer)) > LONGEST_ANSWER:
        return Verdict(False, "long", f"more than {LONGEST_ANSWER} characters")
    if max(_depth(response), _depth(answer)) > DEEPEST_ANSWER:
        return Verdict(False, "deep", f"more than {DEEPEST_ANSWER} brackets")
    try:
        return Verdict(equal(response, answer, style, NoAlgebra()))
    except UndecidedError:
        return None
    except RecursionError:
        return Verdict(False, "depth")


_known: dict[tuple[str | None, str, str], Verdict] = {}  # verdicts reached within the limits, at the first try


def _algebra(pairs: list[tuple[str | None, str]], style: str) -> list[Verdict]:
    """Verdicts that need a worker. Raises GraderError."""
    found = {pair: _known[(*pair, style)] for pair in pairs if (*pair, style) in _known}
    fresh = [pair for pair in pairs if pair not in found]
    outcomes = pool().settle(WORK, [[*pair, style] for pair in fresh], LIMITS) if fresh else []
    if len(_known) > 65536:
        _known.clear()
    for pair, (outcome, again) in zip(fresh, outcomes, strict=True):
        found[pair] = _judged(outcome)
        count("again", int(again))
        if not again:
            _known[(*pair, style)] = found[pair]
    count("algebra", len(fresh))
    met = Counter(verdict.kind for pair, verdict in found.items() if verdict.kind in SERIOUS)
    if met:
        _log.warning(
            "%d of %d answers hit a limit of grading twice and count as wrong: %s", met.total(), len(fresh), dict(met)
        )
    return [found[pair] for pair in pairs]


def _judged(outcome: Outcome) -> Verdict:
    """What a worker's answer says."""
    if outcome.fault is None:
        return Verdict(*outcome.value)
    return Verdict(False, "error" if outcome.fault == "raised" else outcome.fault, outcome.detail)
