"""A file that was read, checked and reduced to its valid tokens: what cannot be meant is refused in one line, what is
odd is named and, where it is no log-prob at all, set aside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alp.diagnosis.dumps import LOG_PROBS, OWN, PLACEHOLDER, Dump, Floats, Ints, Raw, placeholders
from alp.errors import UserError
from alp.rendering.numbers import share, significant

POSITIVE = 1e-3  # log-probs may exceed 0 by this much: the rounding of a log-softmax in bfloat16
MIXED = 0.25  # and by this much where a logit and its normaliser have different precisions
LOWEST, FILLER = -1000.0, -100.0  # no softmax gives less than the first; the second exactly is what some write for none
MOST_FILLERS = 0.1  # of a field's valid tokens: with more, what is left is no picture of the file
WHOLE = 2.0**53  # from here on float64 skips whole numbers


def check(raw: Raw) -> Dump:
    """Refuse what cannot be meant, and keep the valid tokens. Raises :class:`UserError` with place and field."""
    _spread_advantages(raw)
    lengths, starts = _check_lengths(raw)
    mask = _check_mask(raw, starts)
    notes = [*raw.notes, *_drop_empty(raw, mask)]
    policies = [field for field in LOG_PROBS if field in raw.tokens]
    for field in policies:
        if field in raw.whole:
            raise UserError(
                f"{raw.names[field]}: every value is a whole number, as in token ids or a mask: log-probs expected"
            )
    mask, set_aside = _set_aside(raw, policies, mask, starts)
    notes += set_aside
    for field in raw.tokens:
        if field not in ("response_mask", *policies):
            _check_finite(raw, field, mask, starts)
    for field in policies:
        notes += _check_log_probs(raw, field, mask, starts)
    notes += _placeholders(raw, policies, mask, starts)
    notes += _turned(raw, mask)
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
    return Dump(tokens, counts[rows], rows, steps, len(lengths), raw.place, raw.unread, tuple(notes), source)


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


def _drop_empty(raw: Raw, mask: NDArray[np.bool_]) -> list[str]:
    """Leave out policies without a single number on a valid token, as long as another is left."""
    empty = [field for field in LOG_PROBS if field in raw.tokens and not np.isfinite(raw.tokens[field][mask]).any()]
    if not mask.any() or len(empty) == sum(field in raw.tokens for field in LOG_PROBS):
        return []
    for field in empty:
        del raw.tokens[field], raw.lengths[field]
    return [f"{raw.names[field]} is null, NaN or infinite on every valid token: left out" for field in empty]


def _set_aside(
    raw: Raw, policies: list[str], mask: NDArray[np.bool_], starts: Ints
) -> tuple[NDArray[np.bool_], list[str]]:
    """The mask without tokens that hold a filler in any policy, and a sentence for each kind of filler. Raises
    :class:`UserError` where they are too many."""
    left, notes = mask.copy(), []
    for field in policies:
        values = raw.tokens[field]
        odd = mask & (~np.isfinite(values) | (values <= LOWEST) | (values == FILLER))
        if not odd.any():
            continue
        place, part = _where(raw, field, int(np.argmax(odd)), starts), odd.sum() / mask.sum()
        if part > MOST_FILLERS:
            raise UserError(
                f"{place}: {_say(values[odd][0])} on a valid token (its mask is 1), and {share(float(part))} % of them"
                " are no log-probs"
            )
        left &= ~odd
        kinds, counts = np.unique([_say(value) for value in values[odd]], return_counts=True)
        for kind, count in sorted(zip(kinds.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])[:3]:
            where = _where(raw, field, int(np.argmax(odd & _equal(values, kind))), starts)
            notes.append(
                f"{raw.names[field]}: {kind} on {count} of {int(mask.sum())} valid tokens"
                f" ({share(count / int(mask.sum()))} %), first at {where}: no log-prob, these tokens are set aside"
            )
    return left, notes


def _equal(values: Floats, kind: str) -> NDArray[np.bool_]:
    """Where values are those that :func:`_say` calls so."""
    return np.isnan(values) if kind.startswith("NaN") else values == float(kind)


def _check_log_probs(raw: Raw, field: str, mask: NDArray[np.bool_], starts: Ints) -> list[str]:
    """Log-probs are at most 0, but for what mixed precision makes of them; the two usual mistakes are called by their
    names. Raises :class:`UserError`."""
    values = raw.tokens[field]
    above = mask & (values > POSITIVE)
    if not above.any():
        return []
    token = int(np.argmax(above))
    lowest, highest, part = values[mask].min(), values[mask].max(), above.sum() / mask.sum()
    if lowest < 0 and highest <= MIXED and part <= 0.5:
        return [
            f"{raw.names[field]}: up to +{significant(float(highest))} on {share(float(part))} % of the valid tokens,"
            f" first at {_where(raw, field, token, starts)}: a logit minus a log-sum-exp of another precision (bfloat16"
            " rounds logits of 16 to 32 by up to 0.06): take the log-softmax in float32"
        ]
    if lowest >= 0 and highest <= 1:
        advice = "all values lie in [0, 1] like probabilities: dump their logarithms"
    elif lowest >= 0:
        advice = "no value is negative, as if the sign were changed: dump log-probs, not negative log-likelihoods"
    else:
        advice = "a log-probability is at most 0"
    raise UserError(f"{_where(raw, field, token, starts)}: {_say(values[token])} is positive; {advice}")


def _placeholders(raw: Raw, policies: list[str], mask: NDArray[np.bool_], starts: Ints) -> list[str]:
    """Exact zeros of one policy where the other is far from them."""
    notes = []
    if len(policies) < 2:
        return []
    for field, other in ((policies[0], policies[1]), (policies[1], policies[0])):
        odd = mask & placeholders(raw.tokens[field], raw.tokens[other])
        if odd.any():
            notes.append(
                f"{raw.names[field]}: 0.0 on {int(odd.sum())} of {int(mask.sum())} valid tokens"
                f" ({share(float(odd.sum() / mask.sum()))} %) where {raw.names[other]} is below {PLACEHOLDER}, first at"
                f" {_where(raw, field, int(np.argmax(odd)), starts)}: placeholders, and they are in every figure"
            )
    return notes


def _turned(raw: Raw, mask: NDArray[np.bool_]) -> list[str]:
    """Whether arrays look transposed: in every place of the rows the valid tokens end once, in the rows they do not."""
    lengths = raw.lengths["response_mask"]
    if len(lengths) < 4 or lengths[0] < 4 or (lengths != lengths[0]).any():
        return []
    grid = mask.reshape(len(lengths), -1).astype(np.int8)
    rows, columns = np.diff(grid, axis=1), np.diff(grid, axis=0)
    if (columns <= 0).all() and (rows > 0).any() and (rows < 0).any():
        return ["the mask reads as if its rows were tokens and its columns sequences: were the arrays transposed?"]
    return []


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
