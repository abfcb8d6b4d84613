"""The noise generator itself, against plain integers: known answers, the layout of keys, independence of every two
rows.

False-alarm rate of the statistical tests: each figure is standardised to a normal variable and compared with 6
(two-sided 2e-9), fewer than 100 figures: below 2e-7 in all. Draws are keyed, so a test that passes once passes always.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alp.policy.streams import FIELD_BITS, Normals, check_fields, normals, philox, row_keys

from .cases import PROPERTY

CPU = torch.device("cpu")
LIMIT = 6.0
WORD = 0xFFFFFFFF


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011) on Python's integers."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k, right & WORD, (left >> 32) ^ d ^ m, left & WORD
        k, m = (k + 0x9E3779B9) & WORD, (m + 0xBB67AE85) & WORD
    return [a, b, c, d]


def signed(word: int) -> int:
    """The int32 of a 32-bit word."""
    return word - (1 << 32) if word & 0x80000000 else word


def plain_normals(key: list[int], channels: int) -> list[float]:
    """A row of normals in float64, one word at a time."""
    half = (channels + 1) // 2

    def word(channel: int, last: int) -> int:
        x = signed((plain_philox([channel, 0, 0, 0], [0x616C70, 0])[0] + key[0]) & WORD)
        x = signed(((x ^ (x >> 16)) * 0x7FEB352D + key[1]) & WORD)
        return signed(((x ^ (x >> 15)) * 0x846CA68B + last) & WORD)

    first = [math.sqrt(-2 * math.log(abs(word(j, key[2]) | 1) / 2.0**31)) for j in range(half)]
    angle = [2 * math.pi * word(half + j, key[3]) / 2.0**32 for j in range(half)]
    pairs = list(zip(first, angle, strict=True))
    return ([r * math.cos(a) for r, a in pairs] + [r * math.sin(a) for r, a in pairs])[:channels]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    """A bijection is promised: these are the published answers of Philox4x32-10, for ours and for the plain reading of
    it."""
    numbers, (low, high), answer = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    assert plain_philox(numbers, [low, high]) == answer
    found = philox([torch.tensor([word]) for word in numbers], (high << 32) | low)
    assert [int(word) for word in found] == answer


fields = {name: st.integers(0, (1 << bits) - 1) for name, bits in FIELD_BITS.items()}


@PROPERTY
@given(seed=st.integers(0, 2**64 - 1), **fields)
def test_every_bit_of_every_field_is_in_the_key(
    seed: int, position: int, layer: int, update: int, sequence: int
) -> None:
    """Fields that overlap or are cut: the four fill the 128 bits of the counter side by side, so no two keys can
    meet."""
    counter = [position, sequence & WORD, (sequence >> 32) | (layer << 16), update]
    expected = plain_philox(counter, [seed & WORD, seed >> 32])
    found = row_keys(seed, update, torch.tensor([sequence]), torch.tensor([position]), layer)
    assert found.dtype is torch.int32
    assert found.flatten().tolist() == [signed(word) for word in expected]


@pytest.mark.parametrize("channels", [1, 2, 7, 64, 97])
def test_normals_are_those_of_the_plain_reading(channels: int) -> None:
    """Any change of the generator changes every result of every run: it must be meant."""
    keys = row_keys(11, 4, torch.arange(6) * 1001, torch.arange(6), 2)
    expected = [plain_normals([word & WORD for word in key], channels) for key in keys.tolist()]
    found = Normals(channels, 6, CPU).draw(keys)
    assert found.dtype is torch.float32
    assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=3e-6, atol=1e-6)


def test_a_row_does_not_depend_on_its_place() -> None:
    """Vector units and threads cut the memory differently: the same key must give the same bits wherever it stands."""
    for channels in (3, 50, 96, 577):
        keys = row_keys(1, 2, torch.arange(2000), torch.arange(2000) % 7, 0)
        whole = Normals(channels, 2000, CPU).draw(keys).clone()
        source = normals(channels, 2000, CPU)
        for start, count in ((0, 1), (1, 1), (3, 2), (5, 31), (100, source.rows), (1999, 1)):
            count = min(count, source.rows, 2000 - start)
            assert torch.equal(source.draw(keys[start : start + count]), whole[start : start + count]), (
                channels,
                start,
            )
        before = torch.get_num_threads()
        for threads in (2, 3):
            torch.set_num_threads(threads)
            again = Normals(channels, 2000, CPU).draw(keys)
            torch.set_num_threads(before)
            assert torch.equal(again, whole), (channels, threads)


def standardised_square(x: Tensor) -> tuple[float, float]:
    """Mean square of all correlations between two different rows, standardised, and the largest of them.

    With independent rows of length n, each scaled correlation r·√n has variance 1, and the R(R-1)/2 of them hardly know
    of one another. Pairs that are correlated each in its own way cancel in a mean of correlations, not in the mean
    square.
    """
    x = x - x.mean()
    x = x / x.square().mean().sqrt()
    rows, length = x.shape
    correlation = (x @ x.T / math.sqrt(length)).fill_diagonal_(0.0)
    pairs = rows * (rows - 1) / 2
    mean = float(correlation.double().square().sum()) / (2 * pairs)
    return (mean - 1) / math.sqrt(2 / pairs), float(correlation.abs().max())


@pytest.fixture(scope="module")
def block() -> Tensor:
    """1500 tokens of one layer and update, 800 channels: 1.2e6 draws, 1.1e6 pairs of rows."""
    keys = row_keys(3, 7, torch.arange(1500) // 100, torch.arange(1500) % 100, 5)
    return Normals(800, 1500, CPU).draw(keys).clone()


@pytest.mark.parametrize("what", ["value", "square", "sign", "radius"])
def test_no_two_rows_and_no_two_channels_are_related(block: Tensor, what: str) -> None:
    """A hash that carries a difference of keys through to the output: two rows are then shifted copies of one
    another."""
    half = block.shape[1] // 2
    x = {
        "value": block,
        "square": block.square(),
        "sign": block.sign(),
        "radius": (-(block[:, :half].square() + block[:, half:].square()) / 2).exp(),
    }[what]
    for name, matrix in (("rows", x), ("channels", x.T)):
        score, largest = standardised_square(matrix)
        assert abs(score) < LIMIT, name
        if what != "square":  # its heavy tail reaches further
            assert largest < LIMIT + 1, name


def test_layers_updates_sequences_and_seeds_are_not_related() -> None:
    """The same test over keys that differ in the other fields, one at a time and together."""
    rows = []
    for seed, update, layer in itertools.product((0, 1, 2**32), (0, 1, 2, 1000), (0, 1, 2, 27)):
        keys = row_keys(
            seed, update, torch.tensor([0, 1, 2**32, 5, 6, 7, 8]), torch.tensor([0, 0, 0, 1, 1, 2, 3]), layer
        )
        rows.append(Normals(1024, 7, CPU).draw(keys).clone())
    score, largest = standardised_square(torch.cat(rows))
    assert abs(score) < LIMIT
    assert largest < LIMIT + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("sequence", -1), ("sequence", 2**48), ("position", -1), ("position", 2**32), ("update", -1), ("update", 2**32)],
)
def test_fields_that_do_not_fit_are_refused(name: str, value: int) -> None:
    """A field that wraps round takes the noise of another key."""
    fields = {"sequence": 0, "position": 0, "update": 0} | {name: value}
    with pytest.raises(ValueError, match=name):
        check_fields(fields["update"], torch.tensor([fields["sequence"]]), torch.tensor([fields["position"]]))
