"""Log-probs that somebody else's trainer dumped, checked and reduced to their valid tokens.

Formats (by suffix), field by field, are in docs/diagnose.md; :mod:`alp.diagnosis.dump_formats` reads them. Every fault
of a file is a :class:`UserError` that says where and in which field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alp.errors import UserError, nearest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FIELDS = (
    *("old_log_probs", "rollout_log_probs", "response_mask", "log_probs", "perturbed_log_probs"),
    *("advantages", "step", "turn_ids"),
)
LOG_PROBS = ("old_log_probs", "rollout_log_probs", "log_probs", "perturbed_log_probs")
OWN = "log-probs under our field names"
SAMPLED = ("old_log_probs", "rollout_log_probs")  # the two policies of the weights that sampled
POSITIVE = 1e-3  # log-probs may exceed 0 by this much: the rounding of a log-softmax in bfloat16
LOWEST = -1e6  # no softmax gives less: fillers like -1e30 on a valid token
WHOLE = 2.0**53  # from here on float64 skips whole numbers


@dataclass
class Raw:
    """A file as it was read: every token of every sequence, one sequence after another, masked ones too.

    ``tokens`` holds flat values per field and ``lengths`` (sequences,) their tokens per sequence; ``steps`` is
    (sequences,). ``place`` says for people where a sequence stands in the file, ``names`` how each field is called
    there. ``whole`` are the fields whose every value was an integer or a boolean. ``source`` says who wrote it and
    ``notes`` what was left out.
    """

    tokens: dict[str, Floats]
    lengths: dict[str, Ints]
    steps: Floats | None
    place: Callable[[int], str]
    names: Mapping[str, str]
    unread: tuple[str, ...] = ()
    whole: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    source: str = ""


class Block(NamedTuple):
    """Consecutive sequences padded to the longest of them: ``mask`` and every field (sequences, tokens)."""

    mask: NDArray[np.bool_]
    fields: dict[str, Floats]


@dataclass(frozen=True)
class Dump:
    """The valid tokens of a file, one sequence after another, without padding; sequences without any are left out.

    ``tokens`` holds (tokens,) values per field (``advantages`` and ``turn_ids`` too), ``lengths`` (sequences,) their
    counts, all at least 1; ``rows`` (sequences,) counts sequences of the file from 0, ``total`` is how many it has.
    ``steps`` (sequences,) if known. ``source`` and ``notes`` as in :class:`Raw`.
    """

    tokens: dict[str, Floats]
    lengths: Ints
    rows: Ints
    steps: Ints | None
    total: int
    place: Callable[[int], str]
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""

    def __contains__(self, field: str) -> bool:
        return field in self.tokens

    def difference(self, numerator: str, denominator: str) -> Floats:
        """Log-ratio of every token (tokens,)."""
        log_ratio: Floats = self.tokens[numerator] - self.tokens[denominator]
        return log_ratio

    def sums(self, values: Floats) -> Floats:
        """Σ over the tokens of each sequence, (sequences,)."""
        sums: Floats = np.add.reduceat(values, np.cumsum(self.lengths) - self.lengths)
        return sums

    def means(self, values: Floats) -> Floats:
        """Mean over the tokens of each sequence, (sequences,)."""
        means: Floats = self.sums(values) / self.lengths
        return means

    def by_step(self) -> Iterator[tuple[int, Dump]]:
        """Each step, ascending, with its sequences. Needs ``steps``."""
        assert self.steps is not None
        order = np.argsort(self.steps, kind="stable")
        starts = np.cumsum(self.lengths) - self.lengths
        for rows in np.split(order, np.flatnonzero(np.diff(self.steps[order])) + 1):
            chosen = np.concatenate([np.arange(starts[row], starts[row] + self.lengths[row]) for row in rows])
            tokens = {field: values[chosen] for field, values in self.tokens.items()}
            step = int(self.steps[rows[0]])
            yield step, Dump(tokens, self.lengths[rows], self.rows[rows], self.steps[rows], self.total, self.place)

    def blocks(self, cells: int) -> Iterator[Block]:
        """All sequences in order, padded in blocks of at most ``cells`` places (or one sequence) per field."""
        start = token = 0
        while start < len(self.lengths):
            end, longest = start, 0
            while end < len(self.lengths):
                longest = max(longest, int(self.lengths[end]))
                if end > start and longest * (end + 1 - start) > cells:
                    break
                end += 1
            lengths = self.lengths[start:end]
            mask = np.arange(lengths.max()) < lengths[:, None]
            fields = {}
            for field, values in self.tokens.items():
                fields[field] = np.zeros(mask.shape)
                fields[field][mask] = values[token : token + lengths.sum()]
            yield Block(mask, fields)
            start, token = end, token + int(lengths.sum())


def choose_fields(names: Iterable[str], wanted: Mapping[str, str], where: str = "") -> dict[str, str]:
    """Which fields of a file are read: field → name in the file. ``wanted`` maps every field to the name it should
    have.

    The mask and one policy's log-probs are needed. Others may be absent unless they were given another name on purpose,
    or a policy's seems to be misspelt; none may be there twice. ``where`` begins the message. Raises
    :class:`UserError`.
    """
    present = Counter(names)
    chosen = {}
    others = set(present) - set(wanted.values())
    for field, name in wanted.items():
        if present[name] > 1:
            raise UserError(f"{where}field '{name}' is there {present[name]} times")
        if name in present:
            chosen[field] = name
        elif field == "response_mask" or name != field or (field in SAMPLED and _close(name, others)):
            hint = f" (or say fields.{field}=<its name there>)" if name == field else f" (asked for by fields.{field})"
            raise UserError(f"{where}no field '{name}'{hint}{nearest(name, present)}")
    if not any(field in chosen for field in LOG_PROBS):
        name = wanted["rollout_log_probs"]
        raise UserError(
            f"{where}no log-probs: no field '{name}' (or say fields.rollout_log_probs=<its name there>)"
            f"{nearest(name, present)}"
        )
    return chosen


def _close(name: str, others: Iterable[str]) -> bool:
    return "did you mean" in nearest(name, others)


def check(raw: Raw) -> Dump:
    """Refuse what cannot be meant, and keep the valid tokens. Raises :class:`UserError` with place and field."""
    _spread_advantages(raw)
    lengths, starts = _check_lengths(raw)
    mask = _check_mask(raw, starts)
    for field in raw.tokens:
        if field != "response_mask":
            _check_finite(raw, field, mask, starts)
    for field in LOG_PROBS:
        if field in raw.tokens:
            if field in raw.whole:
                raise UserError(
                    f"{raw.names[field]}: every value is a whole number, as in token ids or a mask: log-probs expected"
                )
            _check_log_probs(raw, field, mask, starts)
    if "turn_ids" in raw.tokens:
        _check_turns(raw, mask, starts)
    counts = np.diff(np.concatenate([[0], np.cumsum(mask)])[np.concatenate([starts, [len(mask)]])])
    rows = np.flatnonzero(counts)
    if not rows.size:
        raise UserError(f"no valid token: {raw.names['response_mask']} is 0 everywhere in {len(lengths)} sequences")
    steps = None if raw.steps is None else _check_steps(raw, raw.steps)[rows]
    # field by field, so that never all of them exist twice
    tokens = {field: raw.tokens.pop(field)[mask] for field in list(raw.tokens) if field != "response_mask"}
    source = raw.source or OWN
    if steps is not None and (number := len(np.unique(steps))) > 1:
        source += f", {number} steps"
    return Dump(tokens, counts[rows], rows, steps, len(lengths), raw.place, raw.unread, raw.notes, source)


def _spread_advantages(raw: Raw) -> None:
    """One advantage per sequence, in a list or a dimension of its own, is repeated for the sequence's tokens."""
    given, lengths = raw.lengths.get("advantages"), raw.lengths["response_mask"]
    if given is not None and len(given) == len(lengths) and (given == 1).all():
        raw.tokens["advantages"] = np.repeat(raw.tokens["advantages"], lengths)
        raw.lengths["advantages"] = lengths


