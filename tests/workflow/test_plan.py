"""What the workflow tells a person before it runs, and what every rule tells a scheduler."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from alp.configuration import grid as grids
from alp.reporting.cost import cost

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
    assert done.stderr.splitlines()[-5:] == [
        "alp: would run",
        "  the grid: aggregate, evaluate_base, figures, manifest, prepare, pretrain, report, track",
        "  grpo: train seeds 0, 1; evaluate seeds 0, 1",
        "  seq_alp: train seeds 0, 1; evaluate seeds 0, 1",
        "  4 training jobs: 12 steps, 384 responses, 24 updates; no run of this task and model has been timed in"
        f" {tmp_path}/r",
    ]


def test_the_cost_is_by_what_was_timed(tmp_path: Path) -> None:
    """Steps of any grid's runs of the same task and model; a damaged file counts for nothing."""
    grid = grids.load("smoke")
    for name, lines in (("one", [2.0, 4.0]), ("other", [6.0])):
        folder = tmp_path / name / grid.task / grid.model / "grpo" / "seed0"
        folder.mkdir(parents=True)
        text = [json.dumps({"step": 1, "seconds/rollout": value / 2, "seconds/update": value / 2}) for value in lines]
        (folder / "timings.jsonl").write_text("\n".join(text) + "\n")
    assert cost(grid, ["grpo", "grpo", "seq_alp"], tmp_path) == (
        "3 training jobs: 9 steps, 288 responses, 18 updates; about 1 minutes of one core, by 3 steps timed in"
        f" {tmp_path}"
    )
    (tmp_path / "other" / grid.task / grid.model / "grpo" / "seed0" / "timings.jsonl").write_text('{"seconds/up')
    assert "by 2 steps" in cost(grid, ["grpo"], tmp_path)
    assert cost(grid, [], tmp_path) == ""


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
