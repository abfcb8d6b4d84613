"""Unbiased pass@k. Numpy alone."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@overload
def pass_at_k(samples: int, correct: int, k: int) -> float: ...
@overload
def pass_at_k(samples: int, correct: NDArray[np.integer[Any]], k: int) -> Floats: ...
def pass_at_k(samples: int, correct: NDArray[np.integer[Any]] | int, k: int) -> Floats | float:
    """Unbiased chance that one of ``k`` samples is right, per problem; same shape as ``correct``, a float for one
    problem.

    1 - C(n - c, k) / C(n, k) with n = ``samples`` and c = ``correct`` (Chen et al. 2021, arXiv 2107.03374), as the
    product of 1 - k / i over i = n - c + 1 ... n: no binomial is ever formed, so nothing overflows. Raises ValueError
    unless all are whole numbers, 1 <= k <= n and 0 <= c <= n.
    """
    right = np.asarray(correct)
    for name, value in {"samples": samples, "k": k, "correct": right}.items():
        if np.asarray(value).dtype.kind not in "iu":
            raise ValueError(f"{name} must be whole numbers, got {value!r}")
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} must lie in 1 ... {samples}, the samples per problem")
    if right.size and (right.min() < 0 or right.max() > samples):
        raise ValueError(f"correct must lie in 0 ... {samples}, the samples per problem")
    factors = 1 - k / np.arange(samples, 0, -1)  # i = n, n - 1, ... 1
    all_wrong = np.concatenate(
        [[1.0], np.cumprod(factors)]
    )  # by c; exactly 0 from i = k on, where fewer than k are wrong
    estimate: Floats = 1 - all_wrong[right]
    return float(estimate) if right.ndim == 0 else estimate


def powers_of_two(samples: int) -> list[int]:
    """The k of the tables: 1, 2, 4 … up to ``samples``. Raises ValueError where there is no sample."""
    if samples < 1:
        raise ValueError(f"samples = {samples}: pass@k needs at least one sample per problem")
    return [2**power for power in range(samples.bit_length())]
