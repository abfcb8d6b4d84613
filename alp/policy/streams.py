"""Counter-based Gaussian noise: a pure function of (seed, update, sequence, layer, position, channel), on any device.

Two stages. (1) Each (update, sequence, layer, position) is one 128-bit counter of Philox4x32-10 keyed by the run seed. The
fields fill the counter without overlap (position 32 bits, layer 16, update 32, sequence 48) and Philox is a bijection of
the counter, so distinct rows have distinct 128-bit row keys: there are no collisions to bound. (2) Within a row, word j is
a 32-bit integer hash of j with the four key words mixed in between its multiplications, and words j and j + half make two
normals by Box-Muller. The largest value is 6.7 standard deviations (a uniform is never below 2^-32).

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Integer arithmetic in torch
wraps, which is what both stages need; torch has no unsigned shift, hence the masks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIELD_BITS = {"position": 32, "layer": 16, "update": 32, "sequence": 48}
_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LANES = 32  # rows are padded to whole vectors, so that a value never depends on its place in memory


def row_keys(seed: int, update: int, sequence_ids: Tensor, positions: Tensor, layers: list[int]) -> Tensor:
    """Keys (layers, rows, 4) int32 of rows given as flat int64 ``sequence_ids`` and ``positions`` (rows,).

    Raises ValueError where a field does not fit its width.
    """
    for name, values in (("sequence", sequence_ids), ("position", positions)):
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < 1 << FIELD_BITS[name]):
            raise ValueError(f"{name} ids must lie in [0, 2^{FIELD_BITS[name]})")
    for name, value in [("update", update), *(("layer", layer) for layer in layers)]:
        if not 0 <= value < 1 << FIELD_BITS[name]:
            raise ValueError(f"{name} {value} must lie in [0, 2^{FIELD_BITS[name]})")
    shape = (len(layers), sequence_ids.numel())
    depth = torch.tensor(layers, dtype=torch.int64, device=sequence_ids.device).unsqueeze(1)
    counter = [
        positions.expand(shape),
        (sequence_ids & _LOW).expand(shape),
        (sequence_ids >> 32) | (depth << 16),
        torch.full(shape, update, dtype=torch.int64, device=sequence_ids.device),
    ]
    return torch.stack(philox(counter, seed), dim=-1).to(torch.int32)


def philox(counter: list[Tensor], seed: int) -> list[Tensor]:
    """Philox4x32-10: four int64 tensors holding 32-bit words, mapped by a bijection that the 64-bit ``seed`` selects."""
    a, b, c, d = counter
    key = [seed & _LOW, (seed >> 32) & _LOW]
    for _ in range(_ROUNDS):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((right >> 32) & _LOW) ^ b ^ key[0],
            right & _LOW,
            ((left >> 32) & _LOW) ^ d ^ key[1],
            left & _LOW,
        )
        key = [(word + step) & _LOW for word, step in zip(key, _WEYL, strict=True)]
    return [a, b, c, d]


def normal(keys: Tensor, channels: int) -> Tensor:
    """Standard normals (rows, channels) float32 of row keys (rows, 4) int32.

    Row r, channel c depends on keys[r] and c alone.
    """
    half = -(-channels // (2 * _LANES)) * _LANES
    words = torch.arange(2 * half, dtype=torch.int32, device=keys.device) * _signed(_WEYL[0])
    x = words + keys[:, 0:1]
    scratch = torch.empty_like(x)
    _fold(x, scratch, 16).mul_(0x7FEB352D).add_(keys[:, 1:2])
    _fold(x, scratch, 15).mul_(_signed(0x846CA68B)).add_(keys[:, 2:3])
    _fold(x, scratch, 16).mul_(_signed(0x9E3779B1)).add_(keys[:, 3:4])
    _fold(x, scratch, 15)
    first, second = x[:, :half], x[:, half:]
    radius = first.bitwise_and(0x7FFFFFFF).to(torch.float32).mul_(2.0**-31).add_(2.0**-32)
    radius.log_().mul_(-2.0).clamp_(min=0.0).sqrt_()
    angle = second.to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
    out = torch.empty(x.shape, dtype=torch.float32, device=keys.device)
    torch.cos(angle, out=out[:, :half]).mul_(radius)
    torch.sin(angle, out=out[:, half:]).mul_(radius)
    return out[:, :channels]


def _fold(x: Tensor, scratch: Tensor, bits: int) -> Tensor:
    """x ^= x >>> bits, with the logical shift torch lacks for int32."""
    torch.bitwise_right_shift(x, bits, out=scratch).bitwise_and_((1 << (32 - bits)) - 1)
    return x.bitwise_xor_(scratch)


def _signed(word: int) -> int:
    """A 32-bit word as the int32 of the same bits."""
    return word - (1 << 32) if word >= 1 << 31 else word
