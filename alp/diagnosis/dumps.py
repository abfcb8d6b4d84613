"""Log-probs that somebody else's trainer dumped, checked and reduced to their valid tokens.

Formats (by suffix), field by field, are in docs/diagnose.md; :mod:`alp.diagnosis.dump_formats` reads them. Every fault
of a file is a :class:`UserError` that says where and in which field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
PLACEHOLDER = -0.1
OWN = "log-probs under our field names"
SAMPLED = ("old_log_probs", "rollout_log_probs")  # the two policies of the weights that sampled


@dataclass
class Raw:
    """A file as it was read: every token of every sequence, one sequence after another, masked ones too.

    ``tokens`` holds flat values per field and ``lengths`` (sequences,) their tokens per sequence; ``steps`` is
    (sequences,). ``place`` says for people where a sequence stands in the file, ``names`` how each field is called
    there. ``whole`` are the fields whose every value was an integer or a boolean. ``source`` says who wrote it and
    ``notes`` what was left out. ``ids``, where they are known: the token ids of each whole sequence, its prompt before
    the tokens of the fields.
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
    ids: list[Any] | None = None


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
        """All sequences, from the shortest on, padded in blocks of at most ``cells`` places (or one sequence) per
        field: neighbours are of like lengths, and little is padding."""
        order = np.argsort(self.lengths, kind="stable")
        starts, start = np.cumsum(self.lengths) - self.lengths, 0
        while start < len(order):
            end = start + 1
            while end < len(order) and int(self.lengths[order[end]]) * (end + 1 - start) <= cells:
                end += 1
            rows = order[start:end]
            places = np.arange(int(self.lengths[rows[-1]]))
            mask = places < self.lengths[rows][:, None]
            index = (starts[rows][:, None] + places)[mask]
            fields = {}
            for field, values in self.tokens.items():
                fields[field] = np.zeros(mask.shape)
                fields[field][mask] = values[index]
            yield Block(mask, fields)
            start = end


def placeholders(policy: Floats, other: Floats) -> NDArray[np.bool_]:
    """Where an exact 0 is no log-prob: the other policy is below :data:`PLACEHOLDER` there."""
    found: NDArray[np.bool_] = (policy == 0) & (other < PLACEHOLDER)
    return found


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


def spelled(value: Any) -> Any:
    """A mask as numbers where it is spelled in words (``"true"``, ``"0"``) or as one text of 0 and 1; else as it is."""
    words = list(value) if isinstance(value, str) else value
    if not (isinstance(words, list) and any(isinstance(word, str) for word in words)):
        return value
    known = [_WORDS.get(word.strip().lower()) if isinstance(word, str) else word for word in words]
    return value if None in known else known


_WORDS = {"0": 0, "1": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1}
