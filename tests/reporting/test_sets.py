"""A grid with several evaluation sets: each counts alike in the accuracy, whatever its size, and each is shown."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from scipy import stats

from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.rendering import plots
from alp.reporting import registry, runs
from alp.reporting.aggregate import aggregate
from alp.reporting.comparisons import stands_out
from alp.reporting.draw import figures
from alp.reporting.figures import accuracy, length
from alp.reporting.figures import sets as sets_figure
from alp.reporting.report import report

from .conftest import SAMPLES, SETS, SIZES, fabricate, write_grid
from .test_aggregate import QUANTILE, rows
from .test_figures import FORMS, assert_legible

Finished = tuple[Grid, Path]
PLACES = {"easy": slice(0, 30), "hard": slice(30, 40)}


@pytest.fixture(scope="module")
def tables(several: Finished) -> Path:
    grid, results = several
    aggregate(grid, results)
    return grid.folder(results) / "tables"


def record(grid: Grid, results: Path, arm: str, seed: int) -> dict[str, list[int]]:
    """An evaluation, read without the code under test; ``base`` is the base model's."""
    folder = grid.base_dir(results) if arm == "base" else grid.run_dir(results, arm, seed)
    found: dict[str, list[int]] = json.loads((folder / "evaluation" / "test.json").read_text(encoding="utf-8"))
    return found


def accuracies(several: Finished, arm: str, key: str = "correct") -> np.ndarray:
    grid, results = several
    return np.array([record(grid, results, arm, seed)[key] for seed in grid.seeds], dtype=np.float64) / (
        SAMPLES if key == "correct" else 1
    )


def plain_mean(values: np.ndarray) -> float:
    return float(np.mean([values[:, place].mean() for place in PLACES.values()]))


def student(numbers: list[float]) -> list[float]:
    """Both ends of the interval of a mean of two seeds, cut to what an accuracy can be."""
    one, other = numbers
    return [
        max(0.0, (one + other - QUANTILE * abs(one - other)) / 2),
        min(1.0, (one + other + QUANTILE * abs(one - other)) / 2),
    ]


def test_the_accuracy_is_the_plain_mean_of_the_sets(several: Finished, tables: Path) -> None:
    for row in rows(tables, "main"):
        values = accuracies(several, row["method"])
        assert float(row["accuracy_mean"]) == pytest.approx(plain_mean(values), abs=1e-6)
        assert abs(plain_mean(values) - values.mean()) > 0.05, "a mean over problems would be another number"
        assert float(row["greedy_mean"]) == pytest.approx(
            plain_mean(accuracies(several, row["method"], "greedy_correct")), abs=1e-6
        )


def test_a_seed_s_number_is_the_plain_mean_of_its_sets(several: Finished, tables: Path) -> None:
    alp, grpo = accuracies(several, "token_alp"), accuracies(several, "grpo")
    row = next(row for row in rows(tables, "main") if row["method"] == "token_alp")
    low, high = student([plain_mean(of_seed[None]) for of_seed in alp])
    assert [float(row["accuracy_low"]), float(row["accuracy_high"])] == pytest.approx([low, high], abs=1e-6)
    one, other = (plain_mean(of_seed[None]) for of_seed in alp - grpo)
    assert float(row["difference_high"]) - float(row["difference_low"]) == pytest.approx(
        QUANTILE * abs(one - other), abs=2e-6
    )


def test_every_set_has_its_row(several: Finished, tables: Path) -> None:
    found = {(row["method"], row["set"]): row for row in rows(tables, "sets")}
    names = ["base", "grpo", "token_alp", "token_alp-sigma0"]
    assert list(found) == [(name, part) for name in names for part in SIZES]
    for (name, part), row in found.items():
        values = accuracies(several, name)[:, PLACES[part]]
        assert int(row["problems"]) == SIZES[part]
        assert float(row["accuracy_mean"]) == pytest.approx(values.mean(), abs=1e-6)
        assert float(row["accuracy_low"]) <= values.mean() <= float(row["accuracy_high"])
        if name == "grpo":
            assert row["difference_to_reference"] == ""
        else:
            gap = (values - accuracies(several, "grpo")[:, PLACES[part]]).mean()
            assert float(row["difference_to_reference"]) == pytest.approx(gap, abs=1e-6)


