"""What a method's update would push on: the derivative of its loss by each token's log-prob, against the on-policy one.

Everything is told in the space of these weights, one number per token: what lies behind them (how a token's log-prob
moves with the parameters) needs the model. On-policy is −A/N: the plain policy gradient of a batch that the current
policy sampled itself, N its valid tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass
class Gradient:
    """Sums over blocks of −∂loss/∂log π times the normaliser (u) and of A (the on-policy weight, u*).

    ``normaliser`` and ``tokens`` are what the sums of losses are divided by, the method's and the on-policy one.
    """

    squares: float = 0.0
    sizes: float = 0.0
    products: float = 0.0
    on_policy_squares: float = 0.0
    on_policy_sizes: float = 0.0
    normaliser: float = 0.0
    tokens: int = 0
    silent: int = 0
    meant: int = 0
    largest: float = 0.0

    def add(self, weights: Tensor, advantages: Tensor, mask: Tensor, normaliser: float) -> None:
        """A block: u and A (rows, tokens), the valid tokens, what the block's loss was divided by."""
        weights, wanted = weights.masked_fill(~mask, 0.0), advantages.masked_fill(~mask, 0.0)
        self.squares += float(weights.square().sum())
        self.sizes += float(weights.abs().sum())
        self.products += float((weights * wanted).sum())
        self.on_policy_squares += float(wanted.square().sum())
        self.on_policy_sizes += float(wanted.abs().sum())
        self.normaliser += normaliser
        self.tokens += int(mask.sum())
        self.silent += int(((weights == 0) & (wanted != 0)).sum())
        self.meant += int((wanted != 0).sum())
        self.largest = max(self.largest, float(weights.abs().sum(-1).max()))

    def figures(self) -> dict[str, float | None]:
        """The report's figures; None where nothing pushes.

        ``size``: mean |weight| of a token, in units of the on-policy one. ``silent``: tokens with an advantage and no
        gradient, of those with an advantage. ``cosine`` with the on-policy weights. ``equal_lr``: learning rate at
        which a step of plain gradient descent is as long as the on-policy one at 1. ``effective``: (Σ|u|)² / (N Σu²).
        ``top_sequence``: share of Σ|u| in one sequence.
        """
        if not (self.meant and self.squares and self.normaliser):
            silent = self.silent / self.meant if self.meant else None
            return {"size": 0.0, "silent": silent} | dict.fromkeys(("cosine", "equal_lr", "effective", "top_sequence"))
        length = math.sqrt(self.squares) / self.normaliser
        on_policy = math.sqrt(self.on_policy_squares) / self.tokens
        return {
            "size": (self.sizes / self.normaliser) / (self.on_policy_sizes / self.tokens),
            "silent": self.silent / self.meant,
            "cosine": self.products / math.sqrt(self.squares * self.on_policy_squares),
            "equal_lr": on_policy / length,
            "effective": self.sizes**2 / (self.tokens * self.squares),
            "top_sequence": self.largest / self.sizes,
        }
