"""Where a turn ends besides its end token: behind the first form that closes in it (``alp.tasks.environment``).

Forms are text, turns are tokens, and a tokenizer may cut a fence anywhere. So the text of every id is looked up as it
comes, and the turn ends with the token that closes the form, whatever else that token says. What was sampled before it
does not depend on what would have come behind: an engine that samples on loses nothing but time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from alp.rollout.engine import Completion, Request, Sampling
from alp.tasks.environment import Form, closing, opened


class Stops:
    """Forms in the tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> None:
        self.forms = tuple(forms)
        self.pieces: list[str] = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
        self.longest = max(len(form.opens) for form in forms)
        self.last = "".join({form.closes[-1] for form in forms})  # characters that a closing token has

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, forms: Sequence[Form]) -> Stops | None:
        """None where nothing but an end token ends a turn."""
        return cls(tokenizer, forms) if forms else None

    def plain(self) -> list[list[Any]]:
        """The forms, for a message to another process."""
        return [[form.opens, form.closes, form.nested] for form in self.forms]

    def watch(self) -> Watch:
        """For one turn as it grows."""
        return Watch(self)

    def count(self, ids: Sequence[int]) -> int | None:
        """Tokens of the turn up to where a form closes; None where none does."""
        watch = self.watch()
        return next((number for number, token in enumerate(ids, start=1) if watch.add(token)), None)


class Watch:
    """Keeps so much of a turn's text as a form may still need."""

    def __init__(self, stops: Stops) -> None:
        self._stops = stops
        self._text = ""
        self._form: Form | None = None
        self._begin = 0

    def add(self, token: int) -> bool:
        """Whether a form closes with this token."""
        stops = self._stops
        piece = stops.pieces[token] if token < len(stops.pieces) else ""  # models have rows that no token goes with
        self._text += piece
        if self._form is None:
            if (begun := opened(self._text, stops.forms)) is None:
                self._text = self._text[1 - stops.longest :] if stops.longest > 1 else ""
                return False
            self._form, self._begin = begun
        if not any(character in piece for character in stops.last):
            return False
        return closing(self._text, self._form, self._begin) >= 0


def closes(completion: Completion, sampling: Sampling) -> bool:
    """Whether a form ends the turn."""
    return sampling.stops is not None and sampling.stops.count(completion.token_ids) is not None


def cut(completions: list[Completion], requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
    """Completions without what an engine sampled behind the end of a turn, or beyond a request's own limit; as they
    are where there are not as many as requests."""
    if len(completions) != len(requests):
        return completions
    return [_cut(made, request.limit, sampling.stops) for made, request in zip(completions, requests, strict=True)]


def _cut(made: Completion, limit: int | None, stops: Stops | None) -> Completion:
    ids = made.token_ids[:limit]
    count = (stops.count(ids) if stops is not None else None) or len(ids)
    if count == len(made.token_ids):
        return made
    return Completion(ids[:count], made.log_probs[:count], finished=False)
