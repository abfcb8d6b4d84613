"""How a model continues a batch of prompts, one token a step: with the cache that it makes for itself, where what comes
out is what one plain forward of each sequence gives, and without any cache where not.

Which way is right is not read from a list of architectures: ``choose`` tries them on the model itself. A recurrent
state takes padding in front of a prompt for tokens, a decoder that counts its positions itself counts them too, and
some caches cannot be told to keep only some rows.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache

from alp.foreign import reason
from alp.reproducibility import stream

logger = logging.getLogger(__name__)
Prompts = Sequence[Sequence[int]]
# Mean |log-prob difference| over the vocabulary between a way and plain forwards of one model, by the dtype of its
# weights: what is always allowed, and what no rounding explains. Of 148 architectures in float32, right ways differ by
# at most 9e-6, wrong ones by 1e-4 and more.
_SAME = {torch.float32: (2e-5, 1e-3), torch.float64: (1e-9, 1e-6)}
_SAME_HALF = (0.02, 0.1)
_TIMES = 4.0  # what recomputing differs, a right way may differ so many times over
_TRIAL_PROMPTS, _TRIAL_STEPS = (3, 8, 8, 13), 6  # tokens of each prompt; tokens fed behind it


class Way(StrEnum):
    """The ways, in the order of their speed."""

    GRAPHED = "cache of fixed size, CUDA graphs"  # padded in front (``alp.rollout.static``)
    STATIC = "cache of fixed size"  # the same without graphs
    PADDED = "cache"  # prompts of any length in one batch, padded in front
    BY_LENGTH = "cache, prompts of one length at a time"
    RECOMPUTED = "no cache"  # every step computes the whole sequences, padded behind, as the trainer scores them


class Unusable(Exception):
    """A model cannot be continued in this way."""


class Decoding(Protocol):
    """A batch on its way: ``logits`` (rows, vocabulary) after the last token of every row."""

    logits: Tensor

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may come more than once."""
        ...

    def advance(self, tokens: Tensor) -> None:
        """One more token for each row, (rows,)."""
        ...


class Cached:
    """Prompts are computed once, then one token a row at a time."""

    def __init__(self, model: Any, prompts: Prompts, pad_token_id: int, *, padded: bool) -> None:
        """Raises Unusable where the model gives no cache whose rows can be chosen."""
        device = next(model.parameters()).device
        self._model, self._named, self._padded = model, _parameters(model), padded
        key = next((key for key in ("past_key_values", "cache_params") if key in self._named), None)
        if key is None:
            raise Unusable("takes no cache")
        self.key = key  # the model's word for its cache
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), pad_token_id)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):  # all prompts end in the same column
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, self.mask = ids.to(device), mask.to(device)
        outputs = self._forward(ids, (self.mask.cumsum(-1) - 1).clamp(min=0))
        made = getattr(outputs, key, None)
        if not isinstance(made, Cache):
            raise Unusable(f"gives a {type(made).__name__} for a cache")
        self.cache: Any = made
        self.logits = outputs.logits[:, -1]

    def _forward(self, ids: Tensor, position_ids: Tensor, **cache: Any) -> Any:
        """Mask and positions are given where there is padding; otherwise the model is left to what it was trained with
        (recurrent ones take a mask for one of this step's tokens)."""
        given: dict[str, Any] = {"attention_mask": self.mask, "position_ids": position_ids} if self._padded else {}
        if "logits_to_keep" in self._named:
            given["logits_to_keep"] = 1
        return self._model(input_ids=ids, use_cache=True, **given, **cache)

    def select(self, rows: Tensor) -> None:
        """See Decoding."""
        self.cache.reorder_cache(rows)
        self.mask, self.logits = self.mask[rows], self.logits[rows]

    def advance(self, tokens: Tensor) -> None:
        """See Decoding."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], 1)], dim=-1)
        position = self.mask.sum(-1, keepdim=True) - 1
        self.logits = self._forward(tokens.unsqueeze(-1), position, **{self.key: self.cache}).logits[:, -1]


class Recomputed:
    """Whole sequences at every step, padded behind: the cost of a response grows with the square of its length."""

    def __init__(self, model: Any, prompts: Prompts, pad_token_id: int) -> None:
        device = next(model.parameters()).device
        self._model, self._pad = model, pad_token_id
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._ids = torch.full((len(prompts), int(self._lengths.max())), pad_token_id, device=device)
        for row, prompt in enumerate(prompts):
            self._ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self.logits = self._forward()

    def _forward(self) -> Tensor:
        mask = (torch.arange(self._ids.shape[1], device=self._ids.device) < self._lengths.unsqueeze(-1)).long()
        logits: Tensor = self._model(input_ids=self._ids, attention_mask=mask, use_cache=False).logits
        return logits[torch.arange(len(self._ids), device=self._ids.device), self._lengths - 1]

    def select(self, rows: Tensor) -> None:
        """See Decoding."""
        self._lengths, self.logits = self._lengths[rows], self.logits[rows]
        self._ids = self._ids[rows, : int(self._lengths.max())]

    def advance(self, tokens: Tensor) -> None:
        """See Decoding."""
        if int(self._lengths.max()) == self._ids.shape[1]:
            self._ids = torch.cat([self._ids, self._ids.new_full((len(self._ids), 1), self._pad)], dim=-1)
        self._ids[torch.arange(len(self._ids), device=self._ids.device), self._lengths] = tokens
        self._lengths = self._lengths + 1
        self.logits = self._forward()


def start(way: Way, model: Any, prompts: Prompts, pad_token_id: int, room: int) -> Decoding:
    """Begin with these prompts, each at least one token long, behind which ``room`` tokens are fed at most."""
    if way is Way.RECOMPUTED:
        return Recomputed(model, prompts, pad_token_id)
    if way in (Way.STATIC, Way.GRAPHED):
        from alp.rollout.static import Preallocated

        return Preallocated(model, prompts, pad_token_id, room=room, graphs=way is Way.GRAPHED)
    return Cached(model, prompts, pad_token_id, padded=way is Way.PADDED)


def batches(way: Way, lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which prompts are continued together, at most ``size`` at a time, by their places."""
    places = list(range(len(lengths)))
    if way is not Way.BY_LENGTH:
        return [places[begin : begin + size] for begin in range(0, len(places), size)]
    groups: dict[int, list[int]] = {}
    for place in places:
        groups.setdefault(lengths[place], []).append(place)
    return [group[begin : begin + size] for group in groups.values() for begin in range(0, len(group), size)]


