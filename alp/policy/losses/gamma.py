"""The gamma kernel of the sequence ratio: VESPO (arXiv 2602.10693)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import Count, Terms, register

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


_LEAST = math.log(1e-8)  # of log w, which the ratio's own clamp bounds above


@register(
    "gamma",
    formula="−sg(e^λ w^k e^(−λ w)) A log π",
    limits=dict.fromkeys(("k_positive", "lambda_positive", "k_negative", "lambda_negative"), (0.0001, 100.0)),
)
def gamma(
    terms: Terms,
    _: Method,
    *,
    k_positive: float = 2.0,
    lambda_positive: float = 3.0,
    k_negative: float = 3.0,
    lambda_negative: float = 2.0,
) -> tuple[Tensor, Count]:
    """-sg(φ(w)) A log π with w the method's ratio: φ is 1 at w = 1, largest at w = k/λ, and 0 at both ends; (k, λ) by
    the sign of A, A = 0 counting as positive."""
    log_weight = terms.log_ratio.detach().clamp(min=_LEAST)
    weight, positive = log_weight.exp(), terms.advantages >= 0
    kernels = [
        (rate + shape * log_weight - rate * weight).exp()
        for shape, rate in ((k_positive, lambda_positive), (k_negative, lambda_negative))
    ]
    return -kernels[0].where(positive, kernels[1]) * terms.advantages * terms.log_probs, {}
