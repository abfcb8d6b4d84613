"""The pattern of the differences of two policies: what the tests for causes ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from alp.diagnosis.dumps import Floats, Ints, placeholders

NEARLY = -1e-3  # nats: of a token that a policy is as good as sure of
OPEN = 0.98  # probability from which a token says little
SURE = 0.999  # and from which its size is not to be divided by what is left
MOVED = (0.02, 0.05)  # nats: more than most rounding makes; more than a bfloat16 model with large logits makes
WIDEST = 2.0  # nats: what a cut of the vocabulary moves a log-prob by at most
FAR = 0.15  # noise of a logit
FLOAT32, ROUNDING = 2e-5, 0.03  # noise of a logit: below the first nothing differs, up to the second it is rounding
BFLOAT16 = 0.08  # up to here whole bfloat16 models with large logits round; the weights of others are quantised so
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
        size: Floats = np.abs(self.gap) / self.room
        return size

    @cached_property
    def room(self) -> Floats:
        """What is left of the probability beside a token, at least a thousandth."""
        rest = 1 - np.exp(np.minimum(np.maximum(self.numerator, self.denominator), 0))
        room: Floats = np.maximum(rest, 1 - SURE)
        return room

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
        return next(filter(None, map(self._support, MOVED)), None)

    def _support(self, least: float) -> tuple[str, float, float] | None:
        """The same from tokens that differ by more than ``least`` nats."""
        moved = (np.abs(self.gap) > least) & (self.numerator != 0) & (self.denominator != 0)
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

    @cached_property
    def zeros(self) -> tuple[NDArray[np.bool_], str]:
        """Tokens of exact 0 where the other policy is far from it, and whose they are."""
        sides = ((self.denominator, self.numerator, self.names[1]), (self.numerator, self.denominator, self.names[0]))
        policy, other, name = max(sides, key=lambda side: placeholders(side[0], side[1]).sum())
        found = placeholders(policy, other)
        nearly = placeholders(np.where(policy > NEARLY, 0.0, policy), other)
        if nearly.sum() > 1.5 * found.sum():  # it is sure of these tokens by itself: of others it nearly is
            found = np.zeros_like(found)
        return found, name

    @cached_property
    def trailing(self) -> NDArray[np.bool_]:
        """Those zeros with nothing but others behind them in their sequence."""
        marked = self.zeros[0]
        behind = np.flip(np.cumsum(np.flip(~marked)))
        ends = np.cumsum(self.lengths) - 1
        last: Ints = (behind - (~marked))[ends]
        trailing: NDArray[np.bool_] = marked & (behind == last[self.sequence])
        return trailing

    @cached_property
    def breaks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Sequences that agree up to a place and not behind it, and sequences that do not agree from the start."""
        broken = np.zeros(len(self.lengths), dtype=bool)
        wrong = np.zeros(len(self.lengths), dtype=bool)
        starts = np.cumsum(self.lengths) - self.lengths
        for row in np.flatnonzero(self.loud_share > 0):
            loud = self.loud[starts[row] : starts[row] + self.lengths[row]]
            first = int(np.argmax(loud))
            rest = loud[first:]
            if len(rest) < 3 or rest.mean() < 0.34:
                continue
            broken[row] = first >= 2
            wrong[row] = first < 2
        return broken, wrong

    @cached_property
    def per_step(self) -> Floats | None:
        """The median size of each step's open tokens; None for few steps."""
        if self.steps is None:
            return None
        steps, of = np.unique(self.steps, return_inverse=True)
        if len(steps) < 4:
            return None
        step_of = of[self.sequence]
        parts = [self.size[self.open & (step_of == step)] for step in range(len(steps))]
        return np.array([np.median(part) for part in parts]) if all(len(part) >= 5 for part in parts) else None

    @cached_property
    def scattered(self) -> float | None:
        """Share of open tokens far apart, where they stand between tokens that agree, all over the sequences; else
        None."""
        part = float(self.far[self.open].mean()) if self.open.any() else 0.0
        if not part or self.quantile(0.1) > BFLOAT16 / 2:
            return None  # of rounding's sizes a quarter is below half its median; up to six tokens in ten are another's
        rows = np.unique(self.sequence[self.far])
        return part if len(rows) > 0.5 * min(len(self.lengths), int(self.far.sum())) else None
