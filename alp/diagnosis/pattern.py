"""The pattern of the differences of two policies: what the tests for causes ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from alp.diagnosis.dumps import Floats, Ints

OPEN = 0.98  # probability from which a token says little
SURE = 0.999  # and from which its size is not to be divided by what is left
WIDEST = 2.0  # nats: what a cut of the vocabulary moves a log-prob by at most
FAR = 0.15  # noise of a logit
FLOAT32, ROUNDING = 2e-5, 0.03  # noise of a logit: below the first nothing differs, up to the second it is rounding
LOUD = 12.0  # times the noise of a token: no rounding


@dataclass(frozen=True)
class Pattern:
    """The differences of two policies, and what the tests ask of them."""

    numerator: Floats
    denominator: Floats
    lengths: Ints
    steps: Ints | None
    names: tuple[str, str]

    @cached_property
    def gap(self) -> Floats:
        """Numerator minus denominator, per token."""
        return self.numerator - self.denominator

    @cached_property
    def size(self) -> Floats:
        """Its size in units of a logit's noise: a token of probability p moves by (1 - p) of it."""
        room = 1 - np.exp(np.minimum(np.maximum(self.numerator, self.denominator), 0))
        size: Floats = np.abs(self.gap) / np.maximum(room, 1 - SURE)
        return size

    @cached_property
    def open(self) -> NDArray[np.bool_]:
        """Tokens that neither policy is sure of: the others say little."""
        unsure: NDArray[np.bool_] = np.maximum(self.numerator, self.denominator) < np.log(OPEN)
        return unsure

    def quantile(self, level: float) -> float:
        """Of the sizes of open tokens."""
        return float(np.quantile(self.size[self.open], level)) if self.open.any() else 0.0

    @cached_property
    def noise(self) -> float:
        """The size that a quarter of the tokens stay below: a fault of half of them does not count."""
        return self.quantile(0.25)

    @cached_property
    def typical(self) -> float:
        """The median size."""
        return self.quantile(0.5)

    @cached_property
    def loud(self) -> NDArray[np.bool_]:
        """Tokens that differ by more than rounding and more than most."""
        return (self.size > max(LOUD * self.noise, ROUNDING)) & (np.abs(self.gap) > 0.05)

    @cached_property
    def support(self) -> tuple[str, float, float] | None:
        """Whether one side is renormalised over a part of the vocabulary: its name, the largest difference, and the
        share of the differences on its side. None where not."""
        moved = (np.abs(self.gap) > 0.02) & (self.numerator != 0) & (self.denominator != 0)
        if moved.sum() < 30:
            return None
        gap = self.gap[moved]
        sign = float(np.sign(np.median(gap)))
        rare = np.minimum(self.numerator, self.denominator)[moved] < np.log(0.3)
        bound = float(np.quantile(np.abs(gap), 0.995))
        if rare.sum() < 8 or bound > WIDEST:
            return None
        sided = [float((gap[part] * sign > 0).mean()) for part in (slice(None), rare)]
        return (self.names[1 if sign < 0 else 0], bound, sided[0]) if min(sided) > 0.93 else None

    @cached_property
    def far(self) -> NDArray[np.bool_]:
        """Open tokens beyond any rounding."""
        beyond: NDArray[np.bool_] = self.open & (self.size > FAR)
        return beyond

    @cached_property
    def sequence(self) -> Ints:
        """Which sequence a token is of."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position(self) -> Ints:
        """A token's place in its sequence, from 0."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.gap)) - starts[self.sequence]

    @cached_property
    def loud_share(self) -> Floats:
        """Share of loud tokens per sequence."""
        shares: Floats = np.bincount(self.sequence, self.loud, len(self.lengths)) / self.lengths
        return shares
