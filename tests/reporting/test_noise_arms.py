"""Arms that differ in their noise, and the clean policy beside a method's own ratio: labels, pairs, columns,
figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alp.configuration.grid import Grid
from alp.rendering import plots
from alp.reporting import registry, runs
from alp.reporting.active_settings import settings
from alp.reporting.aggregate import aggregate
from alp.reporting.arms import label
from alp.reporting.findings import headline

from .conftest import fabricate, write_grid
from .test_figures import FORMS, assert_legible

GRID = """
title: Noises
description: What the noise can be, never trained.
task: arithmetic
model: arithmetic_tiny
seeds: [0, 1]
overrides:
  task: [task.test=40]
arms:
  - method: grpo
  - method: seq_bypass
  - {method: seq_bypass, variant: clip_tight}
  - method: seq_alp
  - {method: seq_alp, variant: sigma0}
  - {method: seq_alp, variant: fixed_sigma}
  - {method: seq_alp, variant: relative}
  - {method: seq_alp, variant: skip_first}
  - {method: seq_alp, variant: authors}
  - method: seq_alp
    variant: late_relative
    overrides: [method.perturbation.scale=relative, "method.perturbation.layers=-2:"]
"""
FIGURES = {artefact.name: artefact for artefact in registry.registered("figures")}
Finished = tuple[Grid, Path]


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("noises")
    grid, results = fabricate(write_grid(root, GRID, "noises"), root / "results")
    aggregate(grid, results)
    return grid, results


def table(noises: Finished, name: str) -> list[dict[str, str]]:
    with (noises[0].folder(noises[1]) / "tables" / f"{name}.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("arm", "shown"),
    [
        ("seq_alp-relative", "Seq-ALP (relative σ)"),
        ("token_alp-skip_first", "Token-ALP (not layer 0)"),
        ("seq_alp-authors", "Seq-ALP (authors' σ)"),
        ("seq_alp-fixed_sigma", "Seq-ALP (fixed σ)"),
        ("seq_alp-late_relative", "Seq-ALP (late relative)"),
    ],
)
def test_labels(arm: str, shown: str) -> None:
    assert label(arm) == shown


def test_every_noise_stands_beside_the_controls_that_lack_it(noises: Finished) -> None:
    """A relative arm whose control is another's noise, or that has no Bypass."""
    pairs = {(row["method"], row["control"]): row["changed"] for row in table(noises, "controls")}
    assert ("seq_alp", "seq_alp-fixed_sigma") in pairs
    for arm in ("seq_alp", "seq_alp-relative", "seq_alp-skip_first", "seq_alp-authors", "seq_alp-late_relative"):
        assert pairs.pop((arm, "seq_bypass")) == "noise"
        assert pairs.pop((arm, "seq_alp-sigma0")) == "noise"
        assert pairs.pop((arm, "seq_bypass-clip_tight")) == "noise, clip range"
    assert pairs == {("seq_alp", "seq_alp-fixed_sigma"): "learning of σ"}


def test_findings_ascribe_each_difference_to_its_noise(noises: Finished) -> None:
    """Many arms in one sentence for each question; every figure of it anew from the runs."""
    loaded = runs.load(*noises)
    tables = {artefact.name: artefact.make(loaded).rounded() for artefact in registry.of_grid("tables", loaded.grid)}
    found = headline(loaded, tables)
    assert any(text.startswith("Accuracy with the noise minus without, 5 arms: ") for text in found)
    assert any(text.startswith("Width of the log-ratio of the clean policy") for text in found)
    (whose,) = (text for text in found if text.startswith("Whose noise"))
    assert "layer 0 makes" in whose
    (size,) = (text for text in found if text.startswith("All layers' noise beside the mismatch"))
    figures = []
    for arm in loaded.arms:
        last = [[line for line in run.metrics if "budget/token_variance/all" in line][-1:] for run in arm.runs]
        if last[0]:
            wholes, gaps = (
                np.mean([line[key] for (line,) in last])
                for key in ("budget/token_variance/all", "rollout_corr/token/log_std")
            )
            figures.append(float(np.sqrt(wholes) / gaps))
    assert len(figures) > 3
    ends = dict.fromkeys(f"{pick(figures):.2g}" for pick in (min, max))
    assert f"{' to '.join(ends)} times in {len(figures)} arms" in size


