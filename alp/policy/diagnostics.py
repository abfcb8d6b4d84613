"""Figures about ratios and about the training-inference mismatch, under the names the field knows
(docs/method.md, Diagnostics)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import check_finite, check_log_probs, check_mask
from .ratio import k3

_LARGEST = 708.0  # e to that is the last power of e in float64 but one

QUANTILES = {
    "q001": 0.001,
    "q01": 0.01,
    "q05": 0.05,
    "q25": 0.25,
    "q50": 0.5,
    "q75": 0.75,
    "q95": 0.95,
    "q99": 0.99,
    "q999": 0.999,
}


def ratio_diagnostics(log_ratio: Tensor, mask: Tensor, prefix: str = "ratio") -> dict[str, float]:
    """Moments and quantiles of a log-ratio per token and summed per sequence, before clamping and clipping.

    ``log_ratio`` (batch, tokens) holds the raw differences log p - log q; keys are ``<prefix>/{token,sequence}/log_…``.
    Empty when nothing is valid.
    """
    check_log_probs("log_ratio", log_ratio)
    mask = check_mask(mask, log_ratio.shape)
    rows = mask.any(-1)
    if not bool(rows.any()):
        return {}
    summed = torch.where(mask, log_ratio, log_ratio.new_zeros(())).sum(-1)[rows]
    return {**_describe(f"{prefix}/token/log_", log_ratio[mask]), **_describe(f"{prefix}/sequence/log_", summed)}


def _describe(prefix: str, values: Tensor) -> dict[str, float]:
    """Mean, population std, extremes and linearly interpolated quantiles of a flat tensor."""
    ordered = values.detach().double().sort().values
    rank = torch.tensor(list(QUANTILES.values()), dtype=torch.float64, device=ordered.device) * (ordered.numel() - 1)
    below = rank.floor().long()
    above = (below + 1).clamp(max=ordered.numel() - 1)
    quantiles = torch.lerp(ordered[below], ordered[above], rank - below)
    spread = (ordered - ordered.mean()).square().mean().sqrt()
    figures = torch.cat([torch.stack([ordered.mean(), spread, ordered[0], ordered[-1]]), quantiles]).tolist()
    return {
        f"{prefix}{name}": figure
        for name, figure in zip(("mean", "std", "min", "max", *QUANTILES), figures, strict=True)
    }


def mismatch_diagnostics(old_log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor) -> dict[str, float]:
    """How far the training code's π_old is from the engine's μ on the sampled tokens; keys ``rollout_corr/…``.

    Means are over valid tokens, perplexities and their differences over sequences with any. Effective sample sizes and
    chi2 are of untruncated weights, from their logarithms: no log-ratio is clamped (a chi2 beyond 1e307 is given as
    that). ``…_max_share`` is the part of all weights that the largest one carries: near 1, one token or sequence makes
    those figures. Empty when nothing is valid. Raises ValueError for wrong shapes, and NaN or infinities on valid
    tokens.
    """
    check_log_probs("old_log_probs", old_log_probs)
    check_log_probs("rollout_log_probs", rollout_log_probs, old_log_probs.shape)
    mask = check_mask(mask, old_log_probs.shape)
    check_finite("old_log_probs", old_log_probs, mask)
    check_finite("rollout_log_probs", rollout_log_probs, mask)
    rows = mask.any(-1)
    if not bool(rows.any()):
        return {}
    old, rollout = (torch.where(mask, x.detach().double(), 0.0) for x in (old_log_probs, rollout_log_probs))
    rho = (old - rollout)[mask]
    sequence = (old - rollout).sum(-1)[rows]
    lengths = mask.sum(-1)[rows]
    old_mean, rollout_mean = old.sum(-1)[rows] / lengths, rollout.sum(-1)[rows] / lengths
    figures = {
        "kl": -rho.mean(),
        "k3_kl": k3(rho).mean(),
        "chi2_token": _chi2(rho),
        "chi2_seq": _chi2(sequence),
        "training_ppl": (-old_mean).mean().exp(),
        "rollout_ppl": (-rollout_mean).mean().exp(),
        "log_ppl_diff": (old_mean - rollout_mean).mean(),
        "log_ppl_abs_diff": (old_mean - rollout_mean).abs().mean(),
        "rollout_is_eff_sample_size": _effective_sample_size(rho),
        "rollout_is_eff_sample_size_seq": _effective_sample_size(sequence),
        "rollout_is_max_share": (rho.max() - rho.logsumexp(0)).exp(),
        "rollout_is_max_share_seq": (sequence.max() - sequence.logsumexp(0)).exp(),
    }
    values = torch.stack(list(figures.values())).tolist()
    return {f"rollout_corr/{name}": value for name, value in zip(figures, values, strict=True)}


def effective_sample_size(weights: Tensor) -> Tensor:
    """(Σω)² / (N Σω²) of flat, untruncated ``weights``, a scalar: 1 for equal weights, 1/N when one carries
    everything, NaN where all are 0."""
    scaled = weights / weights.max()
    return scaled.sum().square() / (scaled.numel() * scaled.square().sum())


def _effective_sample_size(logs: Tensor) -> Tensor:
    """The same of log-weights of any size."""
    return effective_sample_size((logs - logs.max()).exp())


def _chi2(logs: Tensor) -> Tensor:
    """mean(ω²) − 1 of log-weights: exact near 0, and the largest number there is where it passes that."""
    return torch.expm1(((2 * logs).logsumexp(0) - math.log(logs.numel())).clamp(max=_LARGEST))
