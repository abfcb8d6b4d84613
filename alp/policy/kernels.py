"""The noise as two Triton kernels for a GPU: hidden + σ ε, and the dot products of a gradient with the same ε.

One program a row. It makes the row's key itself (Philox, word for word that of ``streams``), then draws its normals in
registers, so that a layer is one launch in the forward and one in the backward, and nothing is written but the sum and
three numbers a row. Keys and channel words are those of ``streams`` to the bit, normals to 1e-6: logarithm, sine and
cosine are polynomials of our own, because those of the device are approximate (its logarithm is off by 1e-5 where the
radius is small) and differ from card to card.

Imported only where Triton is (``noise.device_kernels`` decides): it comes with the CUDA builds of torch. The helpers
that compute take numbers, not pointers, and use ``triton.language`` by functions alone, so that a test without Triton
can run their source on numpy.
"""

# mypy: disable-error-code="import-untyped, import-not-found, misc, no-untyped-def, untyped-decorator"
from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .streams import LOW, MIX, MULTIPLIERS, ROUNDS, WEYL, Normals, RowNames, channel_words

_LEFT, _RIGHT = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_STEP_LOW, _STEP_HIGH = tl.constexpr(WEYL[0]), tl.constexpr(WEYL[1])
_PHILOX_ROUNDS = tl.constexpr(ROUNDS)
_FIRST_MIX, _SECOND_MIX = tl.constexpr(MIX[0]), tl.constexpr(MIX[1])
_UNIFORM, _ANGLE = tl.constexpr(2.0**-31), tl.constexpr(2.0 * math.pi * 2.0**-32)
_QUARTERS = tl.constexpr(2.0 / math.pi)
_SIZES = (256, 512, 1024)  # pairs of channels at a time: two to eight a thread of a program's four warps
_SCALARS = ["count", "seed_low", "seed_high", "update", "layer"]  # no kernel of its own for each value of these
_TOLERANCE = 2e-6  # kernels and torch's way on the device are each within 1e-6 of a CPU's normals


@triton.jit
def row_key(position, sequence, layer, update, seed_low, seed_high):
    """The four int32 words of ``streams.row_keys`` of one row: fields int64 or int32, seed in two words."""
    a, b = tl.cast(position, tl.uint32), tl.cast(sequence, tl.uint32)
    c = tl.cast(sequence >> 32, tl.uint32) | (tl.cast(layer, tl.uint32) << 16)
    d = tl.cast(update, tl.uint32)
    low, high = tl.cast(seed_low, tl.uint32), tl.cast(seed_high, tl.uint32)
    for _ in tl.static_range(_PHILOX_ROUNDS):
        left, right = tl.umulhi(a, _LEFT), tl.umulhi(c, _RIGHT)
        b, d, a, c = c * _RIGHT, a * _LEFT, right ^ b ^ low, left ^ d ^ high
        low, high = low + _STEP_LOW, high + _STEP_HIGH
    return tl.cast(a, tl.int32), tl.cast(b, tl.int32), tl.cast(c, tl.int32), tl.cast(d, tl.int32)


@triton.jit
def hashed(word, first, second, last):
    """A channel's int32 word with three words of its row's key mixed in, as ``streams.Normals.draw`` does it."""
    x = word + first
    x = (x ^ (x >> 16)) * _FIRST_MIX + second
    return (x ^ (x >> 15)) * _SECOND_MIX + last


