"""One power mean of clipped ratios a sequence, exponent and upper bound by the rewards: APMPO (arXiv 2605.04066)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Count, Terms, register

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


_FLOOR = 1e-6  # of the rewards' standard deviation (ours)


def _of_rewards(
    terms: Terms, *, gamma: float = 0.8, high_least: float = 0.2, high_most: float = 0.4
) -> dict[str, Tensor]:
    """The exponent exp(-γ μ_R) and ε_high, from the mean and the standard deviation (of the population: ours) of the
    mini-batch's rewards."""
    assert terms.rewards is not None  # which the composition checked
    mean, spread = terms.rewards.mean(), terms.rewards.std(correction=0)
    high = high_least + (high_most - high_least) * (mean / (spread + _FLOOR)).tanh()
    return {"power": (-gamma * mean).exp(), "high": high}


@register(
    "power_mean",
    formula="−A M_p(s), s = r clipped outward, p = exp(−γ mean reward)",
    reads=("ratio", "rewards"),
    limits={"gamma": (0.0, 10.0), "low": (0.0, 1.0), "high_least": (0.0, 100.0), "high_most": (0.0, 100.0)},
    aggregation="seq-mean-token-mean",
    survey=_of_rewards,
    survey_reads_policy=False,
)
def power_mean(terms: Terms, _: Method, *, low: float = 0.2) -> tuple[Tensor, Count]:
    """Every token has its sequence's value -A M_p(s): sgn(A) M_p(|s A|) for one advantage a sequence, where s > 0 and
    A = 0 need no care.

    s is r, at most 1 + ε_high where A > 0 and at least 1 - ``low`` elsewhere. p = 1 is the arithmetic mean, p -> 0 the
    geometric one.
    """
    power, high = (terms.figures[name].to(terms.ratio) for name in ("power", "high"))
    positive = terms.advantages > 0
    bounded = terms.ratio.clamp(max=1 + high).where(positive, terms.ratio.clamp(min=1 - low))
    mean = terms.row_mean(bounded**power)
    value = mean.where(mean > 0, mean.new_ones(())) ** (1 / power)
    counts = {
        "ratio/clipped_low": ((terms.ratio < 1 - low) & (terms.advantages < 0) & terms.mask).sum(),
        "ratio/clipped_high": ((terms.ratio > 1 + high) & positive & terms.mask).sum(),
    }
    return -terms.advantages * value, counts
