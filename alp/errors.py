"""What a user sees as a single line: a mistake, an interruption; and the search for the choice that was meant. Standard
library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    """``text`` with every character that a terminal would obey, or could not show, spelled out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class UserError(Exception):
    """A mistake of the user's: printed as one line (what, where, nearest valid choice), exit code 2, no traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class GraderError(Exception):
    """Grading itself is broken, whatever the answer: one line, exit code 1. Never a verdict, and nothing that an answer
    can bring about."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class SandboxUnavailable(UserError):
    """This machine cannot contain programs: one line, exit code 2. Nothing is ever run without the sandbox instead."""


class SandboxError(Exception):
    """The sandbox itself is broken, whatever the program: one line, exit code 1. Nothing that a program can bring
    about."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


class Interrupted(Exception):
    """A signal stopped the work where it can be taken up again: one line, exit code ``TRY_AGAIN``."""


TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h; any code but 0 makes a workflow with retries start the job again


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` or, when nothing is close, ``; choose from a, b, …`` (at most 12)."""
    known = sorted(set(choices))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # the last part of a dotted key is what people mistype, in whichever group it stands
        tails = {choice.rsplit(".", 1)[-1]: choice for choice in reversed(known)}
        close = [tails[hit] for hit in difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, n=1, cutoff=0.6)]
    if close:
        return f"; did you mean '{close[0]}'?"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
    return f"; choose from {shown}"
