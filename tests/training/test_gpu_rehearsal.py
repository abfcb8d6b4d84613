"""``make gpu`` at toy size: every part runs here, so that the one run on a card is not lost to a mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import gpu

SHORT = [part for part in gpu.PARTS if part not in (gpu.tests, gpu.vllm_engine, gpu.update)]


@pytest.mark.parametrize("part", [*SHORT, pytest.param(gpu.update, marks=pytest.mark.long)])
def test_a_part_runs(part: Callable[[gpu.Run], dict[str, Any]]) -> None:
    assert part(gpu.Run(torch.device("cpu"), 60.0))


@pytest.mark.long
def test_the_part_of_vllm_runs() -> None:
    assert gpu.vllm_engine(gpu.Run(torch.device("cpu"), 60.0))


def test_its_tests_are_there() -> None:
    root = gpu.Path(gpu.__file__).parents[1]
    assert all((root / name).is_file() for name in gpu.TESTS)
