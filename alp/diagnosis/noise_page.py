"""What ``alp noise`` shows of a budget: sentences, a table, a figure and one page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from alp.policy.budget import LEVELS, Budget, Spread
from alp.rendering import budget as shapes
from alp.rendering import plots
from alp.rendering.artefact import Artefact
from alp.rendering.budget import Profile
from alp.rendering.numbers import Cell, percent, significant
from alp.rendering.page import render, shown_figure, shown_table
from alp.rendering.tables import RENDERINGS, Column, Table, frame, words
from alp.reproducibility import write_text

TEMPLATE = Path(__file__).parent / "noise.html.j2"
ALL, SUM, MISMATCH = "all together", "sum of the layers", "mismatch π_old/μ"
_COLOUR = plots.HUES["seq_alp"]
_WORDS = {"token": "of a token", "sequence": "of a sequence (sum over its tokens)"}
_TWO = partial(significant, digits=2)


@dataclass(frozen=True)
class Measured:
    """A budget and the mismatch on the same tokens, and of what they are."""

    model: str
    method: str
    engine: str
    described: dict[str, Any]
    std: float
    draws: int
    sequences: int
    tokens: int
    budget: Budget
    mismatch: Spread

    @property
    def exact(self) -> bool:
        """Whether the engine's log-probs are the training code's, but for rounding."""
        return math.sqrt(self.mismatch.token) < shapes.ROUNDING

    def profile(self, level: str) -> Profile:
        """What the figure draws."""
        spreads = [*(source.spread for source in self.budget.sources), self.budget.together]
        return Profile(
            [source.name for source in self.budget.sources],
            [getattr(source.spread, level) for source in self.budget.sources],
            getattr(self.budget.together, level),
            None if self.exact else getattr(self.mismatch, level),
            [getattr(spread, f"{level}_error") for spread in spreads],
        )


def findings(measured: Measured) -> list[str]:
    """What to read first: whose noise it is, how large it is against the mismatch, and whether the layers add up."""
    budget = measured.budget
    shares = budget.shares("token")
    largest = max(range(len(shares)), key=lambda row: shares[row] or 0.0)
    share, added = shares[largest], budget.additivity("token")
    if share is None or added is None:
        return ["the noise moves no log-probability: it is lost in rounding"]
    name = budget.sources[largest].name
    first = (
        "the noise on the logits is all there is"
        if name == "logits"
        else (f"layer {name} makes {percent(share).removesuffix('.0')} % of the variance")
    )
    sizes = {level: math.sqrt(getattr(budget.together, level)) for level in LEVELS}
    if measured.exact:
        second = "the engine's log-probs are the training code's but for rounding: no mismatch to hold it against"
    else:
        times = sizes["token"] / math.sqrt(measured.mismatch.token)
        second = f"all layers together {_TWO(times)} x the mismatch's standard deviation per token ({measured.engine})"
    return [
        f"{first}; {second}",
        f"all together: standard deviation of Δ log π {significant(sizes['token'])} per token,"
        f" {significant(sizes['sequence'])} per sequence; {significant(added)} x the sum of the layers by themselves",
    ]


def table(measured: Measured) -> Table:
    """A row per layer, the sum of their variances, all together, and the mismatch."""
    budget, rows = measured.budget, []
    shares = {level: budget.shares(level) for level in LEVELS}
    for row, source in enumerate(budget.sources):
        sizes: list[Cell] = [source.hidden_rms, source.realised_rms / source.hidden_rms]
        rows.append([source.name, *sizes, *_cells(source.spread, measured), *(shares[level][row] for level in LEVELS)])
    totals = Spread(*(math.fsum(getattr(source.spread, level) for source in budget.sources) for level in LEVELS))
    added: list[Cell] = [budget.additivity(level) for level in LEVELS]
    rows.append([SUM, None, None, *_cells(totals, measured), *(1.0 for _ in LEVELS)])
    rows.append([ALL, None, None, *_cells(budget.together, measured), *added])
    rows.append([MISMATCH, None, None, *_cells(measured.mismatch, measured), None, None])
    figures = ["variance", "error", "std", "times_mismatch"]
    measures = [f"{level}_{name}" for level in LEVELS for name in figures]
    names = ["layer", "hidden_rms", "relative_noise", *measures, *(f"{level}_share" for level in LEVELS)]
    columns = [
        words("layer", "Noise of layer"),
        Column("hidden_rms", "RMS of its input", significant),
        Column("relative_noise", "noise / RMS, %", lambda cell: _TWO(None if cell is None else 100 * float(cell))),
        Column("token_std", "std of Δ log π per token", significant),
        Column("sequence_std", "per sequence", significant),
        Column("token_share", "share per token, %", percent),
        Column("sequence_share", "per sequence, %", percent),
        Column("token_times_mismatch", "× mismatch per token", _TWO),
    ]
    return Table(frame(rows, names), columns, significant=frozenset(names[1:]))


def _cells(variances: Spread, measured: Measured) -> list[Cell]:
    """Variance, its standard error, standard deviation, and that over the mismatch's, of both levels."""
    cells: list[Cell] = []
    for level in LEVELS:
        variance, against = getattr(variances, level), getattr(measured.mismatch, level)
        error = getattr(variances, f"{level}_error")
        times = None if measured.exact or not against else math.sqrt(variance / against)
        cells += [variance, error, math.sqrt(variance), times]
    return cells


