"""Whose noise it is, in numbers."""

from __future__ import annotations

import math

from alp.rendering.numbers import Cell, percent, significant
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.budget import Probed, first_and_last, noisy_arms
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=55,
    title="Noise budget",
    caption=(
        "Standard deviation of the change of a token's log-probability, and of its sum over a response, under the "
        "noise of one layer alone (or of a band of them) and of all layers together, on fixed responses after the "
        "first probed step and the last; means over seeds. Shares are variances over their sum over the layers; in "
        "the row of all together, what they make of that sum. Mismatch: training code against inference engine, on "
        "the responses of the same step."
    ),
    condition="has_noise_budget",
)
_COLUMNS = ("method", "step", "layer", "token_variance", "sequence_variance", "token_share", "sequence_share")


def make(loaded: Results) -> Table:
    """One row per arm, probe and source of noise; all together, and the mismatch."""
    rows = [
        [arm.name, *row, *(None if cell is None else math.sqrt(float(cell)) for cell in row[2:4])]
        for arm in noisy_arms(loaded)
        for probed in first_and_last(arm)
        for row in _rows(probed)
    ]
    columns = [
        words("method", "Method", lambda name: arms.label(str(name)), link="arm"),
        Column("step", "Step"),
        words("layer", "Noise of layer"),
        Column("token_std", "std per token", significant),
        Column("sequence_std", "per sequence", significant),
        Column("token_share", "share per token", percent, "%"),
        Column("sequence_share", "per sequence", percent, "%"),
    ]
    names = [*_COLUMNS, "token_std", "sequence_std"]
    return Table(frame(rows, names), columns, exported=_COLUMNS, significant=frozenset(_COLUMNS[3:]))


def _rows(probed: Probed) -> list[list[Cell]]:
    """Step, layer, variances and shares of each source."""
    token, sequence = probed.profiles["token"], probed.profiles["sequence"]
    rows: list[list[Cell]] = [
        [probed.step, name, *map(_known, cells)]
        for name, *cells in zip(
            token.names, token.variances, sequence.variances, token.shares, sequence.shares, strict=True
        )
    ]
    sums = [math.fsum(profile.variances) for profile in (token, sequence)]
    wholes = [token.together, sequence.together]
    added = [whole / total if total else math.nan for whole, total in zip(wholes, sums, strict=True)]
    rows.append([probed.step, "all together", *map(_known, [*wholes, *added])])
    rows.append([probed.step, "mismatch", token.mismatch, sequence.mismatch, None, None])
    return rows


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
