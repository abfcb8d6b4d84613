"""Which layers a selection means, against the specification's formulas in exact fractions."""

from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
import torch

from alp.policy.layers import resolve_layers


def test_named_bands_are_the_formulas() -> None:
    """A share rounded down or to the nearest, a middle that leans to the other side, a late band that misses the
    end."""
    for depth in range(1, 201):
        count = ceil(Fraction(1, 5) * depth)
        starts = {"early": 0, "middle": floor(Fraction(depth - count, 2)), "late": depth - count}
        for name, start in starts.items():
            assert resolve_layers(name, depth) == list(range(start, start + count)), (name, depth)
        assert resolve_layers("all", depth) == list(range(depth))


@pytest.mark.parametrize("depth", [1, 2, 7, 36])
def test_bands_and_lists(depth: int) -> None:
    """An end that counts, a string read otherwise than its tuple, a list of two taken for a band, indices left in the
    order given."""
    for start in range(depth):
        for end in range(start + 1, depth + 1):
            expected = list(range(start, end))
            assert resolve_layers((start, end), depth) == expected
            assert resolve_layers(f"{start}:{end}", depth) == expected
            assert resolve_layers(expected[::-1], depth) == expected
    assert resolve_layers([0, depth - 1] if depth > 1 else [0], depth) == sorted({0, depth - 1})


@pytest.mark.parametrize("depth", [1, 2, 7, 36])
def test_bands_are_slices(depth: int) -> None:
    """An end left out or counted from the end that means another layer than Python's slice, or reaches outside."""
    for start in [None, *range(-depth - 1, depth + 2)]:
        for end in [None, *range(-depth - 1, depth + 2)]:
            if start is end is None:
                continue
            text = f"{'' if start is None else start}:{'' if end is None else end}"
            expected = list(range(depth))[start:end]
            reaches_out = any(value is not None and not -depth <= value <= depth for value in (start, end))
            if expected and not reaches_out:
                assert resolve_layers(text, depth) == expected, text
                if start is not None and end is not None:
                    assert resolve_layers((start, end), depth) == expected, text
            else:
                with pytest.raises(ValueError, match=f"^layers: band {text} is empty or outside the model's"):
                    resolve_layers(text, depth)


def test_a_band_without_the_first_layer_needs_another() -> None:
    """`1:` of a model of one layer: noise nowhere."""
    with pytest.raises(ValueError, match=r"layers: band 1: is empty or outside the model's one layer \(0:1\)"):
        resolve_layers("1:", 1)


@pytest.mark.parametrize(
    "kind",
    [int, np.int64, np.int32, np.uint8, lambda n: torch.tensor(n)],
    ids=["int", "int64", "int32", "uint8", "tensor"],
)
def test_integers_of_every_kind(kind: Any) -> None:
    """NumPy's integers refused, or left as they are: indices must be plain ones, which JSON and state dicts hold."""
    for layers, expected in (([kind(2), kind(0)], [0, 2]), ((kind(1), kind(3)), [1, 2])):
        found = resolve_layers(layers, 4)
        assert found == expected
        assert all(type(index) is int for index in found)
    assert resolve_layers(range(1, 3), 4) == [1, 2]


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ("", "unknown"),
        ("some", "unknown"),
        ("All", "unknown"),
        ("logits", "unknown"),
        (":", "unknown"),
        ("1:x", "unknown"),
        ("4:", "band 4: is empty or outside"),
        (":0", "band :0 is empty"),
        ("-5:", "band -5: is empty or outside the model's 4 layers"),
        (":5", "band :5"),
        ("-1:-2", "band -1:-2 is empty"),
        ("a:b", "unknown"),
        ("1:2:3", "unknown"),
        ("1:3\n", "unknown"),
        ("1.0:2.0", "unknown"),
        ("2:2", "band 2:2 is empty or outside"),
        ("-1:2", "band -1:2 is empty or outside"),
        ("0:5", r"band 0:5 is empty or outside the model's 4 layers \(0:4\)"),
        ((1, 1), "band 1:1 is empty"),
        ((3, 1), "band 3:1 is empty"),
        ((0, 5), "band 0:5"),
        ((-1, 2), "band -1:2"),
        ((), "a tuple is a band"),
        ((1,), "a tuple is a band"),
        ((0, 1, 2), "a tuple is a band"),
        ([], "the list is empty"),
        ([4], r"\[4\] lie outside 0..3"),
        ([0, -1], r"\[-1\] lie outside"),
        ([0, 1, 0], r"\[0\] are named more than once"),
        ([True], "got bool True"),
        ((False, True), "got bool False"),
        ([1.0], "got float 1.0"),
        ((0.0, 2), "got float 0.0"),
        (["0"], "got str '0'"),
        ([None], "got NoneType"),
        ([np.bool_(True)], "integers expected"),
        ([np.float64(1)], "integers expected"),
        ([[0, 1]], "got list"),
        (2, "got int 2"),
        (None, "got NoneType"),
        (True, "got bool True"),
        (b"all", "got bytes"),
        ({0, 1}, "got set"),
        (np.array([0, 1]), "got ndarray"),
        (slice(0, 2), "got slice"),
    ],
    ids=repr,
)
def test_bad_selections_are_refused(layers: Any, says: str) -> None:
    """A selection that perturbs nothing, or something else than was meant, in silence; the error names the argument and
    the fault."""
    with pytest.raises(ValueError, match=says) as caught:
        resolve_layers(layers, 4)
    assert str(caught.value).startswith("layers: ")
