"""Our reading of other trainers beside our presets, the table that shows it, and the vectors for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.configuration.test_published import sample
from tests.policy.published import PUBLISHED

from .conformance import SEED, VECTORS, batch, gradients, methods, size, table, vectors
from .readings import READINGS

DOCUMENT = Path(__file__).parents[2] / "docs" / "parity.md"
every_reading = pytest.mark.parametrize("number", range(len(READINGS)), ids=[f"{r.trainer}-{r.term}" for r in READINGS])


@every_reading
def test_a_reading_is_our_preset_or_differs_by_what_is_said(number: int) -> None:
    """With the named settings changed the two are one: the difference is that, and nothing else."""
    reading = READINGS[number]
    theirs, ours, adjusted = gradients(number)
    assert bool(reading.differs) == bool(reading.same_with)
    assert (size(theirs, ours)[0] > 1e-9) == bool(reading.differs)
    assert torch.allclose(theirs, adjusted, rtol=1e-9, atol=1e-15)


def test_the_document_holds_the_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8")


def test_the_vectors_are_what_we_compute() -> None:
    """What others compare with is what this code gives, to the last digits of another machine's exponentials."""
    held, ours = json.loads(VECTORS.read_text(encoding="utf-8")), vectors()
    assert held["inputs"] == batch()
    assert held["presets"].keys() == ours["presets"].keys() == methods().keys()
    for name, expected in held["presets"].items():
        assert ours["presets"][name]["loss"] == pytest.approx(expected["loss"], rel=1e-12, abs=1e-15), name
        gradient = torch.tensor(expected["gradient"], dtype=torch.float64)
        assert torch.allclose(
            torch.tensor(ours["presets"][name]["gradient"], dtype=torch.float64), gradient, 1e-11, 1e-15
        )


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_vectors_are_what_the_references_compute(name: str) -> None:
    """By the plain Python floats that share no code with the package."""
    held = json.loads(VECTORS.read_text(encoding="utf-8"))["presets"][name]
    value, gradient = PUBLISHED[name](sample(SEED))
    assert held["loss"] == pytest.approx(value, rel=1e-10, abs=1e-12)
    theirs, ours = (torch.tensor(one, dtype=torch.float64) for one in (held["gradient"], gradient))
    assert torch.allclose(theirs, ours, rtol=1e-10, atol=1e-13)
