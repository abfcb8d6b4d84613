"""Learning rates at which methods step equally far (benchmarks/matched.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from alp.configuration import grid as grids
from alp.configuration import grid_file
from benchmarks import matched

SETTINGS = yaml.safe_load(Path(matched.__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
BOUNDS = {"first": 1e-4, "widest": 16.0}


def test_no_rate_is_tried_twice() -> None:
    """Where a smaller rate went further, which a few steps' noise can do, the search goes on below both."""
    tried = {1e-4: 8.96e-3}
    again = matched.proposal(tried, 7.32e-3, **BOUNDS)
    tried[again] = 9.2e-3
    assert matched.proposal(tried, 7.32e-3, **BOUNDS) < 0.95 * again


@pytest.mark.parametrize("power", [1.0, 2.0, 2.6])
def test_three_rounds_find_a_rate_on_a_power_law(power: float) -> None:
    tried: dict[float, float] = {}
    rate, target = 1e-4, 3e-3
    for _ in range(SETTINGS["rounds"]):
        tried[rate] = 1e-3 * (rate / 1e-4) ** power
        rate = matched.proposal(tried, target, **BOUNDS)
    found = matched.matched(tried, target, SETTINGS["tolerance"])
    assert found is not None
    assert 1e-3 * (found / 1e-4) ** power == pytest.approx(target, rel=SETTINGS["tolerance"])


def test_what_cannot_be_matched_is_named() -> None:
    """A method whose divergence does not answer to the rate stays within bounds, and gets no rate."""
    tried = {1e-4: 1e-6, 1.6e-3: 1.1e-6}
    assert matched.proposal(tried, 3e-3, **BOUNDS) == pytest.approx(1.6e-3)
    assert matched.matched(tried, 3e-3, 0.1) is None
    text = matched.arms_text(
        {"grpo": {1e-4: 3e-3}, "veto": tried, "cispo": {1e-4: 6e-3, 5e-5: 3.1e-3}, "spo": {}, "opsm": {1e-4: 3e-3}},
        3e-3,
        SETTINGS,
    )
    assert text.splitlines() == [
        "  # veto: not matched (1.00e-06 at 1.00e-04, 1.10e-06 at 1.60e-03; wanted 3.00e-03)",
        "  - {method: cispo, variant: lr_matched, overrides: [trainer.lr=5e-05]}",
        "  # spo: not matched (no figure; wanted 3.00e-03)",
        "  # opsm: at the grid's own rate",
    ]


def test_a_round_is_a_grid_that_composes(tmp_path: Path) -> None:
    """Of the corrections grid's regime, with the round's rates, on seeds of no grid; what it logs is read back."""
    path = matched.round_file({"grpo": 1e-4, "cispo": 5e-5}, 2, SETTINGS, tmp_path)
    grid = grids.load(str(path))
    assert [arm.name for arm in grid.arms] == ["grpo-round2", "cispo-round2"]
    assert grid.task == grids.load(SETTINGS["arms_of"]).task
    assert not set(grid.seeds) & {
        seed for name in grid_file.names() for seed in grid_file.read(grid_file.located(name))["seeds"]
    }
    words = grid.overrides("train", tmp_path, arm="cispo-round2")
    assert "trainer.lr=5e-05" in words
    assert [word for word in words if word.startswith("trainer.steps=")] == ["trainer.steps=5"]
    for arm, value in (("grpo-round2", 2e-3), ("cispo-round2", 4e-3)):
        for seed in grid.seeds:
            folder = grid.run_dir(tmp_path, arm, seed)
            folder.mkdir(parents=True)
            lines = [{"step": 0}, {"step": 1, SETTINGS["figure"]: value}, {"step": 2, SETTINGS["figure"]: 3 * value}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert matched.measured(path, SETTINGS, tmp_path) == pytest.approx({"grpo": 4e-3, "cispo": 8e-3})