def test_tails_of_the_clean_policy_are_a_mean_over_steps_and_seeds(noises: Finished) -> None:
    """Figures of the own ratio under the clean one's name; a reduction against the own ratio of the reference."""
    grid, results = noises
    rows = {(row["method"], row["level"]): row for row in table(noises, "ratio_tails")}

    def mean(arm: str, key: str) -> float:
        lines = [
            [json.loads(line) for line in (grid.run_dir(results, arm, seed) / "metrics.jsonl").open(encoding="utf-8")]
            for seed in grid.seeds
        ]
        return float(np.mean([np.mean([line[key] for line in run if key in line]) for run in lines]))

    widths = {}
    for arm in ("seq_bypass", "seq_alp-relative"):
        for level in ("token", "sequence"):
            row = rows[arm, level]
            for name in ("q001", "q01", "q99", "q999", "std"):
                expected = mean(arm, f"clean/{level}/log_{name}")
                assert float(row[f"clean_{name}"]) == pytest.approx(expected, abs=2e-6)
            widths[arm, level] = mean(arm, f"clean/{level}/log_q999") - mean(arm, f"clean/{level}/log_q001")
            assert float(row["clean_width"]) == pytest.approx(widths[arm, level], abs=2e-6)
            assert row["clean_width"] != row["width"]
    change = 1 - widths["seq_alp-relative", "sequence"] / widths["seq_bypass", "sequence"]
    assert float(rows["seq_alp-relative", "sequence"]["clean_width_reduction"]) == pytest.approx(change, abs=1e-4)
    assert rows["seq_bypass", "sequence"]["clean_width_reduction"] == ""
    noisy = mean("seq_alp", "perturbed/token/log_q999") - mean("seq_alp", "perturbed/token/log_q001")
    assert float(rows["seq_alp", "token"]["perturbed_width"]) == pytest.approx(noisy, abs=2e-6)
    assert rows["grpo", "token"]["perturbed_width"] == ""


def test_the_page_states_the_noise(noises: Finished) -> None:
    grid, results = noises
    loaded = runs.load(grid, results)
    said = {arm.name: settings(loaded, arm.name, arm.runs[0].folder)[7] for arm in loaded.arms}
    assert said["seq_alp"] == "σ₀ = 0.02, learned, layers 0–2"
    assert said["seq_alp-relative"] == "c₀ = 0.01 of the RMS, learned, layers 0–2"
    authors = "σ₀ = 0.02, learned, decay 0.01, in the global norm, in the hidden dtype, layers 0–2"
    assert said["seq_alp-authors"] == authors
    assert said["seq_alp-fixed_sigma"] == "σ₀ = 0.02, fixed, layers 0–2"


def _dashed(axes: Any) -> list[Any]:
    return [line for line in axes.lines if line.get_color() == plots.CLEAN["color"]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["accuracy", "envelope", "limit", "ratio_quantiles", "sigma", "tails"])
def test_figures_are_legible(noises: Finished, name: str, form: str) -> None:
    with plots.style(), FORMS[form]():
        assert_legible(FIGURES[name].make(runs.load(*noises)))


def test_quantile_figure_draws_the_clean_policy_of_every_arm(noises: Finished) -> None:
    """The own ratio drawn twice, or the sum where the ratio is of tokens."""
    loaded = runs.load(*noises)
    with plots.style():
        panels = {axes.get_title(): axes for axes in FIGURES["ratio_quantiles"].make(loaded).axes if axes.get_visible()}
    for arm in loaded.arms:
        lines = _dashed(panels[label(arm.name)])
        assert len(lines) == 2
        for line, quantile in zip(lines, ("q001", "q999"), strict=True):
            steps, values = arm.series(f"clean/{arm.ratio_level}/log_{quantile}")
            assert line.get_xdata().tolist() == steps.tolist()
            assert line.get_ydata() == pytest.approx(values.mean(axis=0))


def test_envelope_draws_the_clean_policy_of_the_same_sequences(noises: Finished) -> None:
    loaded = runs.load(*noises)
    with plots.style():
        panels = {axes.get_title(): axes for axes in FIGURES["envelope"].make(loaded).axes if axes.get_visible()}
    for arm in loaded.arms:
        updates = [update for run in arm.runs for update in run.updates]
        probability, clean = (
            np.concatenate([update[key] for update in updates]) for key in ("mean_probability", "clean_log_ratio")
        )
        order = np.argsort(probability, kind="stable")
        parts = np.array_split(order, 12)
        lines = _dashed(panels[label(arm.name)])
        assert [line.get_xdata() for line in lines] == [
            pytest.approx([np.median(probability[part]) for part in parts])
        ] * 2
        for line, share in zip(lines, (2, 98), strict=True):
            assert line.get_ydata() == pytest.approx([np.percentile(clean[part], share) for part in parts])
