"""How much of the evaluation sets stands in the training set, as ``alp prepare`` found it; a table of the page
alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from alp.configuration.grid import Grid
from alp.foreign import reading
from alp.rendering.artefact import Artefact
from alp.rendering.numbers import Cell
from alp.rendering.tables import Column, Table, frame, words
from alp.reporting import records

COLUMNS = (
    words("set", "set"),
    Column("problems", "problems"),
    Column("exact", "same prompt in training"),
    Column("shared_13_words", "13 words in a row in training"),
    Column("shorter_than_13_words", "under 13 words"),
)


def make(source: tuple[Grid, Path]) -> Table:
    """One row per evaluation set of the grid below a results root. Raises UserError for a missing or damaged file."""
    grid, results = source
    path = grid.data_dir(results) / "leakage.json"
    command = shlex.join(["alp", "prepare", *grid.overrides("prepare", results)])
    sets = records.read_json(path, command).get("sets")
    with reading("results", path):
        if not isinstance(sets, dict):
            raise ValueError("missing: sets")
        ordered = [name for name in grid.sets if name in sets]  # JSON's keys are sorted
        return Table(frame([_row(name, sets[name]) for name in ordered], [c.source for c in COLUMNS]), COLUMNS)


def _row(name: str, entry: dict[str, Any]) -> list[Cell]:
    return [
        name,
        int(entry["problems"]),
        len(entry["exact"]),
        len(entry["shared_13_words"]),
        int(entry["shorter_than_13_words"]),
    ]


LEAKAGE: Artefact[Grid, tuple[Grid, Path], Table] = Artefact(
    name="leakage",
    title="Evaluation problems in the training set",
    caption=(
        "Problems of the validation and evaluation sets whose prompt stands in the training set (spaces and Unicode's "
        "canonical forms of a character aside), and those that share 13 words in a row with a training problem, "
        "whatever their case and punctuation. Problems under 13 words are compared by the whole prompt alone. The ids "
        "are in leakage.json beside the data."
    ),
    make=make,
)
