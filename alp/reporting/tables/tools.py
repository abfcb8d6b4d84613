"""What became of the turns of every arm."""

from __future__ import annotations

from alp.rendering.numbers import Cell, percent, three_decimals
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import arms
from alp.reporting.comparisons import mean_of_known
from alp.reporting.records import Evaluation
from alp.reporting.registry import Declaration
from alp.reporting.runs import Results

ARTEFACT = Declaration(
    order=25,
    title="Tool use",
    caption=(
        "What became of the turns on the test set after the last training step, means over samples and then over "
        "seeds: the share of trajectories that asked for the tool at all, of programs that ran to their end without "
        "an error or a limit, of trajectories with a void turn (neither program nor answer), mean turns, and mean "
        "tokens that the model wrote. A void trajectory earns nothing."
    ),
    condition="has_tools",
)
SHARES = {"use_rate": "Tool used", "valid_rate": "Valid programs", "void_rate": "Void"}


def make(loaded: Results) -> Table:
    """Shares, turns and tokens per arm, the base model first."""
    evaluations = {arms.BASE: [loaded.base]}
    evaluations |= {arm.name: [run.evaluation for run in arm.runs] for arm in loaded.arms}
    rows: list[list[Cell]] = [
        [
            name,
            *(mean_of_known([_figure(seed, key) for seed in seeds]) for key in (*SHARES, "turns")),
            mean_of_known([seed.response_length for seed in seeds]),
        ]
        for name, seeds in evaluations.items()
    ]
    columns = [
        words("method", "Method", lambda name: arms.label(str(name)), link="arm"),
        *(Column(key, header, percent, "%") for key, header in SHARES.items()),
        Column("turns", "Turns", three_decimals),
        Column("length", "Tokens", three_decimals),
    ]
    return Table(frame(rows, ["method", *SHARES, "turns", "length"]), columns)


def _figure(evaluation: Evaluation, key: str) -> float | None:
    return None if evaluation.tools is None else evaluation.tools.get(key)
