"""What the workflow tells a person before it runs, and what every rule tells a scheduler."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alp.configuration import grid as grids

ROOT = Path(__file__).resolve().parents[2]


def test_a_dry_run_names_every_job_and_closes_by_arm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--config", "grid=smoke", f"results={tmp_path}/r"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout + done.stderr
    for verb in ("train", "evaluate"):
        for arm in ("grpo", "seq_alp"):
            for seed in (0, 1):
                assert len(re.findall(rf": {verb} {arm} seed {seed}$", said, flags=re.MULTILINE)) == 1
    assert "Reason:" not in said
    assert done.stderr.splitlines()[-4:] == [
        "alp: would run",
        "  the grid: aggregate, evaluate_base, figures, manifest, prepare, pretrain, report, track",
        "  grpo: train seeds 0, 1; evaluate seeds 0, 1",
        "  seq_alp: train seeds 0, 1; evaluate seeds 0, 1",
    ]


@pytest.mark.parametrize("name", ["single_turn", "ablation_layers"])
def test_a_grid_of_the_paper_is_listed_without_a_network(name: str, tmp_path: Path) -> None:
    """In a network namespace of its own, where the system lends one: neither model nor data is looked for."""
    alone = ["unshare", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be had here (unshare --net)")
    command = [
        *alone,
        sys.executable,
        "-m",
        "snakemake",
        "--dry-run",
        "--config",
        f"grid={name}",
        f"results={tmp_path}/r",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    grid = grids.load(name)
    seeds = ", ".join(map(str, grid.seeds))
    lines = done.stderr.splitlines()
    assert lines[-len(grid.arms) :] == [
        f"  {arm.name}: train seeds {seeds}; evaluate seeds {seeds}" for arm in grid.arms
    ]


def test_every_rule_says_what_it_does_and_needs() -> None:
    rules = [
        rule
        for path in [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]
        for rule in re.split(r"^(?=rule )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    ]
    assert len(rules) == 12
    for rule in rules:
        for needed in ("threads:", "mem_mb=", "runtime=", "message:"):
            assert needed in rule, (needed, rule[:40])
