"""The noise budget: how far each layer's noise alone moves log π on fixed tokens, beside that of all layers together
(docs/noise.md).

Its draws have update indices that no training reaches, and its hooks come and go with the call: nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .checks import check_mask
from .layers import LOGITS
from .perturbation import LayerwisePerturbation
from .streams import FIELD_BITS

# Update index of the first draw, counting down: the last there is belongs to the sharpness probe.
_FIRST = (1 << FIELD_BITS["update"]) - 2
LEVELS = ("token", "sequence")

# Noise of the standard deviations (layers,) on the layers named by indices, or by ``logits``; not learnable.
Attach = Callable[[Any, list[float]], LayerwisePerturbation]


@dataclass(frozen=True)
class Piece:
    """Sequences of one forward: ``log_probs()`` runs it and gives log π of their tokens (batch, tokens), of which
    ``mask`` counts. The rest names their noise, as in ``perturbation.active``."""

    log_probs: Callable[[], Tensor]
    mask: Tensor
    sequence_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class Spread:
    """Variances of Δ log π in nats², about its mean over all tokens (sequences) and draws: of a token's, and of the sum
    over a sequence. The errors are one standard error of the draws, on these sequences; None of a single draw."""

    token: float
    sequence: float
    token_error: float | None = None
    sequence_error: float | None = None


@dataclass(frozen=True)
class Source:
    """The noise of one layer, or of a band of them. RMS over channels, tokens and layers of the hidden state it was
    added to, and of what was really added."""

    layers: tuple[int | str, ...]
    hidden_rms: float
    realised_rms: float
    spread: Spread

    @property
    def name(self) -> str:
        """``0``, ``1-6`` (both inclusive) or ``logits``."""
        ends = dict.fromkeys((self.layers[0], self.layers[-1]))
        return "-".join(map(str, ends))


@dataclass(frozen=True)
class Budget:
    """Every source by itself, and all of them ``together`` with the very same draws."""

    sources: tuple[Source, ...]
    together: Spread

    def shares(self, level: str) -> list[float | None]:
        """Each source's variance over the sum of them all, which is what the whole would be if they added up; None
        where no noise moves anything."""
        parts = [getattr(source.spread, level) for source in self.sources]
        return [part / sum(parts) if sum(parts) else None for part in parts]

    def additivity(self, level: str) -> float | None:
        """The variance of all together over that sum: 1 for small noise, whatever the model."""
        whole = sum(getattr(source.spread, level) for source in self.sources)
        return getattr(self.together, level) / whole if whole else None


@torch.no_grad()
def noise_budget(
    attach: Attach,
    pieces: Sequence[Piece],
    *,
    layers: Sequence[int | str],
    std: Sequence[float],
    draws: int,
    most: int | None = None,
    after: Callable[[int], object] = bool,
) -> Budget:
    """The budget of noise of the sizes ``std`` (layers,) on ``layers``, shallowest first.

    ``attach`` puts noise on the model that ``pieces`` run. With more than ``most`` layers the first stands by itself
    and the others in ``most`` - 1 bands. ``after`` is told how many sources are done, all together the last of them.
    Costs a forward for each source and draw, and one. Raises ValueError for no draw, no valid token, or sizes that do
    not fit the layers.
    """
    if draws < 1 or (most is not None and most < 2):
        raise ValueError(f"draws, most: at least 1 and 2 expected, got {draws} and {most}")
    if len(layers) != len(std) or not layers:
        raise ValueError(f"std: a size for each of {len(layers)} layers expected, got {len(std)}")
    clean = [piece.log_probs() for piece in pieces]
    masks = [check_mask(piece.mask, before.shape) for piece, before in zip(pieces, clean, strict=True)]
    if not any(bool(mask.any()) for mask in masks):
        raise ValueError("mask: no valid token")
    probe = _Probe(attach, pieces, clean, masks, draws)
    sources: list[Source] = []
    for rows in bands(len(layers), most):
        sources.append(probe.source(layers[rows], std[rows]))
        after(len(sources))
    together = sources[0].spread if len(sources) == 1 else probe.source(layers, std).spread
    after(len(sources) + 1)
    return Budget(tuple(sources), together)


def bands(count: int, most: int | None) -> list[slice]:
    """Rows of the layers that are measured as one: each by itself or, of more than ``most``, the first by itself and
    the others in ``most`` - 1 bands of equal size (to one)."""
    if most is None or count <= most:
        return [slice(row, row + 1) for row in range(count)]
    ends = [1 + (count - 1) * part // (most - 1) for part in range(most)]
    return [slice(0, 1), *(slice(start, end) for start, end in pairwise(ends))]


def spread(changes: Sequence[Tensor], masks: Sequence[Tensor]) -> Spread:
    """The spread of Δ log π: ``changes`` (draws, batch, tokens) of each piece, ``masks`` (batch, tokens) bool.

    Sequences without a valid token do not count; values where the mask is false are ignored whatever they are.
    """
    firsts, seconds, counts = [], [], []
    for change, mask in zip(changes, masks, strict=True):
        valid = torch.where(mask, change.double(), 0.0)
        rows = mask.any(-1)
        firsts.append(valid.sum(-1)[:, rows])
        seconds.append(valid.square().sum(-1)[:, rows])
        counts.append(mask.sum(-1)[rows])
    first, second, count = torch.cat(firsts, 1), torch.cat(seconds, 1), torch.cat(counts).double()
    draws, sequences = first.shape
    tokens = float(count.sum())
    mean = first.sum() / (draws * tokens)
    # Sums of squares of each draw and sequence; sequences are independent, so the error needs no second batch.
    by_token = second - 2 * mean * first + mean.square() * count
    by_sequence = (first - first.mean()).square()
    figures = [by_token.sum() / (draws * tokens), by_sequence.mean()]
    if draws > 1:
        sizes = zip((by_token, by_sequence), (tokens, sequences), strict=True)
        figures += [(squares.var(0).sum() / draws).sqrt() / size for squares, size in sizes]
    return Spread(*torch.stack(figures).tolist())


class _Probe:
    """What every source is measured with."""

    def __init__(
        self, attach: Attach, pieces: Sequence[Piece], clean: list[Tensor], masks: list[Tensor], draws: int
    ) -> None:
        self.attach, self.pieces, self.clean, self.masks, self.draws = attach, pieces, clean, masks, draws

    def source(self, layers: Sequence[int | str], std: Sequence[float]) -> Source:
        """Attach noise of these sizes there alone, measure, and take it away."""
        noise = self.attach(LOGITS if list(layers) == [LOGITS] else list(layers), list(std))
        try:
            changes, hidden, realised = self._changes(noise)
        finally:
            noise.detach()
        return Source(tuple(layers), hidden, realised, spread(changes, self.masks))

    def _changes(self, noise: LayerwisePerturbation) -> tuple[list[Tensor], float, float]:
        """Δ log π (draws, batch, tokens) of each piece; RMS of the hidden state and of what was added."""
        changes, squares, tokens = [], [], 0
        for piece, before in zip(self.pieces, self.clean, strict=True):
            drawn = []
            for draw in range(self.draws):
                with noise.active(
                    update=_FIRST - draw, sequence_ids=piece.sequence_ids, attention_mask=piece.attention_mask
                ):
                    drawn.append(piece.log_probs().double() - before.double())
                size = int(piece.attention_mask.sum())
                rms = torch.stack([noise.hidden_rms, noise.realised_rms]).double()
                squares.append(size * rms.square().mean(-1))
                tokens += size
            changes.append(torch.stack(drawn))
        hidden, realised = (torch.stack(squares).sum(0) / tokens).sqrt().tolist()
        return changes, hidden, realised
