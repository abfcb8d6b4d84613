"""The one contract of a reader of somebody else's dumps: how a record is recognised, and which sequences it holds.

A *record* is what a file is a series of: an object of a JSONL file, a row of a Parquet file, or the whole of an NPZ,
.pt or pickle file. A module per trainer defines its :class:`Native` kinds with that trainer's own field names; the rest
(files, folders, steps, checks) is common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alp.diagnosis.dumps import spelled
from alp.errors import UserError

Record = Mapping[str, Any]
Sequence = dict[str, Any]  # our field -> its values (tokens,), or one number for `step` and `advantages`


@dataclass(frozen=True, eq=False)
class Native:
    """One kind of file that a trainer writes.

    ``sequences`` yields those of a record: our field names, each with an array (tokens,) or a list, a number for
    ``step``, and nothing for what is not there; ``ids``, where they are known, are the token ids of the whole sequence,
    the last of which are the tokens of the other fields. None: the kind holds no log-probs, and ``advice`` says what to
    do.
    """

    trainer: str
    what: str
    recognises: Callable[[Record], bool]
    sequences: Callable[[Record], Iterator[Sequence]] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """Our field -> the trainer's, for messages."""
    advice: str = ""

    @property
    def name(self) -> str:
        """For people: ``verl rollout dump``."""
        return f"{self.trainer} {self.what}"


def has(record: Record, *names: str) -> bool:
    """Whether all of the fields are there and none is null."""
    return all(record.get(name) is not None for name in names)


def floats(values: Any, name: str) -> NDArray[np.float64]:
    """Numbers of a list, an array or a tensor as float64, its shape kept; null is NaN. Raises :class:`UserError`."""
    if hasattr(values, "detach"):  # a tensor, of a dtype that NumPy need not know
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(spelled(values), dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        raise UserError(f"{name}: a list of numbers expected") from None
    return array


def batch(record: Record, fields: Mapping[str, str], mask: NDArray[np.float64]) -> Iterator[Sequence]:
    """The rows of padded tensors (sequences, tokens): ``fields`` maps our fields to the record's, ``mask`` is the
    response mask. A field that the record lacks is left out. Raises :class:`UserError` for other shapes."""
    arrays = {ours: floats(record[name], name) for ours, name in fields.items() if record.get(name) is not None}
    for ours, array in arrays.items():
        if array.shape != mask.shape and not (ours == "advantages" and array.shape == mask.shape[:1]):
            turned = ": it looks transposed" if array.shape == mask.shape[::-1] else ""
            raise UserError(f"{fields[ours]} has shape {array.shape}, the mask {mask.shape}{turned}")
    for row in range(len(mask)):
        yield {"response_mask": mask[row], **{ours: array[row] for ours, array in arrays.items()}}
