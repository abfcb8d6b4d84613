"""Argument checks shared by the policy functions: each failure is a ``ValueError`` that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor


def check_log_probs(name: str, value: Tensor, shape: torch.Size | None = None) -> None:
    """Floating (batch, tokens); the same shape as its partner."""
    if not value.is_floating_point():
        raise ValueError(f"{name}: log-probabilities must be floating, got {value.dtype}")
    if value.dim() != 2:
        raise ValueError(f"{name}: shape (batch, tokens) expected, got {tuple(value.shape)}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name}: shape {tuple(shape)} expected, got {tuple(value.shape)}")


def check_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    """The mask as booleans of ``shape``; a float mask must hold zeros and ones alone."""
    if mask.shape != shape:
        raise ValueError(f"mask: shape {tuple(shape)} expected, got {tuple(mask.shape)}")
    if mask.dtype is torch.bool:
        return mask
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask: only 0 and 1 are meaningful")
    return mask.bool()


def check_finite(name: str, value: Tensor, mask: Tensor) -> None:
    """NaN or an infinity on valid tokens of something that was measured once and for all (rollouts, rewards) is an
    error of the caller's: what was sampled had a probability."""
    if bool((~value.isfinite() & mask).any()):
        raise ValueError(f"{name}: {'NaN' if bool((value.isnan() & mask).any()) else 'infinite'} on a valid token")
