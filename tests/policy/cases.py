"""Random inputs for the property tests, and comparisons against the plain-Python reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from .reference import Mask, Matrix

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
MARGIN = 1e-7  # closer than this to a clip or mask edge, rounding decides: such examples are left out
JUNK = (math.nan, -math.inf, math.inf, -1e4, 0.0, -1.5)

mild = st.floats(-3.0, 0.0)
wide = st.floats(-45.0, 0.0)
extreme = st.just(-1e4)


def log_prob_pairs(spread: str) -> st.SearchStrategy[tuple[float, float]]:
    """Two log-probs of one token: equal, close, far apart or (`spread="extreme"`) absurdly far apart."""
    close = [mild.map(lambda x: (x, x)), st.tuples(mild, mild)]
    if spread == "close":
        return st.one_of(close)
    return st.one_of([*close, st.tuples(wide, wide), st.tuples(extreme, mild), st.tuples(mild, extreme)])


@dataclass
class Case:
    """Two matrices of log-probs with junk at the masked positions, their mask, monotone turn ids, advantages."""

    numerator: Matrix
    denominator: Matrix
    mask: Mask
    turn_ids: list[list[int]]
    advantages: list[float]
    float_mask: bool

    @property
    def tokens(self) -> int:
        """Number of valid tokens."""
        return sum(sum(row) for row in self.mask)

    def tensors(self, *, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Numerator, denominator and mask as tensors; `grad` makes the numerator a leaf."""
        numerator = double(self.numerator).requires_grad_(grad)
        return numerator, double(self.denominator), self.mask_tensor()

    def mask_tensor(self) -> Tensor:
        """The mask, as bools or as floats."""
        mask = torch.tensor(self.mask)
        return mask.double() if self.float_mask else mask

    def rows(self, order: list[int]) -> Case:
        """The same case with its rows picked in this order."""
        return Case(
            [self.numerator[i] for i in order],
            [self.denominator[i] for i in order],
            [self.mask[i] for i in order],
            [self.turn_ids[i] for i in order],
            [self.advantages[i] for i in order],
            self.float_mask,
        )


def masks(rows: int, columns: int) -> st.SearchStrategy[Mask]:
    """Masks with holes, empty rows, full rows, or nothing at all."""
    holes = st.lists(st.booleans(), min_size=columns, max_size=columns)
    row = st.one_of(holes, st.just([True] * columns), st.just([False] * columns))
    return st.one_of(
        st.lists(row, min_size=rows, max_size=rows),
        st.lists(holes, min_size=rows, max_size=rows),
        st.just([[False] * columns for _ in range(rows)]),
    )


@st.composite
def cases(draw: st.DrawFn, spread: str = "extreme", some_valid: bool = False) -> Case:
    """Shapes 1..5 x 1..8; junk (NaN, infinities, absurd values, stray turn ids) wherever the mask is 0."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    mask = draw(masks(rows, columns))
    if some_valid and not any(map(any, mask)):
        mask[draw(st.integers(0, rows - 1))][draw(st.integers(0, columns - 1))] = True
    numerator, denominator = [[0.0] * columns for _ in mask], [[0.0] * columns for _ in mask]
    turn_ids = [[0] * columns for _ in mask]
    pairs, junk = log_prob_pairs(spread), st.sampled_from(JUNK)
    for b, row in enumerate(mask):
        turn = 0
        for t, keep in enumerate(row):
            numerator[b][t], denominator[b][t] = draw(pairs) if keep else (draw(junk), draw(junk))
            turn += draw(st.booleans()) if keep else 0
            turn_ids[b][t] = turn if keep else draw(st.integers(-1, 3))
    signed = st.one_of(st.floats(-3.0, -0.01), st.just(0.0), st.floats(0.01, 3.0))
    advantages = draw(st.lists(signed, min_size=rows, max_size=rows))
    return Case(numerator, denominator, mask, turn_ids, advantages, draw(st.booleans()))


@st.composite
def orders(draw: st.DrawFn, case: Case) -> list[int]:
    """A permutation of the rows of a case."""
    return draw(st.permutations(range(len(case.mask))))


def double(values: object) -> Tensor:
    """Nested lists as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def assert_close(
    actual: Tensor | float, expected: object, what: str, *, scale: float = 1.0, tol: float = 1e-10
) -> None:
    """|actual - expected| <= tol * max(scale, |expected|), element by element; NaN never passes."""
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == wanted.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(wanted.shape)}"
    allowed = tol * wanted.abs().clamp_min(scale)
    bad = ~((actual - wanted).abs() <= allowed)
    assert not bad.any(), f"{what}: {actual[bad].tolist()} instead of {wanted[bad].tolist()}"
