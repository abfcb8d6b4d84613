"""Whether a response answers a question: its final answer against the gold answer (docs/tasks.md).

Nothing here trusts the text: cheap limits on length and depth come first, then comparison in this process where no
algebra is needed, then formulas in another process (:mod:`alp.tasks.grading_pool`), where limits on their form come
before any computing and limits on time and memory are a backstop. A verdict is a function of the two answers, the
style and the question alone; a grader that cannot work is a GraderError.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

from alp.errors import GraderError
from alp.tasks.equality import NoAlgebra, UndecidedError, equal
from alp.tasks.extraction import LONGEST_ANSWER, final_answer
from alp.tasks.grading_pool import Limits, Outcome, Work, pool
from alp.tasks.tally import SERIOUS, count, counts, note, summary

__all__ = ["STYLES", "GraderError", "Style", "counts", "final_answer", "grade", "grade_all", "summary"]

Style = Literal["math", "minerva", "exact"]
STYLES: tuple[str, ...] = get_args(Style)
LIMITS = Limits(
    cpu_seconds=20.0, memory_bytes=2 * 1024**3, wall_seconds=900.0
)  # a backstop: what the rules let through takes 3 s
DEEPEST_ANSWER = 40  # brackets within brackets; the deepest gold answer has 4
_KNOWN = (  # each goes all the way to math-verify
    ("grade", [r"\sqrt{8}", r"2\sqrt{2}", "math", None], [True, None, ""]),
    ("grade", [r"f(x)+\sqrt{8}", r"f(x)+\sqrt{2}", "math", None], [False, None, ""]),
)
WORK = Work("alp.tasks.algebra", "grade", _KNOWN)
_log = logging.getLogger(__name__)


class Case(NamedTuple):
    """What a verdict follows from: the final answer (None: there is none), the gold answer, style and question."""

    response: str | None
    answer: str
    style: str
    prompt: str | None = None


class Verdict(NamedTuple):
    """Right or wrong; where wrong for more than a difference, the kind (:mod:`alp.tasks.tally`) and what is known of
    it."""

    right: bool
    kind: str | None = None
    detail: str = ""


def grade(response: str, answer: str, *, style: str = "math", prompt: str | None = None) -> bool:
    """Whether the final answer of ``response`` is ``answer``. Never raises on any string; at most the limits in time
    and memory.

    Styles: ``math`` compares exactly; ``minerva`` also allows rounding of measured quantities; ``exact`` to the letter.
    ``prompt``: the question; its own formulas earn nothing unless the gold answer is written with them.
    Raises ValueError for an unknown style, GraderError when the grader is broken whatever the strings.
    """
    return grade_all([response], [answer], style=style, prompts=[prompt])[0]


def grade_all(
    responses: Sequence[str],
    answers: Sequence[str],
    *,
    style: str = "math",
    prompts: Sequence[str | None] | None = None,
) -> list[bool]:
    """``grade`` of many at once, in order; formulas are spread over the workers, equal ones graded once."""
    if style not in STYLES:
        raise ValueError(f"style: '{style}' is no valid choice; choose from {', '.join(STYLES)}")
    questions = [None] * len(answers) if prompts is None else prompts
    cases = [
        Case(final_answer(response), answer.strip(), style, prompt)
        for response, answer, prompt in zip(responses, answers, questions, strict=True)
    ]
    verdicts = {case: _settle(case) for case in dict.fromkeys(cases)}
    undecided = [case for case, verdict in verdicts.items() if verdict is None]
    verdicts |= dict(zip(undecided, _algebra(undecided), strict=True))
    judged = [verdicts[case] or Verdict(False) for case in cases]
    count("graded", len(cases))
    for case, verdict in zip(cases, judged, strict=True):
        if verdict.kind is not None:
            note(verdict.kind, case.response or "", verdict.detail)
    return [verdict.right for verdict in judged]


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    return deepest


def _is_cut(text: str) -> bool:
    """Whether a brace is left open: no formula can be read then."""
    return len(re.findall(r"(?<!\\)\{", text)) > len(re.findall(r"(?<!\\)\}", text))


@lru_cache(maxsize=65536)
def _settle(case: Case) -> Verdict | None:
    """The verdict where it needs no algebra, else None."""
    response, answer = case.response, case.answer
    if response is None or not answer:
        return Verdict(False)
    if response == answer:
        return Verdict(True)
    if case.style == "exact":
        return Verdict(False)
    if max(len(response), len(answer)) > LONGEST_ANSWER:
        return Verdict(False, "long", f"more than {LONGEST_ANSWER} characters")
    if max(_depth(response), _depth(answer)) > DEEPEST_ANSWER:
        return Verdict(False, "deep", f"more than {DEEPEST_ANSWER} brackets")
    if _is_cut(response):
        return Verdict(False, "unreadable", response[:200])
    try:
        return Verdict(equal(response, answer, case.style, NoAlgebra(), case.prompt))
    except UndecidedError:
        return None
    except RecursionError:
        return Verdict(False, "depth")


_known: dict[Case, Verdict] = {}  # verdicts reached within the limits, at the first try


def _algebra(cases: list[Case]) -> list[Verdict]:
    """Verdicts that need a worker. Raises GraderError."""
    verdicts = {case: _known[case] for case in cases if case in _known}
    fresh = [case for case in cases if case not in verdicts]
    outcomes = pool().settle(WORK, [list(case) for case in fresh], LIMITS) if fresh else []
    if len(_known) > 65536:
        _known.clear()
    for case, (outcome, again) in zip(fresh, outcomes, strict=True):
        verdicts[case] = _judged(outcome)
        count("again", int(again))
        if not again:
            _known[case] = verdicts[case]
    count("algebra", len(fresh))
    met = Counter(verdict.kind for verdict in verdicts.values() if verdict.kind in SERIOUS)
    if met:
        _log.warning(
            "%d of %d answers hit a limit of grading twice and count as wrong: %s", met.total(), len(fresh), dict(met)
        )
    return [verdicts[case] for case in cases]


def _judged(outcome: Outcome) -> Verdict:
    """What a worker's answer says."""
    if outcome.fault is None:
        return Verdict(*outcome.value)
    return Verdict(False, "error" if outcome.fault == "raised" else outcome.fault, outcome.detail)
