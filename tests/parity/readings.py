"""Our reading of what other trainers compute under their names: own code from their formulas, nothing of theirs.

A reading is a loss of :class:`Tensors` in float64; ``READINGS`` says whose it is, which preset of ours it stands beside
and in what it differs. Commits are in docs/parity.md. Everything divides by counts without their epsilons of 1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alp.policy import Correction, Method

from .cases import Case


class Tensors(NamedTuple):
    """Log-probs (rows, tokens), the response mask as floats, advantages (rows, 1)."""

    current: Tensor
    old: Tensor
    rollout: Tensor
    mask: Tensor
    advantages: Tensor


Read = Callable[[Tensors], Tensor]


@dataclass(frozen=True)
class Reading:
    """One row of the table."""

    trainer: str
    term: str
    """Their name with the settings that were read."""
    preset: str
    """Of ours that stands beside it."""
    loss: Read
    differs: str = ""
    """In what; empty: in nothing."""
    same_with: dict[str, Any] = field(default_factory=dict)
    """Fields of our method under which the two are one; with ``differs``, the proof that it is nothing else."""


def token_mean(x: Tensors, losses: Tensor, mask: Tensor | None = None) -> Tensor:
    """Over the tokens of the response mask, or of another."""
    divisor = x.mask if mask is None else mask
    return (losses * x.mask).sum() / divisor.sum()


def row_mean(x: Tensors, values: Tensor) -> Tensor:
    """(rows, 1)."""
    return (values * x.mask).sum(-1, keepdim=True) / x.mask.sum(-1, keepdim=True)


def sample_mean(x: Tensors, losses: Tensor) -> Tensor:
    """Mean over sequences of their means."""
    return row_mean(x, losses).mean()


def ppo(x: Tensors, low: float = 0.2, high: float = 0.28, c: float | None = 10.0, *, behaviour: str = "old") -> Tensor:
    """The clipped loss of tokens."""
    r = (x.current - getattr(x, behaviour)).exp()
    losses = torch.maximum(-x.advantages * r, -x.advantages * r.clamp(1 - low, 1 + high))
    if c is None:
        return losses
    return torch.where(x.advantages < 0, torch.minimum(losses, -x.advantages * c), losses)


def weight(x: Tensors) -> Tensor:
    """π_old / μ of tokens."""
    return (x.old - x.rollout).exp()


def score(x: Tensors, factor: Tensor) -> Tensor:
    """−sg(w) A log π."""
    return -factor.detach() * x.advantages * x.current


# CE-GPPO


def ce_gppo(x: Tensors) -> Tensor:
    r = (x.current - x.old).exp()
    low, high = (r < 0.8) & (x.advantages < 0), (r > 1.28) & (x.advantages > 0)
    scale = torch.where(low, 0.75 * 0.8 / r.detach(), torch.where(high, 1.28 / r.detach(), torch.ones_like(r)))
    losses = -scale * r * x.advantages
    return token_mean(x, torch.where(x.advantages < 0, torch.minimum(losses, -3 * x.advantages), losses))


# verl


def verl_dppo(kind: str, delta: float, c: float) -> Read:
    def loss(x: Tensors) -> Tensor:
        p, q = x.current.exp(), x.rollout.exp()
        kl = q * (x.rollout - x.current) + (1 - q) * ((1 - q + 1e-8) / (1 - p + 1e-8)).log()
        rising = (p - q <= delta) if kind == "tv" else (kl <= delta) | (p <= q)
        falling = (p - q >= -delta) if kind == "tv" else (kl <= delta) | (p >= q)
        keep = torch.where(x.advantages > 0, rising, falling)
        return token_mean(x, score(x, (p / q).clamp(max=c) * keep))

    return loss


def gate(x: Tensors) -> Tensor:
    """SAPO's, of tokens."""
    r = (x.current - x.old).exp()
    positive, negative = (4 / tau * torch.sigmoid(tau * (r - 1)) for tau in (1.0, 1.05))
    return -torch.where(x.advantages > 0, positive, negative) * x.advantages


def geo_mean(bound: float) -> Read:
    def loss(x: Tensors) -> Tensor:
        d, sign = x.current - x.old, x.advantages.sign()
        inner = sign * torch.minimum(sign * d, sign * d.clamp(-bound, bound))
        return (-x.advantages * row_mean(x, inner).exp()).mean()

    return loss


