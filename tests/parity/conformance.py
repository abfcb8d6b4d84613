"""The table of readings in docs/parity.md, and the vectors in docs/vectors.

``python -m tests.parity.conformance`` writes the vectors anew and prints the table."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alp.configuration import compose
from alp.policy import Method
from tests.configuration.test_published import inputs, preset, sample, value_and_gradient
from tests.policy.published import Sample

from .our_side import of_method
from .readings import READINGS, Reading, adjusted, read
from .realistic import realistic

VECTORS = Path(__file__).parents[2] / "docs" / "vectors" / "corrections.json"
SEED = 2
HEADER = "| trainer | term | preset | differs by | gradient | but for a factor |\n|---|---|---|---|---|---|"


@cache
def gradients(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a reading on the realistic batch: theirs, the preset's, and of our method that is the same."""
    reading = READINGS[number]
    case, advantages = realistic()
    method = preset(reading.preset)
    ours = [of_method(one, case, advantages).gradient for one in (method, adjusted(reading, method))]
    return read(reading, case, advantages)[1], ours[0], ours[1]


def size(theirs: Tensor, ours: Tensor) -> tuple[float, float]:
    """‖theirs − ours‖ / ‖ours‖, and the same after ours was multiplied with the factor that fits best."""
    factor = (theirs * ours).sum() / ours.square().sum()
    return tuple(float((theirs - scaled).norm() / scaled.norm()) for scaled in (ours, factor * ours))  # type: ignore[return-value]


def row(number: int, reading: Reading) -> str:
    """A line of the table."""
    theirs, ours, _ = gradients(number)
    figures = [f"{100 * part:.2g} %" if part > 1e-9 else "0" for part in size(theirs, ours)]
    words = reading.differs or "–"
    return f"| {reading.trainer} | {reading.term} | `{reading.preset}` | {words} | {figures[0]} | {figures[1]} |"


def table() -> str:
    """All of them."""
    return "\n".join([HEADER, *(row(number, reading) for number, reading in enumerate(READINGS))])


def methods() -> dict[str, Method]:
    """Every preset that is a function of log-probs alone."""
    loaded = {name: preset(name) for name in compose.choices("method")}
    return {name: method for name, method in loaded.items() if method.perturbation is None}


def batch() -> dict[str, Any]:
    """The inputs of the vectors, 0 where the mask is 0."""
    one: Sample = sample(SEED)
    plain: dict[str, Any] = {"response_mask": [[int(keep) for keep in row] for row in one.mask]}
    names = {"log_probs": one.current, "old_log_probs": one.old, "rollout_log_probs": one.rollout}
    for name, values in names.items():
        plain[name] = [
            [value if keep else 0.0 for value, keep in zip(row, mask, strict=True)]
            for row, mask in zip(values, one.mask, strict=True)
        ]
    return plain | {"advantages": one.advantages, "rewards": one.rewards, "turn_ids": one.turns}


def vectors() -> dict[str, Any]:
    """What the file holds: the inputs, and of each preset the loss of the mini-batch and its gradient in log_probs."""
    expected = {}
    for name, method in methods().items():
        value, gradient = value_and_gradient(method, inputs(sample(SEED)))
        expected[name] = {"loss": value, "gradient": gradient.tolist()}
    return {"dtype": "float64", "inputs": batch(), "presets": expected}


if __name__ == "__main__":
    torch.set_num_threads(1)
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(json.dumps(vectors()) + "\n", encoding="utf-8")
    print(table())
