"""Ratio, clipped loss and aggregation against TRL's `compute_loss`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from alp.policy import log_ratio
from tests.policy.cases import assert_close

from .cases import FIGURE, SEEDS, TOLERANCE, Case, chosen_case, random_case
from .our_side import ours
from .trl_side import POSITIONS, TrlSide

every_seed = pytest.mark.parametrize("seed", SEEDS)
LEVELS = {"token": "token", "sequence": "sequence_geometric"}  # TRL's name, ours
every_level = pytest.mark.parametrize("level", LEVELS)

# What TRL's loss types are in our words: aggregation, and what they divide by (None: what ours divides by of itself).
AGGREGATIONS = {
    "bnpo": ("token-mean", None),
    "dapo": ("token-mean", None),
    "dr_grpo": ("token-mean", "positions"),
    "grpo": ("seq-mean-token-mean", "rows"),
    "luspo": ("seq-mean-token-sum", "rows"),
}
every_loss_type = pytest.mark.parametrize("loss_type", AGGREGATIONS)


def normaliser(case: Case, loss_type: str) -> int | None:
    """What TRL divides by, where that is not what ours divides by."""
    return {"rows": case.rows, "positions": case.rows * POSITIONS}.get(AGGREGATIONS[loss_type][1] or "")


@every_seed
@every_loss_type
@every_level
def test_loss_and_gradient(trl_side: TrlSide, level: str, loss_type: str, seed: int) -> None:
    """Any disagreement about ratio, clip, aggregation or gradient path, over holes, ragged rows and an empty row."""
    case = random_case(seed)
    scored = trl_side.score(case, importance_sampling_level=level, loss_type=loss_type)
    loss, gradient = scored.loss()
    mine = ours(
        case,
        scored.advantages,
        level=LEVELS[level],
        aggregation=AGGREGATIONS[loss_type][0],
        normaliser=normaliser(case, loss_type),
    )
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)
    assert gradient[case.mask].abs().max() > 1e-3


@every_seed
@every_level
def test_dual_clip_is_delta(trl_side: TrlSide, level: str, seed: int) -> None:
    """TRL's `delta` and our dual clip agree as long as the bound lies above the clip range; so do the clip fractions
    per token."""
    case = random_case(seed)
    case = case.with_(current=case.old + 3 * (case.current - case.old))
    scored = trl_side.score(case, importance_sampling_level=level, loss_type="bnpo", delta=1.5)
    loss, gradient = scored.loss()
    mine = ours(case, scored.advantages, level=LEVELS[level], dual_clip=1.5)
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)
    if level == "token":
        assert mine.metrics["ratio/dual_clipped"] > 0
        assert_close(mine.metrics["ratio/clipped_low"], scored.metric("clip_ratio/low_mean"), "low", tol=FIGURE)
        assert_close(mine.metrics["ratio/clipped_high"], scored.metric("clip_ratio/high_mean"), "high", tol=FIGURE)


def test_difference_delta_inside_the_clip_range(trl_side: TrlSide) -> None:
    """Below 1 + high, `delta` caps what a positive advantage earns and no longer caps the loss of a negative one: ours
    is the reverse."""
    case = chosen_case([math.log(1.2)])
    scored = trl_side.score(case, loss_type="bnpo", delta=1.1)
    loss, gradient = scored.loss()
    gain, harm = scored.advantages.tolist()
    assert_close(loss, -(1.1 * gain + 1.2 * harm) / 2, "TRL", tol=TOLERANCE)
    assert_close(gradient, [[0.0], [-1.2 * harm / 2]], "TRL's gradient", tol=TOLERANCE)
    mine = ours(case, scored.advantages, dual_clip=1.1)
    assert_close(mine.loss, -(1.2 * gain + 1.1 * harm) / 2, "ours", tol=TOLERANCE)
    assert_close(mine.gradient, [[-1.2 * gain / 2], [0.0]], "our gradient", tol=TOLERANCE)


def test_clip_range_is_one_plus_epsilon_high(trl_side: TrlSide) -> None:
    """An upper bound read as the ratio itself, or a lower one used on both sides: TRL's default `epsilon_high` is
    `epsilon`."""
    points = [math.log(r) for r in (0.79, 0.81, 1.19, 1.21, 1.27, 1.29)]
    case = chosen_case(points)
    for epsilon_high, high in ((0.28, 0.28), (None, 0.2)):
        scored = trl_side.score(case, loss_type="bnpo", epsilon_high=epsilon_high)
        loss, gradient = scored.loss()
        mine = ours(case, scored.advantages, clip_high=high)
        assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
        assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)
        assert (gradient[0] != 0).tolist() == [math.exp(x) < 1 + high for x in points]
        assert (gradient[1] != 0).tolist() == [False] + [True] * 5


def test_difference_cispo_bounds_the_ratio_itself(trl_side: TrlSide) -> None:
    """With `cispo`, `epsilon_high` is the bound on r, not on r - 1, and a clipped token keeps a gradient, which it does
    not under a clip of ours."""
    case = chosen_case([math.log(1.5), math.log(3.0)])
    scored = trl_side.score(case, loss_type="cispo", epsilon_high=2.0)
    _, gradient = scored.loss()
    expected = [[-min(r, 2.0) * a / 4 for r in (1.5, 3.0)] for a in scored.advantages.tolist()]
    assert_close(gradient, expected, "TRL's gradient", tol=TOLERANCE)
    mine = ours(case, scored.advantages, clip_high=1.0)
    assert_close(mine.gradient[0], [expected[0][0], 0.0], "our gradient", tol=TOLERANCE)
    assert_close(
        mine.gradient[1, 1], -3.0 * scored.advantages[1] / 4, "our gradient without a dual clip", tol=TOLERANCE
    )


@every_seed
def test_difference_empty_rows(trl_side: TrlSide, seed: int) -> None:
    """`grpo` and `luspo` divide by every row of the batch, we by the rows with a token that counts."""
    case = random_case(seed)
    assert case.occupied == case.rows - 1
    for loss_type, aggregation in (("grpo", "seq-mean-token-mean"), ("luspo", "seq-mean-token-sum")):
        scored = trl_side.score(case, loss_type=loss_type)
        loss, gradient = scored.loss()
        mine = ours(case, scored.advantages, aggregation=aggregation)
        assert_close(mine.loss * case.occupied, loss * case.rows, loss_type, tol=TOLERANCE)
        assert_close(mine.gradient * case.occupied, gradient * case.rows, loss_type, tol=TOLERANCE)


@every_seed
def test_difference_sequence_is_never_the_product(trl_side: TrlSide, seed: int) -> None:
    """TRL's sequence ratio is the geometric mean; our `sequence` is the product, the length-th power of it, and TRL has
    none."""
    case = random_case(seed)
    scored = trl_side.score(case, importance_sampling_level="sequence", loss_type="bnpo", epsilon=1.0, epsilon_high=1e9)
    loss, _ = scored.loss()
    wide: dict[str, Any] = {"clip_low": 1.0, "clip_high": 1e9}
    product, geometric = (
        ours(case, scored.advantages, level=level, **wide).loss for level in ("sequence", "sequence_geometric")
    )
    assert_close(geometric, loss, "geometric", tol=TOLERANCE)
    assert abs(product - loss) > 1e-3
    lengths = case.mask.sum(-1, keepdim=True)
    product, geometric = (
        log_ratio(case.current, case.old, case.mask, level=level) for level in ("sequence", "sequence_geometric")
    )
    assert_close(product, geometric * lengths, "product", tol=TOLERANCE)
    broken = trl_side.score(case)
    broken.trainer.importance_sampling_level = "sequence_product"
    with pytest.raises(ValueError, match="sequence_product"):
        broken.loss()


@every_level
def test_difference_no_clamp_on_the_log_ratio(trl_side: TrlSide, level: str) -> None:
    """TRL's log-ratio has no bound: without `delta` one far token dominates. Ours stops at 20, with no gradient
    beyond."""
    case = chosen_case([25.0])
    scored = trl_side.score(case, importance_sampling_level=level, loss_type="bnpo")
    loss, gradient = scored.loss()
    gain, harm = scored.advantages.tolist()
    mine = ours(case, scored.advantages, level=LEVELS[level])
    assert_close(loss, -(1.28 * gain + math.exp(25) * harm) / 2, "TRL", tol=TOLERANCE)
    assert_close(mine.loss, -(1.28 * gain + math.exp(20) * harm) / 2, "ours", tol=TOLERANCE)
    assert gradient[1, 0] > 1e9
    assert mine.gradient[1, 0] == 0


def test_difference_junk_at_masked_positions(trl_side: TrlSide) -> None:
    """TRL multiplies by the mask: a token that no policy can sample, under the mask, makes the loss NaN; ours never
    reads it."""
    case = chosen_case([0.1, 0.2, 0.3])
    case.mask[:, 1] = False
    case.current[:, 1] = case.old[:, 1] = -torch.inf
    scored = trl_side.score(case, loss_type="bnpo")
    loss, _ = scored.loss()
    assert loss.isnan()
    mine = ours(case, scored.advantages)
    assert mine.loss.isfinite()
    assert mine.gradient.isfinite().all()


@every_seed
def test_difference_clip_fractions_of_sequences(trl_side: TrlSide, seed: int) -> None:
    """At the sequence level TRL counts sequences, the empty ones too; we count the tokens that the clip touches."""
    case = random_case(seed)
    scored = trl_side.score(
        case, importance_sampling_level="sequence", loss_type="grpo", epsilon=0.02, epsilon_high=0.02
    )
    scored.loss()
    mine = ours(case, scored.advantages, level="sequence_geometric", clip_low=0.02, clip_high=0.02)
    ratio = log_ratio(case.current, case.old, case.mask, level="sequence_geometric").exp()[:, 0]
    hit = (ratio < 0.98) & (scored.advantages < 0)
    lengths = case.mask.sum(-1).double()
    assert_close(scored.metric("clip_ratio/low_mean"), hit.sum() / case.rows, "TRL: sequences", tol=FIGURE)
    assert_close(
        mine.metrics["ratio/clipped_low"], (hit * lengths).sum() / lengths.sum(), "ours: tokens", tol=TOLERANCE
    )


def test_difference_metric_names(trl_side: TrlSide) -> None:
    """A figure of ours under a name of TRL's would be read as TRL's: no name is shared."""
    from alp.policy import mismatch_diagnostics, ratio_diagnostics

    case = random_case(0)
    scored = trl_side.score(case, correct=True, beta=0.1)
    scored.loss()
    mine = {
        **ours(case, scored.advantages).metrics,
        **ratio_diagnostics(case.current - case.old, case.mask),
        **mismatch_diagnostics(case.old, case.rollout, case.mask),
    }
    theirs = set(scored.trainer._metrics["train"])
    assert {"kl", "clip_ratio/low_mean", "sampling/importance_sampling_ratio/mean"} <= theirs
    assert not theirs & set(mine)