# ---- the trial -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """Prompts of several lengths, what is fed behind each, and the log-probs (steps + 1, vocabulary) that plain
    forwards give after the prompt and after each of those tokens."""

    prompts: list[list[int]]
    fed: Tensor
    expected: list[Tensor]


@torch.no_grad()
def choose(model: Any, pad_token_id: int = 0, *, static: bool = False) -> Way:
    """The fastest way that gives what plain forwards give, found on random tokens; the model is in evaluation mode.

    Recomputing differs from plain forwards by padding and batch alone: what it differs is the model's rounding, and no
    other way may differ by much more. The log says why a way was left. ``static``: one with a cache of fixed size is
    among them, first. Raises Unusable where padding changes a sequence, so that the trainer's own batches would.
    """
    trial = _trial(model, pad_token_id)
    floor, ceiling = _SAME.get(next(model.parameters()).dtype, _SAME_HALF)
    rounding = _gap(Way.RECOMPUTED, model, trial, pad_token_id)
    if not rounding <= ceiling:
        raise Unusable(f"padding behind a sequence changes it: mean log-prob difference {rounding:.2g}")
    fixed: tuple[Way, ...] = (Way.GRAPHED if trial.fed.is_cuda else Way.STATIC,) if static else ()
    for way in (*fixed, Way.PADDED, Way.BY_LENGTH):
        try:
            gap = _gap(way, model, trial, pad_token_id)
        except Exception as error:  # whatever a model's own code raises when it is asked for what it cannot do
            logger.info("%s: not with a %s: %s", type(model).__name__, way, reason(error))
            continue
        if gap <= max(floor, _TIMES * rounding):
            return way
        logger.info("%s: not with a %s: mean log-prob difference %.2g", type(model).__name__, way, gap)
    return Way.RECOMPUTED


def _trial(model: Any, pad_token_id: int) -> _Trial:
    """Padding tokens are among those fed: some models count positions without them, wherever they stand."""
    config = model.config.get_text_config(decoder=True)
    vocabulary, pad = int(config.vocab_size), getattr(config, "pad_token_id", None)
    random = stream("trial of decoding")
    lengths = (*_TRIAL_PROMPTS, *[_TRIAL_STEPS] * len(_TRIAL_PROMPTS))
    drawn = [random.integers(min(vocabulary, 1000), size=length).tolist() for length in lengths]
    prompts, fed = drawn[: len(_TRIAL_PROMPTS)], torch.tensor(drawn[len(_TRIAL_PROMPTS) :])
    fed[:, 1] = pad_token_id
    if isinstance(pad, int) and 0 <= pad < vocabulary:
        fed[:, 3] = pad
    device = next(model.parameters()).device
    expected = []
    for prompt, behind in zip(prompts, fed.tolist(), strict=True):
        row = torch.tensor([[*prompt, *behind]], device=device)
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
        expected.append(logits[0, len(prompt) - 1 :].float().log_softmax(-1))
    return _Trial(prompts, fed.to(device), expected)


def _gap(way: Way, model: Any, trial: _Trial, pad_token_id: int) -> float:
    """Largest mean |log-prob difference| of one row after one token; on the way every prompt is doubled, as samples of
    one prompt are, and half of the rows are dropped."""
    largest = 0.0
    for places in batches(way, [len(prompt) for prompt in trial.prompts], len(trial.prompts)):
        decoding = start(way, model, [trial.prompts[place] for place in places], pad_token_id, _TRIAL_STEPS)
        rows = torch.tensor(places, device=trial.fed.device).repeat(2)
        decoding.select(torch.arange(len(places), device=trial.fed.device).repeat(2))
        for step in range(_TRIAL_STEPS + 1):
            log_probs = decoding.logits.float().log_softmax(-1)
            expected = torch.stack([trial.expected[place][step] for place in rows.tolist()])
            gap = (log_probs - expected).abs().nan_to_num(nan=torch.inf).mean(-1).max()
            largest = max(largest, float(gap))
            if step == _TRIAL_STEPS:
                break
            if step == 1:
                kept = torch.arange(len(rows), device=rows.device)[1::2]
                decoding.select(kept)
                rows = rows[kept]
            decoding.advance(trial.fed[rows, step])
    return largest


def _parameters(model: Any) -> frozenset[str]:
    """Names that the model's forward takes."""
    return frozenset(inspect.signature(model.forward).parameters)
