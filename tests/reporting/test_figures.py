"""Figures: every name in both formats and for a phone, the same bytes twice, and the numbers behind the envelope and
the heat map."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from alp.configuration import grid as grids
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.ownership import claimed
from alp.rendering import plots
from alp.rendering.plots import envelope_bins
from alp.reporting import registry, runs
from alp.reporting.budget import first_and_last
from alp.reporting.draw import figures
from alp.reporting.figures.sigma import noise_map
from alp.reporting.looks import looks
from alp.reproducibility import write_text

from .conftest import GRID, bytes_below, fabricate, write_grid

Finished = tuple[Grid, Path]
ALL = {artefact.name: artefact for artefact in registry.registered("figures")}
ABOUT_CORRECTIONS = ("drift", "phase")  # tests/reporting/test_corrections.py
FORMS = {"wide": nullcontext, "phone": plots.narrow}
ONE_ENGINE = [name for name in ALL if name not in ("mismatch", "sets", "tools", *ABOUT_CORRECTIONS)]


@pytest.fixture(scope="module")
def drawn(finished: Finished) -> Path:
    grid, results = finished
    figures(grid, results)
    return grid.folder(results) / "figures"


def test_every_figure_comes_in_two_formats_and_for_a_phone(drawn: Path) -> None:
    assert {path.name for path in drawn.iterdir()} == {
        f"{name}{ending}" for name in ONE_ENGINE for ending in (".svg", ".png", "_phone.svg")
    }


@pytest.mark.parametrize("name", ONE_ENGINE)
def test_a_phone_s_figure_fits_its_screen(drawn: Path, name: str) -> None:
    """In CSS pixels of 3/4 point: what is wider than a phone's screen on paper fits it."""
    wide, narrow = (
        float(re.findall(r'<svg[^>]* width="([\d.]+)pt"', (drawn / f"{name}{ending}").read_text("utf-8"))[0]) / 0.75
        for ending in (".svg", "_phone.svg")
    )
    assert narrow <= 400 < wide


def test_on_a_phone_both_panels_of_the_accuracy_name_the_arms(finished: Finished) -> None:
    """One below the other, and as wide as one another."""
    loaded = runs.load(*finished)
    with plots.style(), plots.narrow():
        figure = ALL["accuracy"].make(loaded)
        figure.canvas.draw()
    above, below = figure.axes
    assert above.get_window_extent().y0 > below.get_window_extent().y1
    assert above.get_window_extent().width == pytest.approx(below.get_window_extent().width)
    names = [look.label for look in looks(loaded).values()]
    for axes in (above, below):
        assert [tick.label1.get_text() for tick in axes.yaxis.get_major_ticks() if tick.label1.get_visible()] == names


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("Token-ALP (σ₀ = 0)", "Token-ALP (σ₀ = 0)"),
        ("Token-ALP (not layer 0)", "Token-ALP\n(not layer 0)"),
        ("Token-ALP (σ at a tenth of the rate)", "Token-ALP (σ at a\ntenth of the rate)"),
    ],
)
def test_long_names_are_in_lines_on_a_phone(label: str, shown: str) -> None:
    assert plots.name(label) == label
    with plots.narrow():
        assert plots.name(label) == shown


@pytest.mark.parametrize(("letters", "columns"), [(2, 4), (8, 3), (15, 2), (40, 1)])
def test_a_phone_s_legend_has_the_columns_it_has_room_for(letters: int, columns: int) -> None:
    with plots.style(), plots.narrow():
        figure = plots.canvas(2)
        plots.legend_below(figure, [Line2D([], [], label="n" * letters) for _ in range(8)])
        figure.canvas.draw()
        (legend,) = figure.legends
        assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == columns
        assert legend.get_window_extent().width <= figure.bbox.width + 1


def test_bytes_are_stable(finished: Finished, drawn: Path) -> None:
    before = bytes_below(drawn)
    figures(*finished)
    assert bytes_below(drawn) == before


def test_files_carry_no_date_and_are_well_formed(drawn: Path) -> None:
    for path in drawn.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag.endswith("svg")
        assert "<dc:date>" not in path.read_text(encoding="utf-8")
    for path in drawn.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert b"tIME" not in path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ONE_ENGINE)
def test_text_is_legible(finished: Finished, name: str, form: str) -> None:
    """No text under 8 points, none cut at the edge of the figure, no two texts on top of each other."""
    loaded = runs.load(*finished)
    with plots.style(), FORMS[form]():
        assert_legible(ALL[name].make(loaded))


