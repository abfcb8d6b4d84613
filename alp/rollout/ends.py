"""The tokens that end a response: all that the makers of a model named, wherever they named them.

``eos_token_id`` of a tokenizer, of config.json and of generation_config.json differ in many published folders, and a
chat template may close a turn with yet another token. A token that is missed ends nothing: every response is cut, and
earns nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alp.configuration.model_schema import Model
from alp.errors import UserError
from alp.foreign import is_file, read_json
from alp.models import text_config
from alp.rollout.engine import Completion, Sampling
from alp.rollout.prompts import end_of_turn
from alp.rollout.stops import Stops

logger = logging.getLogger(__name__)
_CUT = 0.9  # share of a first batch that is cut before anyone wonders
_LIKE_AN_END = re.compile(r"eos|eot|eom|end|stop|^</s>$", re.IGNORECASE)
_FILES = ("config.json", "generation_config.json")


@dataclass
class Ends:
    """``named``: who names which ids. ``ids``: all of them, the tokenizer's first."""

    named: dict[str, tuple[int, ...]]
    tokenizer: PreTrainedTokenizerBase
    _judged: bool = field(default=False, repr=False)

    @property
    def ids(self) -> tuple[int, ...]:
        """Every token that ends a response, once."""
        return tuple(dict.fromkeys(number for numbers in self.named.values() for number in numbers))

    def sampling(self, *, temperature: float, max_new_tokens: int, stops: Stops | None = None) -> Sampling:
        """What an engine is told."""
        first, *others = self.ids
        pad = int(self.tokenizer.pad_token_id)
        return Sampling(temperature, max_new_tokens, first, pad, stop_token_ids=tuple(others), stops=stops)

    def judge(self, completions: Sequence[Completion]) -> None:
        """Of the first batch alone: say so where nearly all of it is cut although tokens that look like an end were
        sampled."""
        if self._judged or not completions:
            return
        self._judged = True
        cut = [completion for completion in completions if not completion.finished]
        if len(cut) < _CUT * len(completions):
            return
        sampled = {token for completion in cut for token in completion.token_ids}
        if like := sorted(sampled & self._special() - set(self.ids)):
            logger.warning(
                "%d of the first %d responses are cut, and hold tokens that look like an end and are none: %s; name"
                " them in eos_token_id of the model folder's generation_config.json",
                len(cut),
                len(completions),
                self._shown(like),
            )

    def say(self) -> None:
        """Where those who name an end disagree, who names what."""
        if len({frozenset(numbers) for numbers in self.named.values()}) > 1:
            parts = (f"{source}: {self._shown(numbers)}" for source, numbers in self.named.items())
            logger.warning("the tokens that end a response are named differently (%s); each ends one", "; ".join(parts))

    def _special(self) -> set[int]:
        """Ids of special tokens whose names look like an end."""
        added = self.tokenizer.added_tokens_decoder
        return {number for number, token in added.items() if token.special and _LIKE_AN_END.search(token.content)} | {
            number for number in (self.tokenizer.eos_token_id,) if number is not None
        }

    def _shown(self, numbers: Sequence[int]) -> str:
        return ", ".join(f"{number} {self.tokenizer.convert_ids_to_tokens(number)}" for number in numbers)


def ends_of(tokenizer: PreTrainedTokenizerBase, folder: Path, model: Model) -> Ends:
    """The ends that the tokenizer, the folder's configurations and, in a chat, its template name. Raises UserError
    where nothing would end a response."""
    rows = int(getattr(text_config(folder), "vocab_size", 0) or len(tokenizer))
    named = {"tokenizer": _valid(tokenizer.eos_token_id, rows)}
    for file in _FILES:
        content = read_json("model.path", folder / file) if is_file(folder / file) else {}
        inner = content.get("text_config")
        given = content.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
        named[file] = _valid(given, rows)
    if model.chat:
        turn = end_of_turn(tokenizer)
        elsewhere = set(named["config.json"]) | set(named["generation_config.json"])
        if turn is None and not elsewhere - set(named["tokenizer"]):
            raise UserError(
                "model.chat: the tokenizer's chat template puts no token behind an answer, and neither config.json nor"
                " generation_config.json names another end, so no response would ever end; chat=false?"
            )
        named["chat template"] = () if turn is None else (turn,)
    ends = Ends({source: numbers for source, numbers in named.items() if numbers}, tokenizer)
    if not ends.ids:
        raise UserError(
            "model.path: neither the tokenizer nor a configuration names an end token, so no response would ever end"
        )
    return ends


def _valid(given: Any, rows: int) -> tuple[int, ...]:
    """The ids of an ``eos_token_id``, which is a number, a list of them, or nothing; -1 and its like are nothing."""
    numbers = given if isinstance(given, list | tuple) else [given]
    return tuple(number for number in numbers if isinstance(number, int) and 0 <= number < rows)