def _check_lengths(raw: Raw) -> tuple[Ints, Ints]:
    """Tokens per sequence and the place of each sequence's first, equal for all fields."""
    first = next(iter(raw.lengths))
    lengths = raw.lengths[first]
    for field, others in raw.lengths.items():
        if len(others) != len(lengths):
            raise UserError(f"{raw.names[field]} has {len(others)} sequences, {raw.names[first]} {len(lengths)}")
        for row in np.flatnonzero(others != lengths)[:1]:
            left, right = f"{raw.names[first]} has {lengths[row]} tokens", f"{raw.names[field]} {others[row]}"
            raise UserError(f"{raw.place(int(row))}: {left}, {right}: one value per token expected in each")
    if not len(lengths):
        raise UserError("the file holds no sequence")
    return lengths, np.cumsum(lengths) - lengths


def _where(raw: Raw, field: str, token: int, starts: Ints) -> str:
    row = int(np.searchsorted(starts, token, side="right")) - 1
    return f"{raw.place(row)}, {raw.names[field]}, token {token - starts[row]} (from 0)"


def _check_mask(raw: Raw, starts: Ints) -> NDArray[np.bool_]:
    values = raw.tokens["response_mask"]
    for token in np.flatnonzero((values != 0) & (values != 1))[:1]:
        raise UserError(f"{_where(raw, 'response_mask', int(token), starts)}: {_say(values[token])} is neither 0 nor 1")
    valid: NDArray[np.bool_] = values == 1
    return valid