def test_bold_is_who_stands_out_from_every_other_arm(several: Finished, tables: Path) -> None:
    """Against scipy's paired test of each pair of arms."""
    lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in (tables / "sets.md").read_text(encoding="utf-8").splitlines()
    ]
    assert lines[0] == ["Method", "Mean of the sets, %", "easy (30), %", "hard (10), %"]
    names = ["grpo", "token_alp", "token_alp-sigma0"]
    for column, places in enumerate([list(PLACES.values()), *([place] for place in PLACES.values())], start=1):
        numbers = {name: _of_seeds(accuracies(several, name), places) for name in names}
        bold = {name for name, line in zip(names, lines[3:], strict=True) if line[column].startswith("**")}
        ahead = {
            name
            for name in names
            if all(
                stats.ttest_rel(numbers[name], numbers[other]).confidence_interval().low > 0
                for other in names
                if other != name
            )
        }
        assert bold == ahead


def _of_seeds(values: Any, places: list[Any]) -> Any:
    """Each seed's plain mean of the sets' means."""
    return np.mean([values[:, place].mean(1) for place in places], axis=0)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, None), (0.2, 2), (-0.2, None)])
def test_a_tie_stands_out_from_nothing(shift: float, expected: int | None) -> None:
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.01, size=(3, 5, 1))
    tables = [np.clip(0.5 + of_arm + rng.normal(0, 0.02, size=(5, 30)), 0, 1) for of_arm in seeds]
    assert stands_out([*tables[:2], tables[2] + shift, None]) == expected
    assert stands_out([tables[0][:1], tables[1][:1] + 0.3]) is None  # one seed
    assert stands_out([tables[0]]) is None


def test_pass_at_k_is_of_all_problems_and_of_each_set(several: Finished, tables: Path) -> None:
    found = {(row["method"], row["set"]): float(row["pass_at_1"]) for row in rows(tables, "pass_at_k")}
    assert [part for _, part in found] == [part for part in ("all", *SIZES) for _ in range(4)]
    values = accuracies(several, "grpo")
    assert found["grpo", "all"] == pytest.approx(values.mean(), abs=1e-6)
    assert found["grpo", "hard"] == pytest.approx(values[:, PLACES["hard"]].mean(), abs=1e-6)


def test_pass_at_two_of_a_set_counts_pairs(several: Finished, tables: Path) -> None:
    found = {(row["method"], row["set"]): float(row["pass_at_2"]) for row in rows(tables, "pass_at_k")}
    correct = SAMPLES * accuracies(several, "grpo")[:, PLACES["hard"]]
    wrong = SAMPLES - correct
    assert found["grpo", "hard"] == pytest.approx(
        (1 - wrong * (wrong - 1) / (SAMPLES * (SAMPLES - 1))).mean(), abs=1e-6
    )


def test_a_set_s_interval_is_that_of_its_problems(several: Finished, tables: Path) -> None:
    row = next(row for row in rows(tables, "sets") if (row["method"], row["set"]) == ("token_alp", "hard"))
    values = accuracies(several, "token_alp")[:, PLACES["hard"]]
    expected = student([float(of_seed.mean()) for of_seed in values])
    assert [float(row["accuracy_low"]), float(row["accuracy_high"])] == pytest.approx(expected, abs=1e-6)


def test_controls_compare_the_same_means(several: Finished, tables: Path) -> None:
    row = rows(tables, "controls")[0]
    assert float(row["accuracy_mean"]) == pytest.approx(plain_mean(accuracies(several, "token_alp")), abs=1e-6)
    assert float(row["difference"]) == pytest.approx(float(row["accuracy_mean"]) - float(row["control_mean"]), abs=2e-6)
    gain = plain_mean(accuracies(several, "token_alp") - accuracies(several, "grpo"))
    assert float(row["gain_over_reference"]) == pytest.approx(gain, abs=1e-6)
    base = rows(tables, "main")[0]
    assert float(base["difference_to_reference"]) == pytest.approx(
        plain_mean(accuracies(several, "base") - accuracies(several, "grpo")), abs=1e-6
    )


def points(axes: Axes) -> list[float]:
    """The x values of single markers: the means of the arms, in their order."""
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("|", "None")]
    return [float(line.get_xdata()[0]) for line in drawn]


