"""What grading met besides right and wrong: counted by kind, with a few examples, for the end of a job."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, defaultdict

from alp.errors import printable

KINDS = {  # an answer of each counts as wrong
    "long": "beyond the limits of grading: too long",
    "deep": "beyond the limits of grading: brackets too deep",
    "large": "beyond the limits of grading: too large a formula",
    "unreadable": "formulas that cannot be read",
    "depth": "beyond the limits of grading: too deep for Python",
    "error": "formulas that the libraries of grading fail at",
    "time": "out of time, in a second try alone too",
    "memory": "out of memory, in a second try alone too",
    "died": "the grading process died, in a second try alone too",
}
SERIOUS = ("time", "memory", "died")  # not by a rule on the answer's form
_EXAMPLES = 3
_SHOWN = 60  # characters
_log = logging.getLogger(__name__)
counts: Counter[str] = Counter()  # graded, algebra (answers that needed a worker), again (second tries), and every kind
_examples: defaultdict[str, list[str]] = defaultdict(list)
_lock = threading.Lock()


def count(kind: str, number: int = 1) -> None:
    """Add to a count, from any thread."""
    with _lock:
        counts[kind] += number


def note(kind: str, answer: str, detail: str = "") -> None:
    """Count an answer of a kind and keep the first few."""
    shown = printable(answer[:_SHOWN]) + (" …" if len(answer) > _SHOWN else "")
    example = f"'{shown}'" + (f" ({printable(detail[:200])})" if detail else "")
    with _lock:
        counts[kind] += 1
        if len(_examples[kind]) < _EXAMPLES and example not in _examples[kind]:
            _examples[kind].append(example)


def summary() -> list[str]:
    """A printable line for each kind that occurred, the serious ones last."""
    return [_line(kind) for kind in KINDS if counts[kind]]


def _line(kind: str) -> str:
    answers = "1 answer counts" if counts[kind] == 1 else f"{counts[kind]} answers count"
    return f"{answers} as wrong, {KINDS[kind]}: {', '.join(_examples[kind])}"


def log_summary() -> None:
    """Say it at the end of a job: a warning where the machine, and not the form of an answer, had a part in it."""
    for kind in KINDS:
        if counts[kind]:
            _log.log(logging.WARNING if kind in SERIOUS else logging.INFO, "%s", _line(kind))


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
