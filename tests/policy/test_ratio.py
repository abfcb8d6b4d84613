"""`log_ratio`: values, gradient, clamp and masking of all five levels."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from alp.policy import group_advantages, log_ratio, policy_loss
from alp.policy.ratio import unchecked_log_ratio

from . import reference
from .cases import JUNK, MARGIN, PROPERTY, Case, assert_close, cases, double, orders

every_level = pytest.mark.parametrize("level", reference.LEVELS)


def computed(case: Case, level: str, *, grad: bool = False) -> tuple[Tensor, Tensor]:
    """Log-ratios under test and the numerator leaf."""
    numerator, denominator, mask = case.tensors(grad=grad)
    turns = torch.tensor(case.turn_ids) if level.startswith("turn") else None
    return log_ratio(numerator, denominator, mask, level=level, turn_ids=turns), numerator


@every_level
@PROPERTY
@given(case=cases())
def test_values_and_gradient(level: str, case: Case) -> None:
    """A wrong aggregate, turn end, clamp, gradient path, or a masked value that leaks in."""
    expected = reference.log_ratio(case.numerator, case.denominator, case.mask, level, case.turn_ids)
    assume(expected.margin > MARGIN)
    values, numerator = computed(case, level, grad=True)
    assert values.dtype == torch.float64
    assert_close(values, expected.values, "log r")
    probe = double([[math.sin(1.0 + 3 * b + t) for t in range(len(row))] for b, row in enumerate(case.mask)])
    (gradient,) = torch.autograd.grad((values * probe).sum(), numerator)
    slopes = double(expected.slopes)
    assert_close(gradient, (probe * slopes).tolist(), "gradient")
    assert (gradient[slopes == 0] == 0).all(), "exactly zero when masked or outside the clamp"


@every_level
@PROPERTY
@given(case=cases(spread="close"), pad=st.sampled_from(JUNK))
def test_masked_values_never_matter(level: str, case: Case, pad: float) -> None:
    """A product with the mask (0 * inf is NaN), or padding that takes part in an aggregate."""
    values, _ = computed(case, level)
    padded = Case(
        [[*row, pad] for row in case.numerator],
        [[*row, -pad] for row in case.denominator],
        [[*row, False] for row in case.mask],
        [[*row, 0] for row in case.turn_ids],
        case.advantages,
        case.float_mask,
    )
    longer, _ = computed(padded, level)
    assert torch.equal(longer[:, -1], torch.zeros(len(case.mask), dtype=torch.float64))
    assert_close(longer[:, :-1], values.tolist(), "log r beside padding", tol=1e-12)


@every_level
@PROPERTY
@given(case=cases(spread="close"), data=st.data())
def test_rows_are_independent(level: str, case: Case, data: st.DataObject) -> None:
    """An aggregate over the batch instead of over each sequence."""
    order = data.draw(orders(case))
    values, _ = computed(case, level)
    shuffled, _ = computed(case.rows(order), level)
    assert torch.equal(shuffled, values[order])


@every_level
@PROPERTY
@given(case=cases(spread="close", some_valid=True), rewards=st.lists(st.integers(0, 4), min_size=4, max_size=4))
def test_on_policy_is_reinforce(level: str, case: Case, rewards: list[int]) -> None:
    """On-policy, every level's ratio is exactly 1 and its policy gradient is that of REINFORCE."""
    copies = [b % len(case.mask) for b in range(4)]
    case = case.rows(copies)
    case.denominator = case.numerator
    advantages = group_advantages(double([r / 4 for r in rewards]), torch.tensor([0, 1, 0, 1]))
    values, numerator = computed(case, level, grad=True)
    assert torch.equal(values, torch.zeros_like(values))
    mask = case.mask_tensor()
    loss, _ = policy_loss(values, advantages, mask, clip_low=0.2, clip_high=0.28, dual_clip=10.0)
    (gradient,) = torch.autograd.grad(loss, numerator)
    groups = reference.group_advantages([r / 4 for r in rewards], [0, 1, 0, 1])
    tokens = sum(map(sum, case.mask))
    expected = [[-groups[b] / tokens if keep else 0.0 for keep in row] for b, row in enumerate(case.mask)]
    assert_close(gradient, expected, "policy gradient", scale=1e-3)


@every_level
def test_levels_differ_where_they_should(level: str) -> None:
    """Two levels behind one name: the worked example of three tokens in two turns, one token of tool output between."""
    d = [[0.1, 0.2, 7.0, 0.4]]
    mask = torch.tensor([[True, True, False, True]])
    turns = torch.tensor([[0, 0, 5, 1]])
    values = log_ratio(
        double(d), double([[0.0] * 4]), mask, level=level, turn_ids=turns if level.startswith("turn") else None
    )
    expected = {
        "token": [0.1, 0.2, 0.0, 0.4],
        "sequence": [0.7, 0.7, 0.0, 0.7],
        "sequence_geometric": [0.7 / 3, 0.7 / 3, 0.0, 0.7 / 3],
        "prefix": [0.1, 0.3, 0.0, 0.7],
        "turn": [0.3, 0.3, 0.0, 0.7],
        "turn_geometric": [0.15, 0.15, 0.0, 0.4],
    }
    assert_close(values, [expected[level]], level)


def test_turn_ids_of_masked_tokens_are_ignored() -> None:
    """Padding that carries turn 0 would stretch the first turn to the end of the row."""
    d, zero = double([[0.1, 0.2, 0.4, 0.0, 0.0]]), double([[0.0] * 5])
    mask = torch.tensor([[True, True, True, False, False]])
    for stray in (0, 1, -1, 99, 2**40):
        turns = torch.tensor([[0, 0, 1, stray, stray]])
        values = log_ratio(d, zero, mask, level="turn", turn_ids=turns)
        assert_close(values, [[0.3, 0.3, 0.7, 0.0, 0.0]], f"stray turn id {stray}")