@triton.jit
def logarithm(x):
    """ln x of float32 x, normal and positive, to 1 ulp, also near 1 (Cephes' logf)."""
    bits = tl.cast(x, tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # x = 2^exponent (1 + f), 1 + f in [sqrt(1/2), sqrt(2))
    f = tl.cast(bits - (exponent << 23), tl.float32, bitcast=True) - 1.0
    power = tl.cast(exponent, tl.float32)
    y = 7.0376836292e-2 * f - 1.1514610310e-1
    y = y * f + 1.1676998740e-1
    y = y * f - 1.2420140846e-1
    y = y * f + 1.4249322787e-1
    y = y * f - 1.6668057665e-1
    y = y * f + 2.0000714765e-1
    y = y * f - 2.4999993993e-1
    y = y * f + 3.3333331174e-1
    y = y * f * (f * f) - 2.12194440e-4 * power - 0.5 * (f * f)
    return f + y + 0.693359375 * power


@triton.jit
def cosine_sine(angle):
    """cos and sin of float32 angles within [-π, π], to 1e-7 (Cephes' sinf and cosf)."""
    quarter = tl.floor(angle * _QUARTERS + 0.5)
    # π/2 in three parts, of which the first two have so few bits that their products are exact.
    x = angle - quarter * 1.5703125 - quarter * 4.837512969970703125e-4 - quarter * 7.54978995489188e-8
    square = x * x
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * x + x
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    turn = tl.cast(quarter, tl.int32)
    odd = (turn & 1) != 0
    first, second = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(((turn + 1) & 2) != 0, -first, first), tl.where((turn & 2) != 0, -second, second)


@triton.jit
def normal_pair(radius_word, angle_word):
    """Two standard normals, float32, of two int32 words by Box-Muller, as ``streams.Normals.draw`` does it."""
    uniform = tl.cast(radius_word | 1, tl.float32) * _UNIFORM
    radius = tl.sqrt_rn(-logarithm(uniform * uniform))
    cosine, sine = cosine_sine(tl.cast(angle_word, tl.float32) * _ANGLE)
    return radius * cosine, radius * sine


@triton.jit
def _draw(words, column, inside, HALF: tl.constexpr, a, b, c, d):
    """The normals of channels ``column`` and ``column + HALF`` of a row with key (a, b, c, d)."""
    radius_word = hashed(tl.load(words + column, mask=inside, other=0), a, b, c)
    angle_word = hashed(tl.load(words + HALF + column, mask=inside, other=0), a, b, d)
    return normal_pair(radius_word, angle_word)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """float32 ``x`` as ``dtype`` holds it."""
    return tl.cast(tl.cast(x, dtype), tl.float32)


@triton.jit
def _row_rms(row, count: tl.constexpr, PAIRS: tl.constexpr):
    """The root mean square of the ``count`` numbers from ``row`` on."""
    HALF: tl.constexpr = (count + 1) // 2
    squares = tl.zeros((PAIRS,), tl.float32)
    for start in range(0, HALF, PAIRS):
        column = start + tl.arange(0, PAIRS)
        first = tl.cast(tl.load(row + column, mask=column < HALF, other=0.0), tl.float32)
        second = tl.cast(tl.load(row + HALF + column, mask=column + HALF < count, other=0.0), tl.float32)
        squares += first * first + second * second
    return tl.sqrt_rn(tl.sum(squares, axis=0) * (1.0 / count))


@triton.jit
def _add_to(hidden, result, at, inside, noise, std, NARROW: tl.constexpr):
    """Writes the sum at offsets ``at``; returns the squares of what was really added and of what was there."""
    before = tl.cast(tl.load(hidden + at, mask=inside, other=0.0), tl.float32)
    added = std * noise
    if NARROW:
        added = _rounded(std * _rounded(noise, result.dtype.element_ty), result.dtype.element_ty)
    after = tl.cast(before + added, result.dtype.element_ty)
    tl.store(result + at, after, mask=inside)
    added = tl.where(inside, tl.cast(after, tl.float32) - before, 0.0)
    return added * added, before * before


@triton.jit(do_not_specialize=_SCALARS)
def _add(
    hidden, result, std, names, valid, words, squares, sizes, count, seed_low, seed_high, update, layer,
    CHANNELS: tl.constexpr, PAIRS: tl.constexpr, RELATIVE: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64)  # rows times channels may exceed 32 bits
    HALF: tl.constexpr = (CHANNELS + 1) // 2
    sequence, position = tl.load(names + row), tl.load(names + count + row)
    a, b, c, d = row_key(position, sequence, layer, update, seed_low, seed_high)
    size = tl.load(std)
    if RELATIVE:
        size = size * _row_rms(hidden + row * CHANNELS, CHANNELS, PAIRS)
        if NARROW:
            size = _rounded(size, result.dtype.element_ty)
        tl.store(sizes + row, size)
    added, present = tl.zeros((PAIRS,), tl.float32), tl.zeros((PAIRS,), tl.float32)
    for start in range(0, HALF, PAIRS):
        column = start + tl.arange(0, PAIRS)
        first, second = _draw(words, column, column < HALF, HALF, a, b, c, d)
        at = row * CHANNELS + column
        more, there = _add_to(hidden, result, at, column < HALF, first, size, NARROW)
        added, present = added + more, present + there
        more, there = _add_to(hidden, result, at + HALF, column + HALF < CHANNELS, second, size, NARROW)
        added, present = added + more, present + there
    real = tl.load(valid + row) != 0
    tl.store(squares + row, tl.where(real, tl.sum(added, axis=0), 0.0))
    tl.store(squares + count + row, tl.where(real, tl.sum(present, axis=0), 0.0))


@triton.jit(do_not_specialize=_SCALARS)
def _dot(
    grad, names, words, dots, count, seed_low, seed_high, update, layer,
    CHANNELS: tl.constexpr, PAIRS: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0), tl.int64)
    HALF: tl.constexpr = (CHANNELS + 1) // 2
    sequence, position = tl.load(names + row), tl.load(names + count + row)
    a, b, c, d = row_key(position, sequence, layer, update, seed_low, seed_high)
    total = tl.zeros((PAIRS,), tl.float32)
    for start in range(0, HALF, PAIRS):
        column = start + tl.arange(0, PAIRS)
        first, second = _draw(words, column, column < HALF, HALF, a, b, c, d)
        if NARROW:
            first, second = _rounded(first, grad.dtype.element_ty), _rounded(second, grad.dtype.element_ty)
        at = grad + row * CHANNELS + column
        total += tl.cast(tl.load(at, mask=column < HALF, other=0.0), tl.float32) * first
        total += tl.cast(tl.load(at + HALF, mask=column + HALF < CHANNELS, other=0.0), tl.float32) * second
    tl.store(dots + row, tl.sum(total, axis=0))


