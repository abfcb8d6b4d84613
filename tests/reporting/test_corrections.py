"""The figures of grids about corrections: accuracy against drift, and the phase diagram."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from alp.configuration import compose
from alp.configuration import grid as grids
from alp.policy.method import Correction
from alp.rendering import plots
from alp.reporting import active_settings, registry, runs
from alp.reporting.arms import label, phase_of
from alp.reporting.figures import drift, phase

from .conftest import fabricate, write_grid
from .test_figures import FORMS, assert_legible

HEAD = """
title: Corrections
description: Never trained.
task: arithmetic
model: arithmetic_tiny
seeds: [0, 1]
overrides:
  task: [task.test=40]
arms:
"""
CORRECTIONS = HEAD + "".join(f"  - method: {name}\n" for name in ("grpo", "token_tis", "icepop", "dppo_tv", "seq_alp"))
PHASE = HEAD + "".join(
    f"  - {{method: {method}, variant: u{updates}_{dtype}, overrides: [trainer.updates_per_batch={updates},"
    f" rollout.dtype={dtype}]}}\n"
    for method in ("grpo", "cispo")
    for updates in (1, 4)
    for dtype in ("float32", "int8")
)


def loaded(folder: Path, text: str) -> runs.Results:
    """A fabricated grid."""
    return runs.load(*fabricate(write_grid(folder, text, "corrections"), folder / "results"))


def drawn(make: object, results: runs.Results) -> Figure:
    """A figure under our style, laid out."""
    with plots.style():
        figure: Figure = make(results)  # type: ignore[operator]
        figure.canvas.draw()
    return figure


def test_each_grid_has_the_figures_that_are_about_it() -> None:
    wanted = {"corrections": "drift", "corrections_stress": "drift", "corrections_subset": "drift", "phase": "phase"}
    wanted |= {"phase_lag": "phase"}
    for name in (*wanted, "smoke", "engines"):
        own = {"drift", "phase"} & set(registry.names("figures", grids.load(name)))
        assert own == ({wanted[name]} if name in wanted else set()), name


def test_every_arm_is_a_numbered_point_at_its_drift(tmp_path: Path) -> None:
    results = loaded(tmp_path, CORRECTIONS)
    figure = drawn(drift.make, results)
    axes, names = figure.axes
    ranked = sorted(results.arms, key=lambda arm: -results.mean(arm.accuracy))
    assert [text.get_text() for text in names.texts] == [f"{n}  {label(arm.name)}" for n, arm in enumerate(ranked, 1)]
    assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, 6)]
    points = [line.get_xydata() for line in axes.lines if line.get_marker() in ("o", "x")]
    for point, arm in zip(points, ranked, strict=True):
        (place,) = np.asarray(point)
        assert place == pytest.approx([arm.step_mean("clean_batch/k3_kl"), 100 * results.mean(arm.accuracy)])
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["drift", "phase"])
def test_text_is_legible(tmp_path: Path, kind: str, form: str) -> None:
    """Thirty arms with points close together, and six small multiples."""
    names = [path.stem for path in sorted((compose.CONFIGS / "method").glob("*.yaml"))][:30]
    text = HEAD + "".join(f"  - method: {name}\n" for name in names) if kind == "drift" else PHASE
    results = loaded(tmp_path, text)
    with plots.style(), FORMS[form]():
        assert_legible({"drift": drift, "phase": phase}[kind].make(results))


def test_a_collapse_is_a_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = loaded(tmp_path, CORRECTIONS)
    worst = min(results.mean(arm.accuracy) for arm in results.arms)
    monkeypatch.setattr(drift, "COLLAPSED", results.base_interval().mean - worst - 1e-9)
    axes = drawn(drift.make, results).axes[0]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [float(np.asarray(cross.get_ydata())[0]) for cross in crosses] == pytest.approx([100 * worst])


def test_results_without_the_drift_say_so(tmp_path: Path) -> None:
    """Built before it was logged."""
    grid, root = fabricate(write_grid(tmp_path, CORRECTIONS, "corrections"), tmp_path / "results")
    for path in root.rglob("metrics.jsonl"):
        text = re.sub(r', "clean_batch/k3_kl(_old)?": [0-9.e-]+', "", path.read_text())
        path.write_text(re.sub(r'"clean_batch/k3_kl(_old)?": [0-9.e-]+, ', "", text))
    axes = drawn(drift.make, runs.load(grid, root)).axes[0]
    assert [text.get_text() for text in axes.texts] == ["not logged"]


def test_the_page_names_a_loss_without_a_clip_range() -> None:
    """What was active beside the clip range: the loss with its settings, and what is unusual about a correction."""
    active = {
        "loss_form": "ratio",
        "loss_options": {"alpha": 0.1},
        "log_square": 1e-3,
        "clip_low": None,
        "clip_high": None,
        "corrections": [asdict(Correction("mask", statistic="k3", reduce="mean", weight="one", upper=0.01))],
    }
    cells = dict(zip(active_settings.SETTINGS, active_settings._cells(active), strict=True))
    assert cells["Clip range"] == "none: ratio (alpha 0.1, + 0.001 log² r)"
    assert cells["Correction"] == "mask per token at 0.01 (statistic k3, reduce mean, weight one)"


def test_cells_of_the_phase_diagram(tmp_path: Path) -> None:
    """Updates along one axis, engines along the other, in the order of the grid; one scale for all panels."""
    results = loaded(tmp_path, PHASE)
    axes = [one for one in drawn(phase.make, results).axes if one.get_visible()]
    assert [one.get_title() for one in axes] == ["GRPO", "CISPO"]
    for one, method in zip(axes, ("grpo", "cispo"), strict=True):
        assert [text.get_text() for text in one.get_xticklabels()] == ["1", "4"]
        cells = one.images[0].get_array()
        assert cells is not None
        for row, dtype in enumerate(("float32", "int8")):
            for column, updates in enumerate((1, 4)):
                arm = results.find(f"{method}-u{updates}_{dtype}")
                assert arm is not None
                assert cells[row, column] == pytest.approx(100 * results.mean(arm.accuracy))
    assert len({one.images[0].get_clim() for one in axes}) == 1


def test_batches_sampled_ahead_are_columns_of_their_own() -> None:
    grid = grids.load("phase_lag")
    cells = dict.fromkeys(phase_of(grid, arm) for arm in grid.arms)
    assert list(cells) == [
        (stale, engine) for engine in ("HF fp32", "HF int8 (weight noise 0.05)") for stale in ("4", "4 + 1", "4 + 4")
    ]