@pytest.mark.parametrize("turns", [[2, 2, 0, 0], [7, 7, 3, 3]])
def test_turns_end_where_they_stand(turns: list[int]) -> None:
    """The sum runs over positions up to the turn's end: turn numbers that fall along the row must not reorder it."""
    try:
        values = log_ratio(
            double([[0.1, 0.2, 0.3, 0.4]]),
            double([[0.0] * 4]),
            torch.ones(1, 4),
            level="turn",
            turn_ids=torch.tensor([turns]),
        )
    except ValueError:
        return  # a refusal is as good
    assert_close(values, [[0.3, 0.3, 1.0, 1.0]], "log r")


@every_level
@pytest.mark.parametrize("gap", [25.0, -25.0, 1e4, -1e4])
def test_no_gradient_outside_the_clamp(level: str, gap: float) -> None:
    """A clamp of the aggregate alone would leave the gradient alive beyond +-20."""
    numerator = double([[-3.0]]).requires_grad_()
    values = log_ratio(
        numerator,
        double([[-3.0 - gap]]),
        torch.ones(1, 1),
        level=level,
        turn_ids=torch.zeros(1, 1, dtype=torch.long) if level.startswith("turn") else None,
    )
    assert values.item() == math.copysign(20.0, gap)
    values.sum().backward()
    assert numerator.grad is not None
    assert numerator.grad.item() == 0.0


@every_level
def test_current_nan_propagates(level: str) -> None:
    """A NaN of the current policy on a valid token must reach the loss, so that the trainer skips the step."""
    numerator = double([[math.nan, -1.0], [-1.0, -2.0]]).requires_grad_()
    turns = torch.zeros(2, 2, dtype=torch.long) if level.startswith("turn") else None
    mask = torch.ones(2, 2, dtype=torch.bool)
    values = log_ratio(numerator, double([[-1.0, -1.0], [-1.0, -2.0]]), mask, level=level, turn_ids=turns)
    assert values[0, 0].isnan()
    assert not values[1].isnan().any()
    loss, _ = policy_loss(values, double([1.0, -1.0]), mask, clip_low=0.2, clip_high=0.28, dual_clip=10.0)
    assert loss.isnan()


@every_level
def test_an_infinity_of_the_current_policy_is_no_weight(level: str) -> None:
    """In an update, which looks for none: clamped, it would be a weight of e^20 or e^-20."""
    for value in (math.inf, -math.inf):
        numerator, turns = (
            double([[value, -1.0]]),
            torch.zeros(1, 2, dtype=torch.long) if level.startswith("turn") else None,
        )
        mask = torch.ones(1, 2, dtype=torch.bool)
        values = unchecked_log_ratio(numerator, double([[-1.0, -1.0]]), mask, level=level, turn_ids=turns)
        assert values[0, 0].isnan()


@pytest.mark.parametrize("level", ["sequence", "sequence_geometric", "prefix", "turn", "turn_geometric"])
def test_a_narrow_dtype_keeps_the_aggregate_s_precision(level: str) -> None:
    """A ratio near 1 from log-probs of size 10: added to a log-prob on the way, it loses all but its first digits."""
    numerator = torch.linspace(-10.0, -2.0, 64).repeat(2, 1).bfloat16().requires_grad_()
    denominator = torch.where(torch.arange(64) % 8 == 0, numerator.detach() * 1.0078125, numerator.detach())
    mask = torch.ones(2, 64, dtype=torch.bool)
    turns = (torch.arange(64) // 16).repeat(2, 1) if level.startswith("turn") else None
    values = log_ratio(numerator, denominator, mask, level=level, turn_ids=turns)
    whole = log_ratio(numerator.double(), denominator.double(), mask, level=level, turn_ids=turns)
    assert values.dtype is torch.bfloat16
    assert torch.allclose(values.double(), whole, rtol=2**-6, atol=0)
    values.sum().backward()
    assert numerator.grad is not None
    assert bool((numerator.grad == 1).all())


GOOD = (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [
        ("numerator", 0, torch.zeros(3)),
        ("numerator", 0, torch.zeros(2, 3, dtype=torch.long)),
        ("denominator", 1, torch.zeros(2, 4)),
        ("denominator", 1, torch.zeros(3, 2)),
        ("denominator", 1, torch.zeros(2, 3, dtype=torch.long)),
        ("denominator", 1, torch.full((2, 3), math.nan)),
        ("denominator", 1, torch.full((2, 3), -math.inf)),
        ("numerator", 0, torch.full((2, 3), -math.inf)),
        ("mask", 2, torch.ones(2, 1)),
        ("mask", 2, torch.ones(2)),
    ],
)
def test_bad_tensors_are_refused(name: str, position: int, value: Tensor) -> None:
    """Broadcasting or casting a wrong input silently instead of naming it."""
    arguments = list(GOOD)
    arguments[position] = value
    with pytest.raises(ValueError, match=name):
        log_ratio(*arguments, level="token")


def test_bad_level_and_turns_are_refused() -> None:
    """A misspelt level that falls through to another one, or a turn level without turns."""
    for level in ("product", "Token", "", "seq"):
        with pytest.raises(ValueError, match="level"):
            log_ratio(*GOOD, level=level)
    for turns in (None, torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, dtype=torch.long)):
        with pytest.raises(ValueError, match="turn_ids"):
            log_ratio(*GOOD, level="turn", turn_ids=turns)