def add(
    hidden: Tensor,
    std: Tensor,
    names: RowNames,
    valid: Tensor,
    result: Tensor,
    sizes: Tensor | None = None,
    *,
    narrow: bool = False,
) -> Tensor:
    """Writes hidden + std ε into ``result``; returns the sums of squares (2, rows) float32 of what was really added
    and of ``hidden``, 0 for rows that are not ``valid``.

    ``hidden`` and ``result`` (rows, channels) contiguous, of one dtype, half precision or float32; ``std`` one float32
    on the device; ``valid`` (rows,) bool. With ``sizes`` (rows,) float32 the noise of a row is relative to its RMS, and
    its size is written there. ``narrow``: size, ε, their product and the sum are each rounded to the dtype of
    ``hidden``.
    """
    rows, channels = hidden.shape
    squares = torch.empty(2, rows, dtype=torch.float32, device=hidden.device)
    if rows:
        with torch.cuda.device_of(hidden):  # a model's layers may lie on several devices
            _add[(rows,)](
                hidden, result, std, names.rows, valid, _words(channels, hidden.device), squares,
                squares if sizes is None else sizes, *_scalars(names),
                CHANNELS=channels, PAIRS=_pairs(channels), RELATIVE=sizes is not None, NARROW=narrow,
            )  # fmt: skip
    return squares


def dots(grad: Tensor, names: RowNames, *, narrow: bool = False) -> Tensor:
    """(rows,) float32: the dot product of each row of ``grad`` (rows, channels), contiguous, with its noise, which
    ``narrow`` rounds to the dtype of ``grad``."""
    rows, channels = grad.shape
    found = torch.empty(rows, dtype=torch.float32, device=grad.device)
    if rows:
        with torch.cuda.device_of(grad):
            _dot[(rows,)](
                grad, names.rows, _words(channels, grad.device), found, *_scalars(names),
                CHANNELS=channels, PAIRS=_pairs(channels), NARROW=narrow,
            )  # fmt: skip
    return found


def trial(device: torch.device) -> None:
    """Both kernels once, against torch's own way. Raises whatever keeps Triton from compiling here (it needs a C
    compiler, say), RuntimeError where the answers differ."""
    with torch.inference_mode(False), torch.no_grad():
        rows = torch.arange(64, device=device)
        names = RowNames(5, 3, 1, torch.stack([rows << 35, rows]))
        hidden, one = torch.zeros(64, 97, device=device), torch.ones((), device=device)
        found = torch.empty_like(hidden)
        squares = add(hidden, one, names, rows >= 0, found)
        expected = Normals(97, 64, device).draw(names.keys())
        sums = expected.square().sum(-1)
        relative, sizes = torch.empty_like(hidden), torch.empty_like(sums)
        add(torch.ones_like(hidden), one, names, rows >= 0, relative, sizes)
        worst = max(
            float((found - expected).abs().max()),
            float((relative - 1 - expected).abs().max()),
            float((sizes - 1).abs().max()),
            float((squares[0] / sums - 1).abs().max()),
            float((dots(expected.contiguous(), names) / sums - 1).abs().max()),
        )
    if not worst <= _TOLERANCE:
        raise RuntimeError(f"its kernels are {worst} off torch's own noise")


def _scalars(names: RowNames) -> tuple[int, ...]:
    return names.rows.shape[1], names.seed & LOW, names.seed >> 32, names.update, names.layer


def _pairs(channels: int) -> int:
    """Pairs of channels that a program draws at a time: as few idle lanes as can be, then as few rounds."""
    half = (channels + 1) // 2
    if half <= _SIZES[0]:
        return max(16, int(triton.next_power_of_2(half)))
    return min(_SIZES, key=lambda size: (-(-half // size) * size, -size))


@functools.lru_cache(maxsize=16)
def _words(channels: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # kept for later callers
        return channel_words((channels + 1) // 2, device)
