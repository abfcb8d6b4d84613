"""Counter-based Gaussian noise: a pure function of (seed, update, sequence, layer, position, channel), on any device.

Two stages. (1) Each (update, sequence, layer, position) is one 128-bit counter of Philox4x32-10 keyed by the run seed.
The fields fill the counter without overlap (position 32 bits, layer 16, update 32, sequence 48) and Philox is a
bijection of the counter, so distinct rows have distinct 128-bit row keys: there are no collisions to bound. (2) Within
a row, a channel's word is a hash of its number with the four key words mixed in: two rounds of fold and multiply. Words
j and j + half make two normals by Box-Muller. The largest value is 6.6 standard deviations (a uniform is never below
2^-31).

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Integer arithmetic in torch
wraps, which is what both stages need.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import torch
from torch import Tensor

FIELD_BITS = {"position": 32, "layer": 16, "update": 32, "sequence": 48}
LOW = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
_WORDS_SEED = 0x616C70  # keys the table of channel words: any constant does
MIX = (0x7FEB352D, 0x846CA68B - (1 << 32))  # multipliers of the two hash rounds, as int32
_CHUNK = (
    1 << 17
)  # elements drawn at a time on a CPU: the scratch stays in the caches, and an operation outweighs its dispatch
_DEVICE_CHUNK = 1 << 23  # on a GPU: about 100 MB of scratch, and few launches
_SHARE = 1 << 15  # elements that torch gives a thread at least
_local = threading.local()


def check_fields(update: int, sequence_ids: Tensor, positions: Tensor) -> None:
    """Raises ValueError where a field of a key does not fit its width."""
    if not 0 <= update < 1 << FIELD_BITS["update"]:
        raise ValueError(f"update {update} must lie in [0, 2^{FIELD_BITS['update']})")
    for name, values in (("sequence", sequence_ids), ("position", positions)):
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < 1 << FIELD_BITS[name]):
            raise ValueError(f"{name} ids must lie in [0, 2^{FIELD_BITS[name]})")


def row_keys(seed: int, update: int, sequence_ids: Tensor, positions: Tensor, layer: int) -> Tensor:
    """Keys (rows, 4) int32 of rows given as flat int64 ``sequence_ids`` and ``positions`` (rows,), fields that fit."""
    counter = [
        positions,
        sequence_ids & LOW,
        (sequence_ids >> 32) | (layer << 16),
        torch.full_like(positions, update),
    ]
    return torch.stack(philox(counter, seed), dim=-1).to(torch.int32)


class RowNames(NamedTuple):
    """What names the noise of the rows of one layer in one update."""

    seed: int
    update: int
    layer: int
    rows: Tensor  # (2, rows) int64: sequence id and position, fields that fit

    def keys(self) -> Tensor:
        """(rows, 4) int32."""
        ids, positions = self.rows
        return row_keys(self.seed, self.update, ids, positions, self.layer)


def channel_words(half: int, device: torch.device) -> Tensor:
    """(2 half,) int32: the words of the channels, without structure. With evenly spaced ones, rows whose keys differ by
    a multiple of the spacing would hold shifted copies of one another."""
    number = torch.arange(2 * half, dtype=torch.int64, device=device)
    zero = torch.zeros_like(number)
    return philox([number, zero, zero, zero], _WORDS_SEED)[0].to(torch.int32)


def philox(counter: list[Tensor], seed: int) -> list[Tensor]:
    """Philox4x32-10: four int64 tensors (n,) holding 32-bit words, mapped by a bijection that the 64-bit ``seed``
    selects."""
    a, b, c, d = counter
    # The two words that a round multiplies stand side by side, one operation for both; they change places each round.
    words, others = torch.stack([c, a]), torch.stack([b, d])
    factors = words.new_tensor([MULTIPLIERS[1], MULTIPLIERS[0], MULTIPLIERS[1]]).unsqueeze(-1)
    keys = [[seed + n * WEYL[0], (seed >> 32) + n * WEYL[1]] for n in range(ROUNDS)]
    keys = [[word & LOW for word in (pair[::-1] if n % 2 else pair)] for n, pair in enumerate(keys)]
    # Products by turns in two places, each with its first row below again: rows 1 and 2 are the product upside down.
    places = [(place[:2], place[1:], place[0], place[2]) for place in words.new_empty(2, 3, words.shape[1])]
    for n, key in enumerate(words.new_tensor(keys).unsqueeze(-1).unbind()):
        product, flipped, first, again = places[n % 2]
        torch.mul(words, factors[:2] if n % 2 == 0 else factors[1:], out=product)
        again.copy_(first)
        torch.bitwise_right_shift(product, 32, out=words)
        # Bits above the 32nd, the sign's and those of ``others``, are dropped with the round's last operation.
        words.bitwise_xor_(others).bitwise_xor_(key).bitwise_and_(LOW)
        others = flipped
    (c, a), (b, d) = words.unbind(), others.bitwise_and_(LOW).unbind()  # their places again: the rounds are even
    return [a, b, c, d]


class Normals:
    """Draws rows of standard normals into memory of its own: no allocation from draw to draw."""

    def __init__(self, channels: int, rows: int, device: torch.device) -> None:
        half = -(-channels // 2)
        self.channels, self.rows, self.device = channels, rows, device
        with torch.inference_mode(False):  # what is kept for later callers must not belong to this one's inference mode
            self._allocate(rows, half, device)

    def _allocate(self, rows: int, half: int, device: torch.device) -> None:
        self._words = channel_words(half, device).view(2, 1, half)
        self._x = torch.empty(2, rows, half, dtype=torch.int32, device=device)
        self._scratch = torch.empty_like(self._x)
        self._out = torch.empty(rows, 2 * half, dtype=torch.float32, device=device)

    def draw(self, keys: Tensor) -> Tensor:
        """(n, channels) float32 of row keys (n, 4) int32, n at most ``rows``; overwritten by the next draw.

        Row r, channel c depends on keys[r], c and the number of channels alone, whatever other rows are drawn with it.
        """
        count, half = keys.shape[0], self._x.shape[2]
        x, scratch, out = self._x[:, :count], self._scratch[:, :count], self._out[:count]
        torch.add(self._words, keys[:, 0:1], out=x)
        # x ^ (x >> bits) with the arithmetic shift: its missing bit costs nothing here, a logical one would cost an
        # operation.
        x.bitwise_xor_(torch.bitwise_right_shift(x, 16, out=scratch)).mul_(MIX[0]).add_(keys[:, 1:2])
        x.bitwise_xor_(torch.bitwise_right_shift(x, 15, out=scratch)).mul_(MIX[1])
        radius, angle = scratch.view(torch.float32)
        # Odd words are never 0, so the logarithm is finite: radius = sqrt(-ln u^2), u uniform on [-1, 1].
        radius.copy_(x[0].add_(keys[:, 2:3]).bitwise_or_(1)).mul_(2.0**-31)
        radius.mul_(radius).log_().neg_().sqrt_()
        angle.copy_(x[1].add_(keys[:, 3:4])).mul_(2.0 * math.pi * 2.0**-32)
        torch.cos(angle, out=out[:, :half]).mul_(radius)
        torch.sin(angle, out=out[:, half:]).mul_(radius)
        return out[:, : self.channels]


def normals(channels: int, rows: int, device: torch.device) -> Normals:
    """Something to draw at most ``rows`` rows at a time from; on a CPU its memory is kept for the next caller of the
    thread."""
    chunk = max(_CHUNK, torch.get_num_threads() * _SHARE) if device.type == "cpu" else _DEVICE_CHUNK
    most = max(1, chunk // channels)
    if device.type != "cpu":
        return Normals(channels, min(max(rows, 1), most), device)
    kept: Normals | None = getattr(_local, "normals", None)
    if kept is None or kept.channels != channels or not (min(rows, most) <= kept.rows <= most):
        kept = _local.normals = Normals(channels, min(max(rows, 1), most), device)
    return kept
