"""What answers a model between its turns: the seam of episodes (docs/tools.md).

A model writes a turn, an environment says what comes of it: an answer, an observation for the model to go on from, or
nothing of either, which is a void turn. Environments know text and problems; they know no token and no model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alp.tasks.task import Problem


@dataclass(frozen=True)
class Form:
    """A stretch of text that ends a turn where it closes: what stands between ``opens`` and ``closes``. With ``nested``
    the braces inside are counted."""

    opens: str
    closes: str
    nested: bool = False


CODE = Form("```python\n", "\n```")
BOX = Form("\\boxed{", "}", nested=True)


@dataclass(frozen=True)
class Turn:
    """What a model wrote in one turn; ``ended``: with its end token, not behind a form or at a limit of tokens."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Step:
    """What comes of a turn: ``answer`` is the text to be graded, ``observation`` what a tool said, ``valid`` whether
    the tool could do what it was asked. Neither answer nor observation is a void turn."""

    answer: str | None = None
    observation: str | None = None
    valid: bool = True

    @property
    def void(self) -> bool:
        """Whether the turn led nowhere."""
        return self.answer is None and self.observation is None


class Environment(ABC):
    """The rules of an episode, and what happens between its turns.

    ``turns``: at most; ``context``: tokens of prompt, turns and observations together (None: the engine's own limit);
    ``observation_tokens``: at most, ``before`` and ``after`` (the frame of an observation) among them; ``forms`` end a
    turn where they close; ``workers``: steps that are taken beside each other (0: in the caller's thread);
    ``leave_out_void``: whether a trajectory with a void turn leaves the loss.
    """

    turns: int
    context: int | None
    observation_tokens: int
    forms: tuple[Form, ...]
    workers: int
    leave_out_void: bool
    before: str = ""
    after: str = ""

    @abstractmethod
    def step(self, problem: Problem, turns: Sequence[Turn]) -> Step:
        """What comes of the last of ``turns``. Called from ``workers`` threads; depends on its arguments alone."""

    def check(self) -> None:  # noqa: B027  (most refuse nothing)
        """Refuse, before anything is computed, what this machine cannot do. Raises UserError."""

    def describe(self) -> dict[str, Any]:
        """What is really active."""
        return {"turns": self.turns, "context": self.context, "observation_tokens": self.observation_tokens}

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Give back what it holds outside this process. May be called twice."""


class Single(Environment):
    """One turn without a tool: a response that the model ended is its answer. One that was cut earns nothing, whatever
    it says so far, and counts in the loss."""

    turns, context, observation_tokens, forms, workers, leave_out_void = 1, None, 0, (), 0, False

    def step(self, problem: Problem, turns: Sequence[Turn]) -> Step:
        """See Environment."""
        del problem
        return Step(answer=turns[-1].text) if turns[-1].ended else Step()


# ---- forms in text ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A closed form in a text: what stands in it, and the place behind it."""

    form: Form
    content: str
    end: int


def opened(text: str, forms: Sequence[Form], start: int = 0) -> tuple[Form, int] | None:
    """The form that begins first behind ``start``, and the place behind its opening."""
    places = [(text.find(form.opens, start), number) for number, form in enumerate(forms)]
    begun = min(((place, number) for place, number in places if place >= 0), default=None)
    return None if begun is None else (forms[begun[1]], begun[0] + len(forms[begun[1]].opens))


def closing(text: str, form: Form, begin: int) -> int:
    """The place of what closes a form whose content begins at ``begin``; -1 where it stays open."""
    if not form.nested:
        # A break may belong to opening and closing both: a block without a line in it.
        shared = form.opens[-1:] == form.closes[:1]
        return text.find(form.closes, begin - shared)
    depth = 0
    for place in range(begin, len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            if not depth:
                return place
            depth -= 1
    return -1


def first(text: str, forms: Sequence[Form]) -> Found | None:
    """The form that begins first in a text, where it is closed."""
    if (begun := opened(text, forms)) is None:
        return None
    form, begin = begun
    place = closing(text, form, begin)
    return None if place < 0 else Found(form, text[begin : max(begin, place)], place + len(form.closes))
