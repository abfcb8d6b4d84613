"""The score function: no ratio in the loss, weights come from the corrections (docs/method.md, Losses)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Count, Terms, register

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


@register("reinforce", formula="−A log π", reads=())
def reinforce(terms: Terms, _: Method) -> tuple[Tensor, Count]:
    """-A log π: a correction's weight w makes it -sg(w) A log π, which is CISPO, DPPO, TOPR or truncated importance
    sampling by the policies that w is between."""
    return -terms.advantages * terms.log_probs, {}