def cispo(lowest: float, highest: float) -> Read:
    """Bounds of the ratio itself."""
    return lambda x: token_mean(x, score(x, (x.current - x.old).exp().clamp(lowest, highest)))


def verl_gspo(x: Tensors) -> Tensor:
    mean = row_mean(x, x.current - x.old)
    r = (x.current - x.current.detach() + mean.detach()).exp()
    losses = torch.maximum(-x.advantages * r, -x.advantages * r.clamp(1 - 3e-4, 1 + 4e-4))
    return sample_mean(x, losses)


def verl_dro(x: Tensors) -> Tensor:
    return token_mean(x, -(x.advantages * x.current - 0.05 / 2 * (x.current - x.old).square()))


def verl_bypass_pg_is(x: Tensors) -> Tensor:
    whole = ((x.current - x.rollout) * x.mask).sum(-1, keepdim=True)
    return token_mean(x, score(x, whole.clamp(-20, 20).exp().clamp(max=2.0)))


def verl_rejected(keep: Callable[[Tensors], Tensor], *, leave: bool) -> Read:
    def loss(x: Tensors) -> Tensor:
        kept = keep(x) * x.mask
        return token_mean(x, ppo(x) * kept, kept if leave else None)

    return loss


def seq_mean_k1(low: float, high: float) -> Callable[[Tensors], Tensor]:
    def keep(x: Tensors) -> Tensor:
        k1 = row_mean(x, x.rollout - x.old)
        return (k1 >= math.log(low)) & (k1 <= math.log(high))

    return keep


def seq_max_k2(x: Tensors) -> Tensor:
    k2 = ((x.old - x.rollout).square() / 2).where(x.mask.bool(), torch.tensor(-math.inf, dtype=x.old.dtype))
    return k2.amax(-1, keepdim=True) <= 0.02


def seq_mean_k3(x: Tensors) -> Tensor:
    d = x.old - x.rollout
    return row_mean(x, d.exp() - 1 - d) <= 0.01


def weighted(factor: Callable[[Tensors], Tensor]) -> Read:
    return lambda x: token_mean(x, ppo(x) * factor(x))


def inside(low: float, high: float) -> Callable[[Tensors], Tensor]:
    def factor(x: Tensors) -> Tensor:
        w = weight(x)
        return torch.where((w >= low) & (w <= high), w, 0.0)

    return factor


def normalised(x: Tensors) -> Tensor:
    w = weight(x).clamp(max=2.0)
    return w / (w * x.mask).sum() * x.mask.sum()


# prime-rl


def prime(keep: Callable[[Tensors, Tensor, Tensor], Tensor]) -> Read:
    def loss(x: Tensors) -> Tensor:
        d = x.current - x.rollout
        kept = keep(x, x.current.exp(), x.rollout.exp())
        return token_mean(x, -(kept * x.advantages * d.exp()) + 1e-3 * d.square())

    return loss


def prime_default(x: Tensors, p: Tensor, q: Tensor) -> Tensor:
    return ~torch.where(x.advantages > 0, p - q > 0.2, p - q < -0.2)


def bernoulli(p: Tensor, q: Tensor) -> Tensor:
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def prime_kpop(_: Tensors, p: Tensor, q: Tensor) -> Tensor:
    p, q = p.clamp(1e-6, 1 - 1e-6), q.clamp(1e-6, 1 - 1e-6)
    return (bernoulli(p, q) <= 0.1) & (bernoulli(q, p) <= 0.1)


# slime


def slime_opsm(x: Tensors, behaviour: str, delta: float) -> Tensor:
    gap = row_mean(x, getattr(x, behaviour) - x.current)
    return 1 - ((x.advantages < 0) & (gap > delta)).to(x.current)


def slime_example(x: Tensors) -> Tensor:
    """mis.yaml: truncation at 2 over its mean, rejection of tokens outside [0.5, 2], veto at 1e-4."""
    w = weight(x)
    vetoed = ((x.old - x.rollout < math.log(1e-4)) & x.mask.bool()).any(-1, keepdim=True)
    kept = x.mask * ((w >= 0.5) & (w <= 2.0)) * ~vetoed
    return token_mean(x, ppo(x) * normalised(x) * kept, kept)


# NeMo-RL


