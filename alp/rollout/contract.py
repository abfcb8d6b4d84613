"""What tasks and engines owe training and evaluation, checked once, where it enters: problems, prompts, completions,
rewards.

What a task owes is the user's to mend (UserError); what an engine owes is not (RuntimeError).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alp.configuration.model_schema import Model
from alp.errors import UserError, printable
from alp.models import text_config
from alp.rollout import prompts
from alp.rollout.engine import Completion, Request, Sampling
from alp.rollout.stops import closes
from alp.tasks.task import Problem, Task

logger = logging.getLogger(__name__)
_ROUNDING = 1e-4  # of a log-prob: a certain token's may come out a little above 0
_SHOWN = 80  # characters of an id or a value in a message


@dataclass(frozen=True)
class Limits:
    """Of a model: ids it has embeddings for, and tokens of prompt and response together, None where it names no
    bound."""

    vocabulary: int
    positions: int | None


def limits_of(folder: Path, tokenizer: PreTrainedTokenizerBase, longest: int | None = None) -> Limits:
    """Limits of a saved model from its configuration; ``longest`` is a tighter bound on tokens that the engine is
    given."""
    text = text_config(folder)
    trained = getattr(text, "max_position_embeddings", None)
    bounds = [bound for bound in (trained, longest) if isinstance(bound, int) and bound > 0]
    return Limits(int(getattr(text, "vocab_size", 0) or len(tokenizer)), min(bounds, default=None))


def check_prompts(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    sets: Mapping[str, Sequence[Problem]],
    *,
    model: Model,
    limits: Limits,
    max_new_tokens: int,
) -> None:
    """Refuse, before anything is sampled, problems that cannot be asked as they are. Raises UserError naming set,
    problem and reason."""
    for name, problems in sets.items():
        if not problems:
            raise UserError(f"task: the set '{name}' holds no problem")
        texts = [prompts.prompt_text(tokenizer, task, problem, model) for problem in problems]
        for problem, text in zip(problems, texts, strict=True):
            where = f"task: problem '{_short(problem.id)}' of {name}"
            if not text.strip() or not task.prompt(problem).strip():
                raise UserError(f"{where}: its prompt is empty")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{where}: its prompt holds {text[error.start]!a}, half a character that is no text"
                ) from None
        doubtful = {character for character in set().union(*texts) if _unknown(tokenizer, _ids(tokenizer, character))}
        lengths: list[int] = []
        for problem, text in zip(problems, texts, strict=True):
            where = f"task: problem '{_short(problem.id)}' of {name}"
            if (lost := _lost(tokenizer, text, doubtful)) is not None:
                raise UserError(f"{where}: its prompt holds {lost}, which the model's tokenizer does not know")
            ids = prompts.encode(tokenizer, text, model)
            _check_ids(where, ids, limits)
            lengths.append(len(ids))
        _check_lengths(name, problems, lengths, limits, max_new_tokens)


def short_enough(
    tokenizer: PreTrainedTokenizerBase, task: Task, name: str, problems: list[Problem], model: Model
) -> list[Problem]:
    """The problems of a set within ``model.max_prompt_tokens``; a line of the log counts the others. Raises UserError
    where none is."""
    longest = model.max_prompt_tokens
    if longest is None or not problems:
        return problems
    kept = [problem for problem in problems if len(prompts.prompt_ids(tokenizer, task, problem, model)) <= longest]
    if not kept:
        raise UserError(f"model.max_prompt_tokens: no problem of {name} has a prompt of at most {longest} tokens")
    if left := len(problems) - len(kept):
        logger.info(
            "%s: %d of %d problems are left out: prompts of over %d tokens (model.max_prompt_tokens)",
            name,
            left,
            len(problems),
            longest,
        )
    return kept


def _check_lengths(
    name: str, problems: Sequence[Problem], lengths: list[int], limits: Limits, max_new_tokens: int
) -> None:
    """Every prompt with its response within the model's and the engine's limit."""
    if limits.positions is None:
        return
    room = limits.positions - max_new_tokens
    over = [place for place, length in enumerate(lengths) if length > room]
    if not over:
        return
    longest = max(over, key=lambda place: lengths[place])
    mend = (
        f"lower max_new_tokens, or leave them out with model.max_prompt_tokens={room}"
        if min(lengths) <= room
        else "lower max_new_tokens"
    )
    raise UserError(
        f"task: {len(over)} of {len(problems)} prompts of {name} pass the limit of {limits.positions} tokens together"
        f" with {max_new_tokens} new ones; the longest, of problem '{_short(problems[longest].id)}', has"
        f" {lengths[longest]} tokens; {mend}"
    )


def _check_ids(where: str, ids: list[int], limits: Limits) -> None:
    if not ids:
        raise UserError(f"{where}: its prompt has no token")
    if max(ids) >= limits.vocabulary:
        raise UserError(
            f"{where}: its prompt has the token {max(ids)}, and the model knows {limits.vocabulary}: not its own"
            " tokenizer?"
        )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text by itself; none where the tokenizer refuses it (one without a token for what it does not know
    raises)."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False))
    except Exception:  # the library in Rust has no class of its own for it
        return []


def _unknown(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bool:
    """Whether a text came out as nothing, or as the token of what is not known (which some models have for the end
    token as well)."""
    unknown = tokenizer.unk_token_id
    return not ids or (
        unknown not in (None, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) and unknown in ids
    )


def _lost(tokenizer: PreTrainedTokenizerBase, text: str, doubtful: set[str]) -> str | None:
    """A character of the text that its ids know nothing of. ``doubtful`` are those without a token when they stand
    alone."""
    doubted, ids = [character for character in dict.fromkeys(text) if character in doubtful], _ids(tokenizer, text)
    if _unknown(tokenizer, ids):
        mended = [
            character for character in doubted if not _unknown(tokenizer, _ids(tokenizer, text.replace(character, "")))
        ]
        culprits = [*mended, *doubted][:1]
        return _named(culprits[0]) if culprits else "a text that it has no tokens for"
    lost = (character for character in doubted if _ids(tokenizer, text.replace(character, "")) == ids)
    return next(map(_named, lost), None)


def _named(character: str) -> str:
    return f"'{printable(character)}' (U+{ord(character):04X})"


def check_completions(
    completions: list[Completion], requests: list[Request], sampling: Sampling, vocabulary: int | None
) -> None:
    """Raises RuntimeError, naming what is wrong, unless an engine answered every request as ``alp.rollout.engine``
    says."""
    if len(completions) != len(requests):
        raise RuntimeError(f"engine: {len(completions)} completions of {len(requests)} requests")
    ends = set(sampling.end_token_ids)
    for number, (item, request) in enumerate(zip(completions, requests, strict=True)):
        count, most = len(item.token_ids), request.most(sampling)
        if not 1 <= count <= most or len(item.log_probs) != count:
            raise RuntimeError(
                f"engine: completion {number} has {count} tokens and {len(item.log_probs)} log-probs; 1 to"
                f" {most} of both"
            )
        if item.finished != (item.token_ids[-1] in ends) or not ends.isdisjoint(item.token_ids[:-1]):
            raise RuntimeError(
                f"engine: completion {number} is {'' if item.finished else 'not '}finished, against its tokens"
            )
        if not item.finished and count < most and not closes(item, sampling):
            raise RuntimeError(
                f"engine: completion {number} stopped after {count} of {most} tokens without an end token"
            )
    ids = np.asarray(list(chain.from_iterable(item.token_ids for item in completions)))
    if len(ids) and (
        ids.dtype.kind not in "iu" or ids.min() < 0 or (vocabulary is not None and ids.max() >= vocabulary)
    ):
        raise RuntimeError(
            f"engine: token ids must be integers from 0 to {'…' if vocabulary is None else vocabulary - 1}"
        )
    values = np.asarray(list(chain.from_iterable(item.log_probs for item in completions)))
    if len(values) and (values.dtype.kind != "f" or not np.isfinite(values).all() or values.max() > _ROUNDING):
        raise RuntimeError("engine: log-probs must be finite and not above 0")


def graded(task: Task, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
    """The task's rewards as floats. Raises UserError unless there is one finite number in [0, 1] for each response."""
    rewards: Any = task.grade_all(problems, responses)
    if not isinstance(rewards, list | tuple | np.ndarray) or len(rewards) != len(problems):
        size = len(rewards) if isinstance(rewards, list | tuple | np.ndarray) else type(rewards).__name__
        raise UserError(
            f"task: grade_all gave {size} for {len(problems)} responses; a list of one reward each is needed"
        )
    return [_reward(value, problem) for value, problem in zip(rewards, problems, strict=True)]


def _reward(value: Any, problem: Problem) -> float:
    number = float(value) if isinstance(value, Real | np.bool_) else math.nan
    if not 0.0 <= number <= 1.0:
        raise UserError(
            f"task: the reward of a response to problem '{_short(problem.id)}' is {_short(repr(value))}; a number from"
            " 0 to 1 is needed"
        )
    return number


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