def _check_finite(raw: Raw, field: str, mask: NDArray[np.bool_], starts: Ints) -> None:
    values = raw.tokens[field]
    for token in np.flatnonzero(mask & ~np.isfinite(values))[:1]:
        raise UserError(
            f"{_where(raw, field, int(token), starts)}: {_say(values[token])} on a valid token (its mask is 1)"
        )


def _check_log_probs(raw: Raw, field: str, mask: NDArray[np.bool_], starts: Ints) -> None:
    """Log-probs are at most 0 and not absurdly low; the two usual mistakes are called by their names."""
    values = raw.tokens[field]
    for token in np.flatnonzero(mask & (values < LOWEST))[:1]:
        raise UserError(
            f"{_where(raw, field, int(token), starts)}: {_say(values[token])} is below {LOWEST:g}: no token is that"
            " unlikely"
        )
    above = mask & (values > POSITIVE)
    if not above.any():
        return
    token = int(np.argmax(above))
    lowest, highest = values[mask].min(), values[mask].max()
    if lowest >= 0 and highest <= 1:
        advice = "all values lie in [0, 1] like probabilities: dump their logarithms"
    elif lowest >= 0:
        advice = "no value is negative, as if the sign were changed: dump log-probs, not negative log-likelihoods"
    else:
        advice = "a log-probability is at most 0"
    raise UserError(f"{_where(raw, field, token, starts)}: {_say(values[token])} is positive; {advice}")


def _check_turns(raw: Raw, mask: NDArray[np.bool_], starts: Ints) -> None:
    values = raw.tokens["turn_ids"]
    for token in np.flatnonzero(mask & ((values < 0) | (values >= WHOLE) | (values != np.floor(values))))[:1]:
        raise UserError(
            f"{_where(raw, 'turn_ids', int(token), starts)}: {_say(values[token])} is no turn: whole numbers from 0"
            " expected"
        )


def _check_steps(raw: Raw, steps: Floats) -> Ints:
    for row in np.flatnonzero(~((np.abs(steps) < WHOLE) & (steps == np.floor(steps))))[:1]:
        raise UserError(
            f"{raw.place(int(row))}, {raw.names['step']}: {_say(steps[row])} is no whole number of size below 2^53"
        )
    return steps.astype(np.int64)


def _say(value: float) -> str:
    return "NaN or null" if np.isnan(value) else f"{value:g}"
