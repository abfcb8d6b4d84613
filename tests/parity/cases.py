"""Fixed log-probs of four policies, fed to both sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

SEEDS = (0, 1, 2)
TOLERANCE = 1e-9  # both sides run in float64; the promise is 1e-6
FIGURE = 1e-6  # TRL computes the figures it logs in float32


@dataclass(frozen=True)
class Case:
    """Log-probs (rows, tokens) of the sampled tokens, and what else a trainer sees of the samples.

    Row ``i`` has ``lengths[i]`` tokens; ``mask`` is False behind them and in holes (tool output). ``samples`` rows in a
    row answer one prompt.
    """

    current: Tensor
    old: Tensor
    rollout: Tensor
    reference: Tensor
    mask: Tensor
    lengths: list[int]
    rewards: list[float]
    samples: int

    @property
    def rows(self) -> int:
        """Number of sequences, empty ones included."""
        return self.mask.shape[0]

    @property
    def groups(self) -> Tensor:
        """Which prompt a row answers."""
        return torch.arange(self.rows) // self.samples

    @property
    def occupied(self) -> int:
        """Number of sequences with a token that counts."""
        return int(self.mask.any(-1).sum())

    def with_(self, **values: Any) -> Case:
        """A copy with some fields replaced."""
        return replace(self, **values)


def random_case(seed: int, *, rows: int = 9, tokens: int = 7, samples: int = 3, mismatch: float = 0.5) -> Case:
    """Ragged rows with holes, one row without a single token that counts, rewards that differ in every group."""
    random = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(rows, tokens, generator=random, dtype=torch.float64)

    lengths = torch.randint(1, tokens + 1, (rows,), generator=random)
    lengths[0], lengths[1] = tokens, 1
    inside = torch.arange(tokens) < lengths.unsqueeze(1)
    holes = torch.rand(rows, tokens, generator=random) < 0.25
    holes[:, 0] = False
    holes[4] = True
    old = -noise(1.5).abs() - 0.05
    rewards = torch.randint(0, 9, (rows,), generator=random) / 8
    rewards[::samples], rewards[1::samples] = 1.0, 0.25
    return Case(
        current=old + noise(0.3),
        old=old,
        rollout=old - noise(mismatch),
        reference=old + noise(0.4),
        mask=inside & ~holes,
        lengths=lengths.tolist(),
        rewards=rewards.tolist(),
        samples=samples,
    )


def chosen_case(
    log_ratio: list[float], log_mismatch: list[float] | None = None, *, rewards: tuple[float, float] = (1.0, 0.0)
) -> Case:
    """Two full rows with the same chosen log π_θ/π_old and log π_old/μ, the first with a positive advantage, the second
    a negative one."""
    drift = torch.tensor([log_ratio] * 2, dtype=torch.float64)
    gap = torch.tensor([log_mismatch or [0.0] * len(log_ratio)] * 2, dtype=torch.float64)
    old = torch.full_like(drift, -1.0)
    return Case(
        current=old + drift,
        old=old,
        rollout=old - gap,
        reference=old.clone(),
        mask=torch.ones_like(drift, dtype=torch.bool),
        lengths=[len(log_ratio)] * 2,
        rewards=list(rewards),
        samples=2,
    )