def test_figures_draw_the_same_means(several: Finished) -> None:
    loaded = runs.load(*several)
    names = [arm.name for arm in loaded.arms]
    means = [100 * plain_mean(accuracies(several, name)) for name in names]
    with plots.style():
        left, right = accuracy.make(loaded).axes
        assert points(left) == pytest.approx(means)
        assert points(right) == pytest.approx([mean - means[0] for mean in means])
        ticks = [line.get_xdata() for line in left.lines if line.get_marker() == "|"]
        assert ticks == [
            pytest.approx([100 * plain_mean(one[None]) for one in accuracies(several, name)]) for name in names
        ]
        panels = sets_figure.make(loaded).axes
        for axes, place in zip(panels, PLACES.values(), strict=True):
            assert points(axes) == pytest.approx([100 * accuracies(several, name)[:, place].mean() for name in names])
        heights = {float(y) for line in length.make(loaded).axes[1].lines for y in line.get_ydata()}
        for name in names:
            assert all(
                any(abs(100 * plain_mean(one[None]) - y) < 1e-9 for y in heights) for one in accuracies(several, name)
            )


def test_engines_are_compared_by_the_same_means(several: Finished, tmp_path: Path) -> None:
    folder = data_folder(several[0])
    arms = "arms:\n  - method: grpo\n  - {method: grpo, variant: hf_fp32, overrides: [rollout.dtype=float32]}\n"
    grid = write_grid(tmp_path, SETS.format(folder=folder).partition("arms:")[0] + arms, "several")
    results = fabricate(grid, tmp_path / "results", steps=2)[1]
    aggregate(grid, results)
    for row in rows(grid.folder(results) / "tables", "mismatch"):
        assert float(row["accuracy_mean"]) == pytest.approx(
            plain_mean(accuracies((grid, results), row["method"])), abs=1e-6
        )


def test_page_and_figures_name_the_sets(several: Finished, tables: Path) -> None:
    grid, results = several
    figures(grid, results)
    report(grid, results)
    text = re.sub(r"<[^>]+>", "", (grid.folder(results) / "report.html").read_text(encoding="utf-8"))
    assert "plain mean over 2 evaluation sets: easy (30 problems), hard (10 problems)" in text
    assert "avg@16, mean of 2 sets, %" in text
    assert {"sets.svg", "sets.png"} <= {path.name for path in (grid.folder(results) / "figures").iterdir()}
    loaded = runs.load(grid, results)
    for form, figure in itertools.product(FORMS.values(), (sets_figure, accuracy, length)):
        with plots.style(), form():
            assert_legible(figure.make(loaded))


def test_one_set_needs_no_such_table(finished: Finished) -> None:
    grid, _ = finished
    assert "sets" not in registry.names("tables", grid) + registry.names("figures", grid)
    assert list(runs.load(*finished).sets.items()) == [("test", slice(0, 40))]


def data_folder(grid: Grid) -> Path:
    """Where the problems of the fabricated grid lie."""
    words = next(word for word in grid.overrides("prepare", "results") if word.startswith("task.train="))
    return Path(words.split("'")[1]).parent


def test_the_order_of_the_sets_is_that_of_the_evaluation(several: Finished, tmp_path: Path) -> None:
    """A mapping has no order that a configuration's identity would see."""
    grid, results = several
    text = SETS.format(folder=data_folder(grid))
    easy, hard = re.findall(r"(?:easy|hard): \{[^}]*\}", text)
    turned = write_grid(tmp_path, text.replace(f"{{{easy}, {hard}}}", f"{{{hard}, {easy}}}"), "several")
    assert turned.parts == ["hard", "easy"]
    assert runs.load(turned, results).sets == runs.load(grid, results).sets == PLACES


def test_evaluations_of_other_sets_are_refused(several: Finished, tmp_path: Path) -> None:
    text = SETS.format(folder=data_folder(several[0]))
    grid, results = fabricate(write_grid(tmp_path, text, "several"), tmp_path / "results", steps=2)
    other = write_grid(tmp_path, text.replace("hard:", "harder:"), "several")
    with pytest.raises(UserError, match=r"does not hold the sets easy, harder, each in one piece"):
        runs.load(other, results)
    assert set(runs.load(grid, results).sets) == {"easy", "hard"}
