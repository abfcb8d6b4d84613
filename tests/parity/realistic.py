"""A batch of the size and shape that one update of a reasoning model sees, made from a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from alp.policy import group_advantages

from .cases import Case


def realistic(seed: int = 0) -> tuple[Case, Tensor]:
    """64 responses of 8 prompts, 64 to 512 tokens, seven in ten of them near certain; π_old/μ as of a bfloat16 engine
    with a far token in a thousand, π_θ/π_old as some updates later; rewards 0 and 1. With the advantages (rows,)."""
    random = torch.Generator().manual_seed(seed)
    rows, tokens = 64, 512

    def normal() -> Tensor:
        return torch.randn(rows, tokens, generator=random, dtype=torch.float64)

    def uniform() -> Tensor:
        return torch.rand(rows, tokens, generator=random, dtype=torch.float64)

    lengths = torch.randint(64, tokens + 1, (rows,), generator=random)
    mask = torch.arange(tokens) < lengths[:, None]
    old = uniform().log() * torch.where(uniform() < 0.7, 0.02, 1.2)
    size = (-old).sqrt()
    far = (uniform() < 1e-3) * 1.0
    rollout = (old - (0.02 * normal() + far * normal().abs()) * size).clamp(max=-1e-7)
    current = (old + 0.1 * normal() * size).clamp(max=-1e-7)
    old = old.clamp(max=-1e-7)
    rewards = torch.randint(2, (rows,), generator=random).double()
    case = Case(current, old, rollout, old, mask, lengths.tolist(), rewards.tolist(), 8)
    return case, group_advantages(rewards, case.groups)