def assert_legible(figure: Figure) -> None:
    """Draws ``figure``; to be called within ``plots.style()``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = undrawn(figure)
    texts = [
        text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() and id(text) not in hidden
    ]
    boxes = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()), text.get_fontsize())
        for text in texts
        if text.get_visible()
    ]
    assert len(boxes) > 10
    for text, box, size in boxes:
        assert float(size) >= 8, text
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y1 <= figure.bbox.height + 1, text
    for (first, one, _), (second, two, _) in itertools.combinations(boxes, 2):
        across, along = min(one.x1, two.x1) - max(one.x0, two.x0), min(one.y1, two.y1) - max(one.y0, two.y0)
        assert across <= 1 or along <= 1, (first, second)


def undrawn(figure: Figure) -> set[int]:
    """Texts that exist and are not drawn: everything in invisible panels, tick labels outside the view."""
    found: set[int] = set()
    for axes in figure.axes:
        if not axes.get_visible():
            found |= {id(text) for text in axes.findobj(Text)}
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    found |= {id(tick.label1), id(tick.label2)}
    return found


def test_one_colour_per_method_and_dashes_per_variant(finished: Finished) -> None:
    by_arm = looks(runs.load(*finished))
    assert len({look.colour for look in by_arm.values()}) == 3
    assert by_arm["token_alp"].colour == by_arm["token_alp-sigma0"].colour
    assert by_arm["token_alp"].dashes == "solid" != by_arm["token_alp-sigma0"].dashes


def test_sigma_needs_learned_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = "arms: [{method: grpo}, {method: token_alp, variant: sigma0}]\n"
    text = f"title: t\ndescription: d\ntask: arithmetic\nmodel: arithmetic_tiny\nseeds: [0]\n{arms}"
    grid, results = fabricate(write_grid(tmp_path, text), tmp_path / "results", steps=3)
    stale = [grid.folder(results) / "figures" / f"sigma{ending}" for ending in (".svg", "_phone.svg")]
    with claimed(grid.folder(results), "figures", grid.origin, outputs=["figures/*"], key="results", beside=True):
        for path in stale:
            write_text(path, "of an earlier grid")
    saved: list[str] = []
    monkeypatch.setattr(plots, "save", lambda figure, stem: saved.append(stem.name))
    figures(grid, results)
    assert "sigma" not in registry.names("figures", grid)
    assert saved == [name for name in ONE_ENGINE if name not in ("sigma", "noise_budget")]
    assert not any(path.exists() for path in stale)


def test_names_are_known_before_anything_ran() -> None:
    assert registry.names("figures", grids.load("quick")) == ONE_ENGINE
    assert registry.names("figures", grids.load("engines")) == [
        name for name in ALL if name not in ("sets", "tools", *ABOUT_CORRECTIONS)
    ]


def test_figures_survive_missing_metrics(fresh: Finished) -> None:
    grid, results = fresh
    for seed in grid.seeds:
        folder = grid.run_dir(results, "token_alp", seed)
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": step, "reward/mean": 0.5}) + "\n" for step in range(1, 4))
        )
        (folder / "updates.jsonl").write_text("")
    figures(grid, results)
    assert len(list((grid.folder(results) / "figures").iterdir())) == 3 * len(ONE_ENGINE)


def test_a_missing_updates_file_is_one_line(fresh: Finished) -> None:
    grid, results = fresh
    path = grid.run_dir(results, "grpo", 0) / "updates.jsonl"
    path.unlink()
    with pytest.raises(UserError, match=r"updates\.jsonl: build it with 'snakemake"):
        figures(grid, results)


def test_heat_map_is_the_seed_mean_in_order_of_depth(finished: Finished) -> None:
    arm = runs.load(*finished).find("token_alp")
    assert arm is not None
    names, steps, values = noise_map(arm)
    assert names == ["0", "1", "2"]
    assert values.shape == (3, len(steps))
    assert steps[0] == 1
    expected = np.mean([run.metrics[-1]["perturbation/std/2"] for run in arm.runs])
    assert values[2, -1] == pytest.approx(expected)


def test_envelope_bins_hold_equal_counts_sorted_by_probability() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=1200)
    ratio = probability * 2
    shuffled = rng.permutation(1200)
    found = envelope_bins(probability[shuffled], ratio[shuffled])
    parts = np.sort(probability).reshape(12, 100)
    assert found[:, 0] == pytest.approx(np.median(parts, axis=1))
    assert found[:, 1] == pytest.approx(2 * np.percentile(parts, 2, axis=1))
    assert found[:, 2] == pytest.approx(2 * np.median(parts, axis=1))
    assert found[:, 3] == pytest.approx(2 * np.percentile(parts, 98, axis=1))


@pytest.mark.parametrize(("sequences", "bins"), [(0, 0), (1, 1), (5, 5), (13, 12)])
def test_envelope_of_few_sequences(sequences: int, bins: int) -> None:
    values = np.linspace(0, 1, sequences)
    assert envelope_bins(values, values).shape == (bins, 4)


def test_a_single_step_is_seen(tmp_path: Path) -> None:
    """A line through one point draws nothing, and a step is a whole number."""
    loaded = runs.load(*fabricate(write_grid(tmp_path, GRID), tmp_path / "results", steps=1))
    with plots.style():
        for name in ("dynamics", "length", "limit", "ratio_quantiles"):
            figure = ALL[name].make(loaded)
            figure.draw_without_rendering()
            stepped = [axes for axes in figure.axes if axes.lines and axes.get_xlim() == pytest.approx((0.67, 1.33))]
            assert stepped, name
            for axes in stepped:
                assert [tick for tick in axes.get_xticks() if 0.67 <= tick <= 1.33] == [1]
                assert all(len(line.get_xdata()) == 2 for line in axes.lines)


def test_equal_accuracies_are_not_told_apart_by_rounding(tmp_path: Path) -> None:
    grid, results = fabricate(write_grid(tmp_path, GRID), tmp_path / "results", steps=1)
    for path in results.glob("**/evaluation/test.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(record | {"correct": [0] * record["problems"]}))
    loaded = runs.load(grid, results)
    with plots.style():
        for axes in ALL["accuracy"].make(loaded).axes:
            assert axes.get_xlim() == pytest.approx((-0.5, 0.5))


def test_the_noise_budget_is_of_the_first_probe_and_the_last(finished: Finished) -> None:
    """Means over seeds, the mismatch of the same step, shares of the sum; one panel per arm with noise."""
    loaded = runs.load(*finished)
    arm = loaded.find("token_alp")
    assert arm is not None
    first, last = first_and_last(arm)
    assert (first.step, last.step) == (5, 10)
    for probed in (first, last):
        lines = [next(line for line in run.metrics if line["step"] == probed.step) for run in arm.runs]
        for level, profile in probed.profiles.items():
            expected = [np.mean([line[f"budget/{level}_variance/{layer}"] for line in lines]) for layer in range(3)]
            assert list(profile.names) == ["0", "1", "2"]
            assert list(profile.variances) == pytest.approx(expected)
            assert profile.shares == pytest.approx([part / sum(expected) for part in expected])
            assert profile.together == pytest.approx(1.05 * sum(expected))
            deviation = np.mean([line[f"rollout_corr/{level}/log_std"] for line in lines])
            assert profile.mismatch == pytest.approx(deviation**2)
    with plots.style():
        figure = ALL["noise_budget"].make(loaded)
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["Token-ALP"]
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}


def test_validation_is_marked_where_it_was_measured(finished: Finished) -> None:
    with plots.style():
        figure = ALL["validation"].make(runs.load(*finished))
    assert list(figure.axes[0].get_xticks()) == [0, 5, 10]


@pytest.mark.parametrize("steps", [[3.0], [0.0, 7.0], [2.0 * step for step in range(30)]])
def test_few_of_many_steps_are_marked_the_last_one_among_them(steps: list[float]) -> None:
    axes = plots.canvas(1).subplots()
    plots.ticks_at(axes, steps, most=6)
    found = list(axes.xaxis.get_major_locator()())
    assert set(found) <= set(steps)
    assert found == sorted(found)
    assert found[-1] == steps[-1]
    assert len(found) in (len(steps), 5, 6)


def test_a_base_model_far_below_does_not_take_the_axis(tmp_path: Path) -> None:
    seeds = GRID.replace("[0, 1]", "[0, 1, 2, 3]")
    grid, results = fabricate(write_grid(tmp_path, seeds), tmp_path / "results", steps=1)
    path = grid.base_dir(results) / "evaluation/test.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"correct": [0] * record["problems"]}))
    loaded = runs.load(grid, results)
    with plots.style():
        figure = ALL["accuracy"].make(loaded)
        assert_legible(figure)
    left = figure.axes[0]
    lowest = min(100 * arm.accuracy.mean(axis=1).min() for arm in loaded.arms)
    assert left.get_xlim()[0] > lowest - 20
    assert [text.get_text() for text in left.texts] == ["← base model 0.0 %"]


def test_a_figure_without_a_signal_is_a_line(finished: Finished, fresh: Finished) -> None:
    assert [ALL[name].silent(runs.load(*finished)) for name in ("envelope", "accuracy")] == ["", ""]
    grid, results = fresh
    for path in grid.folder(results).glob("*/*/*/seed*/metrics.jsonl"):
        path.write_text(
            path.read_text(encoding="utf-8").replace('"response/truncated": 0.01', '"response/truncated": 0.0')
        )
    for path in grid.folder(results).glob("*/*/*/seed*/updates.jsonl"):
        update = {"step": 5, "update": 40, "log_ratio": [0.1, 0.0], "clean_log_ratio": [0.1, 0.0]}
        path.write_text(json.dumps(update | {"mean_probability": [0.995, 0.999]}) + "\n")
    loaded = runs.load(grid, results)
    assert ALL["limit"].silent(loaded).startswith("No response was cut")
    assert "lies within 0.995 and 0.999" in ALL["envelope"].silent(loaded)
    path = grid.run_dir(results, "grpo", 0) / "evaluation/test.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"truncated": 0.02}))
    assert ALL["limit"].silent(runs.load(grid, results)) == ""
