"""``alp power``: the table of a fabricated grid, a folder in the place of a name, and grids that cannot say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alp.cli import main
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.evaluation.power import seeds_needed, smallest_difference
from alp.reporting import power as verb
from alp.reporting import runs

from .conftest import GRID, bytes_below, fabricate, write_grid
from .test_aggregate import accuracies

Finished = tuple[Grid, Path]


def test_every_arm_has_its_row(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    grid, results = finished
    before = bytes_below(results)
    assert main(["power", f"grid='{results.parent}/tiny.yaml'", f"results='{results}'", "effect=10"]) == 0
    assert bytes_below(results) == before
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells[2:]] == ["Token-Bypass", "Token-ALP", "Token-ALP (σ₀ = 0)", "on average"]
    gaps = (accuracies(grid, results, "token_alp") - accuracies(grid, results, "grpo")).mean(1)
    deviation = 100 * float(gaps.std(ddof=1))
    row = dict(zip(cells[0], cells[3], strict=True))
    assert float(row["SD"]) == pytest.approx(deviation, abs=0.006)
    assert float(row["8 seeds"]) == pytest.approx(deviation * smallest_difference(8), abs=0.06)
    assert row["Seeds, these problems"] == str(seeds_needed(10.0, deviation))
    assert sum(float(row[f"of {part}, %"]) for part in ("seeds", "problems", "samples")) == pytest.approx(100, abs=1.5)


def test_a_set_counts_as_in_the_tables(several: Finished) -> None:
    loaded = runs.load(*several)
    first, second = (loaded.arms[number].accuracy for number in (1, 0))
    numbers = [[loaded.mean(seed) for seed in table] for table in (first, second)]
    expected = np.subtract(*map(np.array, numbers)).std(ddof=1)
    assert loaded.variances(first, second).deviation() == pytest.approx(float(expected))


def test_a_built_folder_is_a_grid_of_that_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def load(name: str) -> Grid:
        asked.append(name)
        raise UserError("enough")

    monkeypatch.setattr(verb.grids, "load", load)
    (tmp_path / "quick").mkdir()
    with pytest.raises(UserError, match="enough"):
        verb.power(verb.PowerConfig(grid=str(tmp_path / "quick"), results="elsewhere", effect=2.0, power=0.8))
    assert asked == ["quick"]


def test_one_seed_says_nothing_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(write_grid(tmp_path, GRID.replace("[0, 1]", "[0]")), tmp_path / "results", steps=3)
    assert main(["power", f"grid='{tmp_path}/tiny.yaml'", f"results='{tmp_path}/results'"]) == 2
    assert "arms: 4, seeds: 1" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "message"), [("effect=0", "effect"), ("power=1", "power"), ("efect=1", "'effect'")])
def test_a_wrong_word_is_one_line(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", word]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