def seq_mask_tis(x: Tensors) -> Tensor:
    mean = row_mean(x, x.old - x.rollout).exp()
    return weight(x) * ((mean >= 0.999) & (mean <= 1.002))


# AReaL


def areal_binary_kl(phi: float) -> Callable[[Tensors], Tensor]:
    def factor(x: Tensors) -> Tensor:
        p, q = (value.exp().clamp(1e-8, 1 - 1e-8) for value in (x.old, x.rollout))
        return weight(x) * ((bernoulli(p, q) <= phi) & (bernoulli(q, p) <= phi))

    return factor


def areal_geometric(x: Tensors) -> Tensor:
    mean = row_mean(x, x.old - x.rollout).exp().expand_as(x.old)
    return torch.where((mean >= 0.999) & (mean <= 1.001), mean, 0.0)


def areal_k3(x: Tensors) -> Tensor:
    return weight(x) * seq_mean_k3(x)


def areal_m2(x: Tensors) -> Tensor:
    """The largest log² π_old/μ of all tokens leave, loss and normaliser, until the mean of the rest is below 0.04."""
    squares = (x.old - x.rollout).square()
    ordered = squares[x.mask.bool()].sort().values
    means = ordered.cumsum(0) / torch.arange(1, len(ordered) + 1)
    left = max(1, int((means < 0.04).sum()))
    kept = x.mask * (squares <= ordered[left - 1])
    return token_mean(x, ppo(x) * kept, kept)


# SkyRL


def skyrl_dppo(x: Tensors) -> Tensor:
    p, q = x.current.exp(), x.rollout.exp()
    far = ((x.advantages > 0) & (p - q > 0.2)) | ((x.advantages < 0) & (q - p > 0.2))
    return token_mean(x, -(x.current - x.rollout).exp() * x.advantages * ~far)


def skyrl_geometric(x: Tensors) -> Tensor:
    mean = row_mean(x, x.old - x.rollout).exp()
    kept = ((mean >= 0.99) & (mean <= 1.01)) * x.mask
    return token_mean(x, ppo(x) * kept, kept)