def figure(measured: Measured) -> Figure:
    """Variance by layer beside the mismatch, per token and per sequence."""
    made = plots.canvas(5.2, width=5.0)
    for axes, level in zip(made.subplots(2, 1, sharex=True), LEVELS, strict=True):
        profile = measured.profile(level)
        shapes.draw(axes, profile, _COLOUR)
        shapes.fit(axes, [profile])
        axes.set_title(f"Δ log π {_WORDS[level]}")
        axes.set_ylabel("variance, nats²")
    axes.set_xlabel("layer that receives noise")
    unknown = "mismatch: none beyond rounding"
    legend = shapes.handles(_COLOUR, None if measured.exact else measured.engine, unknown=unknown)
    plots.legend_below(made, legend, columns=1)
    return made


def _table_artefact(measured: Measured) -> Artefact[Any, Measured, Table]:
    return Artefact(
        name="budget",
        title="Noise budget",
        caption=(
            f"{measured.model}, noise of {measured.method} (σ₀ = {measured.std:g}), {measured.draws} draws on"
            f" {measured.sequences} responses of {measured.tokens} tokens. Variances are about the mean over tokens"
            " (sequences) and draws. Shares are of the sum over the layers; in the row of all together what they make"
            " of that sum: 100 % where layers add up. Mismatch: the policy as the training code computes it against"
            f" the engine that sampled ({measured.engine}), on the same tokens."
        ),
        make=table,
    )


def _figure_artefact() -> Artefact[Any, Measured, Figure]:
    return Artefact(
        name="budget",
        title="Variance of Δ log π by layer",
        caption=(
            "Change of the log-probability of fixed tokens under the noise of one layer alone, and of all together"
            " with the same draws; bars are two standard errors of the draws. Percentages are parts of the sum over"
            " layers (of more than 12 layers those of 1 % and more). A layer above the dashed line moves the"
            " log-probability further than the engine does."
        ),
        make=figure,
    )


def write(folder: Path, measured: Measured) -> str:
    """Write tables and figure below ``folder``; returns the page."""
    of_table, of_figure = _table_artefact(measured), _figure_artefact()
    made = of_table.make(measured)
    for ending, text_of in RENDERINGS.items():
        write_text(folder / "tables" / f"{of_table.name}{ending}", text_of(made))
    with plots.style():
        plots.save(of_figure.make(measured), folder / "figures" / of_figure.name)
    vector = (folder / "figures" / f"{of_figure.name}.svg").read_bytes()
    return render(
        TEMPLATE,
        measured=measured,
        headline=[sentence[0].upper() + sentence[1:] + "." for sentence in findings(measured)],
        figures=[shown_figure(of_figure, vector)],
        tables=[shown_table(of_table, made)],
    )
