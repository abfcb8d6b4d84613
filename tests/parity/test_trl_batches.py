"""Normalisers of micro-batches, through TRL's own shuffling and splitting of a generation batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alp.policy.objective import loss_normaliser
from tests.policy.cases import assert_close

from .cases import SEEDS, TOLERANCE, Case, random_case
from .our_side import Ours, ours
from .trl_side import TrlSide, rows_of

every_seed = pytest.mark.parametrize("seed", SEEDS)
ROWS = 12


def cut(case: Case, rows: Tensor) -> Case:
    """Those rows."""
    return case.with_(
        **{name: getattr(case, name)[rows] for name in ("current", "old", "rollout", "reference", "mask")}
    )


def piecewise(case: Case, pieces: list[dict[str, Tensor]], aggregation: str, normaliser: int | None) -> list[Ours]:
    """Our loss of each of TRL's micro-batches."""
    found = []
    for piece in pieces:
        part = cut(case, rows_of(piece["prompt_ids"]))
        found.append(ours(part, piece["advantages"], aggregation=aggregation, normaliser=normaliser))
    return found


def gradient_of(case: Case, pieces: list[dict[str, Tensor]], parts: list[Ours]) -> Tensor:
    """Gradients of micro-batches put back in the order of the case."""
    total = torch.zeros_like(case.current)
    for piece, part in zip(pieces, parts, strict=True):
        total[rows_of(piece["prompt_ids"])] += part.gradient
    return total


@every_seed
def test_micro_batches_share_a_normaliser(trl_side: TrlSide, seed: int) -> None:
    """One update in two micro-batches: TRL's `dapo`, and it alone, divides both by the token count of the mini-batch as
    we do."""
    case = random_case(seed, rows=ROWS)
    options = {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2, "num_iterations": 3}
    whole = loss_normaliser(case.mask, "token-mean")
    for loss_type in ("dapo", "bnpo"):
        scored, pieces = trl_side.pieces(case, loss_type=loss_type, **options)
        assert sorted(torch.cat([rows_of(piece["prompt_ids"]) for piece in pieces]).tolist()) == list(range(ROWS))
        (loss_a, slope_a), (loss_b, slope_b) = (scored.loss(piece) for piece in pieces)
        shared = piecewise(case, pieces, "token-mean", whole)
        gradient = gradient_of(case, pieces, shared)
        if loss_type == "dapo":
            assert_close(shared[0].loss + shared[1].loss, loss_a + loss_b, "loss", tol=TOLERANCE)
            assert_close(gradient, slope_a + slope_b, "gradient", tol=TOLERANCE)
        else:
            separate = piecewise(case, pieces, "token-mean", None)
            counts = [part.tokens for part in separate]
            assert counts[0] != counts[1]
            assert_close((separate[0].loss + separate[1].loss) / 2, loss_a + loss_b, "mean of means", tol=TOLERANCE)
            assert (gradient - slope_a - slope_b).abs().max() > 1e-4


@every_seed
def test_difference_normaliser_of_several_updates(trl_side: TrlSide, seed: int) -> None:
    """Two updates per rollout batch: `dapo` divides each by half of the batch's tokens, we by the tokens of that
    update."""
    case = random_case(seed, rows=ROWS)
    scored, pieces = trl_side.pieces(
        case, loss_type="dapo", per_device_train_batch_size=ROWS // 2, steps_per_generation=2
    )
    half = loss_normaliser(case.mask, "token-mean") / 2
    parts = piecewise(case, pieces, "token-mean", None)
    assert parts[0].tokens != parts[1].tokens
    for piece, part in zip(pieces, parts, strict=True):
        loss, gradient = scored.loss(piece)
        assert_close(part.loss * part.tokens, loss * half, "loss", tol=TOLERANCE)
        assert_close(
            part.gradient * part.tokens, gradient[rows_of(piece["prompt_ids"])] * half, "gradient", tol=TOLERANCE
        )


@every_seed
def test_difference_micro_batches_of_sequence_means(trl_side: TrlSide, seed: int) -> None:
    """`grpo` in two micro-batches is the mean over all rows, empty ones included; ours over the occupied rows of the
    mini-batch."""
    case = random_case(seed, rows=ROWS)
    options = {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2, "num_iterations": 3}
    scored, pieces = trl_side.pieces(case, loss_type="grpo", **options)
    total = sum(scored.loss(piece)[0] for piece in pieces)
    parts = piecewise(case, pieces, "seq-mean-token-mean", loss_normaliser(case.mask, "seq-mean-token-mean"))
    assert_close(sum(part.loss for part in parts) * case.occupied, total * case.rows, "loss", tol=TOLERANCE)