KEEP: dict[str, Any] = {"kind": "mask_keep_denominator", "weight": "one"}
CURRENT: dict[str, Any] = {**KEEP, "between": "current_rollout"}
TV = Correction(**CURRENT, statistic="prob_gap", when="outward", upper=0.2)
TRUNCATED = Correction("truncate", between="current_rollout", upper=20.0)
STALE = Correction("truncate", between="current_old", lower=0.8, upper=1.2)
NORMALISER = "rejected tokens stay in the normaliser"
READINGS = (
    Reading(
        "verl",
        "dppo_tv, clip_ratio 0.15, clip_ratio_c 20",
        "dppo_tv",
        verl_dppo("tv", 0.15, 20.0),
        "bound on the weight: 20 if unset (its configuration sets 3, its script 10000), authors' code 10",
        {"corrections": [TRUNCATED, Correction(**CURRENT, statistic="prob_gap", when="outward", upper=0.15)]},
    ),
    Reading(
        "verl",
        "dppo_kl, clip_ratio 0.05, clip_ratio_c 20",
        "dppo_kl",
        verl_dppo("kl", 0.05, 20.0),
        "bound on the weight, as above",
        {"corrections": [TRUNCATED, Correction(**CURRENT, statistic="binary_kl", when="outward", upper=0.05)]},
    ),
    Reading("verl", "sapo", "sapo", lambda x: sample_mean(x, gate(x))),
    Reading("verl", "geo_mean, clip_ratio 0.4", "gmpo", geo_mean(0.4)),
    Reading(
        "verl",
        "geo_mean, default",
        "gmpo",
        geo_mean(0.2),
        "default bounds 0.2 in log space, the paper's 0.4",
        {"loss_options": {"low": 0.2, "high": 0.2}},
    ),
    Reading("verl", "cispo, clip_ratio_low 10, clip_ratio_high 4", "cispo", cispo(-9.0, 5.0)),
    Reading(
        "verl",
        "cispo, default",
        "cispo",
        cispo(0.8, 1.2),
        "default bounds on r: [0.8, 1.2]",
        {"corrections": [STALE]},
    ),
    Reading(
        "verl",
        "gspo, 3e-4 / 4e-4",
        "gspo",
        verl_gspo,
        "mean over sequences of token means, no dual clip",
        {"aggregation": "seq-mean-token-mean", "dual_clip": None},
    ),
    Reading("verl", "dro, dro_beta 0.05", "dro", verl_dro, "ratio to π_old, not μ", {"denominator": "old"}),
    Reading("verl", "bypass_mode, reinforce, rollout_is sequence, 2.0", "bypass_pg_is", verl_bypass_pg_is),
    Reading(
        "verl",
        'rollout_rs seq_mean_k1, "0.999_1.001"',
        "geo_rs",
        verl_rejected(seq_mean_k1(0.999, 1.001), leave=False),
        f"bounds are on μ/π_old (ours would be [1/1.001, 1/0.999]); {NORMALISER} (trainer v1)",
        {
            "corrections": [
                Correction(**KEEP, level="sequence_geometric", lower=1 / 1.001, upper=1 / 0.999),
            ]
        },
    ),
    Reading(
        "verl",
        "rollout_rs seq_max_k2, 0.02",
        "trm_max_k2",
        verl_rejected(seq_max_k2, leave=False),
        f"{NORMALISER} (trainer v1)",
        {"corrections": [Correction(**KEEP, statistic="k2", reduce="max", upper=0.02)]},
    ),
    Reading(
        "verl",
        "rollout_rs seq_mean_k3, 0.01",
        "trm_mean_k3",
        verl_rejected(seq_mean_k3, leave=False),
        f"{NORMALISER} (trainer v1)",
        {"corrections": [Correction(**KEEP, statistic="k3", reduce="mean", upper=0.01)]},
    ),
    Reading(
        "verl", "rollout_rs seq_mean_k3, 0.01, older trainer", "trm_mean_k3", verl_rejected(seq_mean_k3, leave=True)
    ),
    Reading("verl", 'rollout_is_threshold "0.5_5.0"', "icepop", weighted(inside(0.5, 5.0))),
    Reading("verl", "rollout_is token, 2.0", "token_tis", weighted(lambda x: weight(x).clamp(max=2.0))),
    Reading(
        "verl",
        "rollout_is token, 2.0, batch_normalize",
        "token_tis",
        weighted(normalised),
        "weights over their mean (off by default)",
        {"corrections": [Correction("truncate", upper=2.0, batch_normalise=True)]},
    ),
    Reading(
        "prime-rl",
        "default loss",
        "dppo_tv",
        prime(prime_default),
        "0.2, r untruncated, + 1e-3 log² r on all tokens",
        {
            "loss_form": "ratio",
            "log_square": 1e-3,
            "corrections": [TV],
        },
    ),
    Reading("prime-rl", "ipo", "ipo", prime(lambda _, p, q: (p - q).abs() <= 0.1)),
    Reading("prime-rl", "kpop (pull request 3283)", "kpop", prime(prime_kpop)),
    Reading("slime", "tis, per-token loss", "token_tis", weighted(lambda x: weight(x).clamp(0.0, 2.0))),
    Reading(
        "slime",
        "tis, default",
        "token_tis",
        lambda x: sample_mean(x, ppo(x, 0.2, 0.2, None) * weight(x).clamp(0.0, 2.0)),
        "mean over sequences of token means unless --calculate-per-token-loss; clip 0.2 / 0.2, no dual clip",
        {"aggregation": "seq-mean-token-mean", "clip_high": 0.2, "dual_clip": None},
    ),
    Reading("slime", "icepop, 0.5 to 5, per-token loss", "icepop", weighted(inside(0.5, 5.0))),
    Reading(
        "slime",
        "use-opsm, default, per-token loss",
        "opsm",
        weighted(lambda x: slime_opsm(x, "old", 1e-4)),
        "drift of π_θ from π_old (μ with --use-rollout-logprobs), δ 1e-4",
        {
            "corrections": [
                Correction(**KEEP, between="current_old", statistic="k1", reduce="mean", when="negative", upper=1e-4)
            ]
        },
    ),
    Reading("slime", "cispo, eps-clip 1, eps-clip-high 4, per-token loss", "cispo", cispo(0.0, 5.0)),
    Reading(
        "slime",
        "mis.yaml (example), per-token loss",
        "token_tis",
        slime_example,
        "rejection of tokens outside [0.5, 2] and a veto besides, out of the normaliser; weights over their mean",
        {
            "corrections": [
                Correction("truncate", upper=2.0, batch_normalise=True),
                Correction("mask", weight="one", lower=0.5, upper=2.0, veto=1e-4),
            ]
        },
    ),
    Reading("NeMo-RL", "tis, ratio 2", "token_tis", weighted(lambda x: weight(x).clamp(0.0, 2.0))),
    Reading("NeMo-RL", "icepop, 0.5 to 5", "icepop", weighted(inside(0.5, 5.0))),
    Reading("NeMo-RL", "seq-mask-tis, 0.999 to 1.002", "seq_mask_tis", weighted(seq_mask_tis)),
    Reading(
        "NeMo-RL",
        "use_cispo, default",
        "cispo",
        cispo(0.8, 1.2),
        "default bounds on r: [0.8, 1.2]",
        {"corrections": [STALE]},
    ),
    Reading("AReaL", "rejection_sampling token mask ratio, 0.5 to 5", "icepop", weighted(inside(0.5, 5.0))),
    Reading(
        "AReaL",
        "rejection_sampling binary_kl, 2.0, decoupled loss",
        "kpop",
        weighted(areal_binary_kl(2.0)),
        "π_old/μ with PPO's clip, weight ω, φ 2, no log² r",
        {
            "denominator": "old",
            "loss_form": "clip",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "dual_clip": 10.0,
            "log_square": 0.0,
            "corrections": [Correction("mask_keep_denominator", statistic="binary_kl_max", upper=2.0)],
        },
    ),
    Reading(
        "AReaL",
        "rejection_sampling sequence mask ratio, 0.999 to 1.001",
        "geo_rs",
        weighted(areal_geometric),
        f"weight: the geometric mean; {NORMALISER}",
        {"corrections": [Correction("mask_keep_denominator", level="sequence_geometric", lower=0.999, upper=1.001)]},
    ),
    Reading(
        "AReaL",
        "rejection_sampling sequence mask kl_k3 mean, 0.01",
        "trm_mean_k3",
        weighted(areal_k3),
        f"weight: the token's ω; {NORMALISER}",
        {"corrections": [Correction("mask_keep_denominator", statistic="k3", reduce="mean", upper=0.01)]},
    ),
    Reading(
        "AReaL",
        "m2_threshold 0.04",
        "m2po",
        areal_m2,
        "another rule: all tokens, log² π_old/μ, out of the normaliser, PPO's clip",
        {
            "loss_form": "clip",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "dual_clip": 10.0,
            "corrections": [Correction("mask", statistic="log_square", reduce="batch", weight="one", upper=0.04)],
        },
    ),
    Reading(
        "AReaL",
        "use_sapo_loss",
        "sapo",
        lambda x: token_mean(x, gate(x)),
        "mean over tokens",
        {"aggregation": "token-mean"},
    ),
    Reading("AReaL", "cispo, eps_clip 1, eps_clip_higher 4", "cispo", cispo(0.0, 5.0)),
    Reading(
        "SkyRL",
        "dppo, binary_tv, default",
        "dppo_tv",
        skyrl_dppo,
        "0.2, r untruncated",
        {"loss_form": "ratio", "corrections": [TV]},
    ),
    Reading(
        "SkyRL",
        "sequence_mask_metric geometric, 0.99 to 1.01",
        "geo_rs",
        skyrl_geometric,
        "bounds 0.99 to 1.01",
        {"corrections": [Correction("mask", level="sequence_geometric", weight="one", lower=0.99, upper=1.01)]},
    ),
    Reading("CE-GPPO", "compute_gppo_loss_general_beta, 0.75 and 1.0", "ce_gppo", ce_gppo),
)


def tensors(case: Case, advantages: Tensor) -> Tensors:
    """A case for a reading, with log π_θ as a leaf; masked positions are 0, for these multiply with the mask."""
    mask = case.mask.double()
    current, old, rollout = (torch.where(case.mask, x, 0.0) for x in (case.current, case.old, case.rollout))
    return Tensors(current.clone().requires_grad_(), old, rollout, mask, advantages[:, None])


def read(reading: Reading, case: Case, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient in log π_θ of a reading."""
    given = tensors(case, advantages)
    loss = reading.loss(given)
    (gradient,) = torch.autograd.grad(loss, given.current)
    return loss.detach(), gradient


def adjusted(reading: Reading, preset: Method) -> Method:
    """Our method under which the reading is the same."""
    return replace(preset, **reading.same_with)
