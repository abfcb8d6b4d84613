"""A finished grid, fabricated: every file of docs/results.md that the analysis reads, with shapes a real run could
have."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from alp.configuration import compose
from alp.configuration import grid as grids
from alp.configuration.grid import Arm, Grid
from alp.policy.diagnostics import QUANTILES
from alp.policy.method import Method
from alp.reporting import arms
from alp.tasks.prepare import prepare

GRID = """
title: Tiny grid
description: Four arms that were never trained.
task: arithmetic
model: arithmetic_tiny
seeds: [0, 1]
published: single_turn
overrides:
  task: [task.test=40]
arms:
  - method: grpo
  - method: token_bypass
  - method: token_alp
  - {method: token_alp, variant: sigma0}
"""
ENGINES = """
title: Engines
description: Two methods under three engines, never trained.
task: arithmetic
model: arithmetic_tiny
seeds: [0, 1]
overrides:
  task: [task.test=40]
arms:
  - {method: grpo, variant: hf_fp32, overrides: [rollout.dtype=float32]}
  - method: grpo
  - {method: token_mis, variant: hf_fp32, overrides: [rollout.dtype=float32]}
  - method: token_mis
  - {method: token_mis, variant: clip_wide}
  - {method: grpo, variant: vllm_bf16, overrides: [rollout=vllm]}
"""
SETS = """
title: Sets
description: Two evaluation sets of different sizes, never trained on.
task: mathematics
model: smollm2_135m
seeds: [0, 1]
overrides:
  task:
    - "task.train=[{{path: '{folder}/train.jsonl'}}]"
    - "task.test={{easy: {{path: '{folder}/easy.jsonl'}}, hard: {{path: '{folder}/hard.jsonl'}}}}"
    - task.validation=2
arms:
  - method: grpo
  - method: token_alp
  - {{method: token_alp, variant: sigma0}}
"""
SIZES = {"easy": 30, "hard": 10}
SAMPLES = 16
FINAL = {"grpo": 0.72, "gspo": 0.66, "token_bypass": 0.70, "seq_bypass": 0.61, "token_alp": 0.80, "seq_alp": 0.76}
MISMATCH = {
    "HF fp32": 3e-8,
    "HF bf16": 1e-3,
    "HF int8": 8e-3,
    "vLLM bf16": 1.3e-3,
}  # scale of log π_old − log μ per token
WIDTH = {"grpo": 0.04, "gspo": 0.04, "token_bypass": 0.09, "seq_bypass": 0.12, "token_alp": 0.06, "seq_alp": 0.07}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path]:
    """The small grid and its results root. Shared by all tests: nobody may write into the runs."""
    root = tmp_path_factory.mktemp("finished")
    return fabricate(write_grid(root, GRID), root / "results")


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path]:
    """A grid that compares engines. Shared by all tests likewise."""
    root = tmp_path_factory.mktemp("engines")
    return fabricate(write_grid(root, ENGINES, "engines"), root / "results")


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path]:
    """A grid with two evaluation sets. Shared by all tests likewise."""
    root = tmp_path_factory.mktemp("several")
    for name, size in {"train": 12, **SIZES}.items():
        rows = [{"id": str(number), "problem": f"{name} {number}?", "answer": str(number)} for number in range(size)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return fabricate(write_grid(root, SETS.format(folder=root), "several"), root / "results")


@pytest.fixture
def fresh(tmp_path: Path) -> tuple[Grid, Path]:
    """The same, to be changed at will."""
    return fabricate(write_grid(tmp_path, GRID), tmp_path / "results", steps=3)


def write_grid(folder: Path, text: str, name: str = "tiny") -> Grid:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return grids.load(str(path))


def fabricate(grid: Grid, results: Path, *, problems: int = 40, steps: int = 10) -> tuple[Grid, Path]:
    """Write the whole results tree of ``grid``; a pure function of its arguments."""
    prepare(compose.load("prepare", grid.overrides("prepare", results)).task, grid.data_dir(results))
    difficulty = np.random.default_rng(7).normal(size=problems)
    if grid.parts:
        difficulty += np.repeat([-0.5, 2.5], list(SIZES.values()))
    _write_evaluation(grid.base_dir(results), 0.42, difficulty, np.random.default_rng(8), _ids(grid, problems))
    (grid.base_dir(results) / "metrics.jsonl").write_text('{"loss": 1.0, "step": 1}\n')
    for arm in grid.arms:
        for seed in grid.seeds:
            # a name's hash changes from process to process; its bytes do not
            rng = np.random.default_rng([seed, *arm.name.encode()])
            _write_run(grid, results, arm, seed, difficulty, steps, rng)
    return grid, results


def _write_run(
    grid: Grid, results: Path, arm: Arm, seed: int, difficulty: np.ndarray, steps: int, rng: np.random.Generator
) -> None:
    folder = grid.run_dir(results, arm.name, seed)
    resolved = compose.load("train", grid.overrides("train", results, arm=arm.name, seed=seed))
    final = FINAL.get(arm.method, 0.65) - 0.03 * (arm.variant is not None) + rng.normal(scale=0.015)
    _write_evaluation(folder, final, difficulty, rng, _ids(grid, len(difficulty)))
    (folder / "config.yaml").write_text(compose.to_yaml(resolved))
    method = asdict(resolved.method)
    active = {
        key: method[key]
        for key in ("numerator", "denominator", "level", "clip_low", "clip_high", "dual_clip", "corrections")
    }
    active |= {
        "method": arm.method,
        "variant": arm.variant,
        "rollout_dtype": "bfloat16",
        "train_dtype": "float32",
        "engine": "hf",
    }
    active |= {"quantised_weights": 0, "weight_noise": 0.0, "device": "cpu", "threads": 1}
    hooks = 3 if method["perturbation"] and method["perturbation"]["std"] else 0
    active["perturbation"] = method["perturbation"] and {**method["perturbation"], "layers": [0, 1, 2], "hooks": hooks}
    _write_json(folder / "active.json", active)
    origin = {
        "commit": "c0ffee" * 6,
        "dirty": False,
        "lock": "locks/cpu.txt",
        "lock_sha256": "ab" * 32,
        "versions": {"torch": "2.13.0"},
    }
    _write_json(folder / "provenance.json", origin | {"config_hash": "cd" * 32, "identity": "ef" * 32})
    noise = arms.learns_noise(resolved.method)
    lines = [_metrics(step, steps, final, arm, noise, rng) for step in range(steps + 1)]
    gap = MISMATCH.get(resolved.rollout.label, 1e-3)
    _write_lines(folder / "metrics.jsonl", [line | _mismatch(gap, rng) if line["step"] else line for line in lines])
    _write_lines(folder / "updates.jsonl", [_update(step, arm, rng) for step in range(5, steps + 1, 5)])
    shown = [trajectory(step, place, resolved.method, rng) for step in range(5, steps + 1, 5) for place in range(4)]
    _write_lines(folder / "trajectories.jsonl", shown)


def _metrics(step: int, steps: int, final: float, arm: Arm, noise: bool, rng: np.random.Generator) -> dict[str, Any]:
    done = 1 - math.exp(-3 * step / steps)
    accuracy = 0.42 + (final - 0.42) * done
    validation = {
        "validation/accuracy": accuracy + rng.normal(scale=0.02),
        "validation/length": 10.5 + 8 * done + rng.normal(scale=0.2),
    }
    if step == 0:
        return {"step": 0, **validation}
    line: dict[str, Any] = {
        "step": step,
        "reward/mean": accuracy + rng.normal(scale=0.02),
        "response/length": 10.5 + 8 * done + rng.normal(scale=0.3),
        "response/truncated": 0.01,
        "policy/entropy": 0.6 - 0.3 * done + rng.normal(scale=0.01),
        "policy/grad_norm": 0.8 + rng.gamma(2, 0.1),
        "policy/kl": None,
        **(validation if step % 5 == 0 else {}),
    }
    if step % 5 == 0:
        line["sharpness"] = 0.05 * (1 - 0.4 * done) * rng.uniform(0.9, 1.1)
    width = WIDTH.get(arm.method, 0.08) * (0.4 + done)
    for level, scale in (("token", 1.0), ("sequence", 4.0)):
        line |= {f"ratio/{level}/log_mean": -0.1 * width, f"ratio/{level}/log_std": scale * width}
        for name, probability in QUANTILES.items():
            normal = NormalDist().inv_cdf(probability)
            line[f"ratio/{level}/log_{name}"] = scale * width * (normal + 0.15 * normal**3) * rng.uniform(0.9, 1.1)
    line |= _clean(step, width, noise=noise)
    if noise:
        line |= {f"perturbation/std/{layer}": 0.02 * math.exp(-(0.6 + 0.3 * layer) * done) for layer in range(3)}
        line |= _budget(done) if step % 5 == 0 else {}
    return line


def _budget(done: float) -> dict[str, float]:
    """The budget of noise that is almost all that of layer 0."""
    line = {}
    for level, scale in (("token", 1.0), ("sequence", 10.0)):
        parts = [scale * 3e-3 * 0.1**layer * math.exp(-done) for layer in range(3)]
        line |= {f"budget/{level}_variance/{layer}": part for layer, part in enumerate(parts)}
        line[f"budget/{level}_variance/all"] = 1.05 * sum(parts)
    return line


def _clean(step: int, width: float, *, noise: bool) -> dict[str, float]:
    """The clean policy's log-ratio, and under noise the perturbed one's, of the last mini-batch; now and then of the
    batch."""
    sizes = {"clean": 0.8} | ({"perturbed": 1.2} if noise else {}) | ({"clean_batch": 0.9} if step % 5 == 0 else {})
    line = {"clean_batch/k3_kl": 0.4 * width**2, "clean_batch/k3_kl_old": 0.3 * width**2} if step % 5 == 0 else {}
    for level, scale in (("token", 1.0), ("sequence", 4.0)):
        for of, size in sizes.items():
            line |= {f"{of}/{level}/log_mean": 0.0, f"{of}/{level}/log_std": size * scale * width}
            for name, probability in QUANTILES.items():
                line[f"{of}/{level}/log_{name}"] = size * scale * width * NormalDist().inv_cdf(probability)
    return line


def _mismatch(gap: float, rng: np.random.Generator) -> dict[str, float]:
    """What the trainer logs of π_old against μ at that distance per token."""
    line = {"rollout_corr/kl": gap**2 * rng.uniform(0.3, 0.7), "rollout_corr/k3_kl": gap**2 * rng.uniform(0.45, 0.55)}
    for level, scale in (("token", 1.0), ("sequence", 4.0)):
        line[f"rollout_corr/{level}/log_std"] = scale * gap
        for name, probability in QUANTILES.items():
            line[f"rollout_corr/{level}/log_{name}"] = (
                scale * gap * NormalDist().inv_cdf(probability) * rng.uniform(0.9, 1.1)
            )
    return line


def _update(step: int, arm: Arm, rng: np.random.Generator) -> dict[str, Any]:
    probability = rng.beta(8, 2, size=64)
    spread = WIDTH.get(arm.method, 0.08) * 12 * (1 - probability)
    ratio = spread * rng.standard_t(4, size=64)
    return {
        "step": step,
        "update": 8 * step,
        "log_ratio": ratio.tolist(),
        "clean_log_ratio": (0.6 * ratio).tolist(),
        "mean_probability": probability.tolist(),
    }


def trajectory(step: int, place: int, method: Method, rng: np.random.Generator) -> dict[str, Any]:
    """A line of ``trajectories.jsonl`` of one turn: the fourth is right, its group's others are not."""
    text = [*"17+25=42"[: 6 + place], "</s>"]
    values = (WIDTH.get(method.name, 0.08) * rng.standard_t(3, size=len(text))).round(6).tolist()
    advantage = 1.5 if place == 3 else -0.5
    ratio, levels = values, [round(math.fsum(values), 6)]
    if method.level == "sequence":
        ratio = levels * len(text)
    marks = []
    for value in ratio:
        low = -math.inf if method.clip_low is None else math.log(1 - method.clip_low)
        high = math.inf if method.clip_high is None else math.log(1 + method.clip_high)
        clipped = "clipped_low" if advantage < 0 and value < low else "clipped_high"
        marks.append(clipped if (value > high if advantage > 0 else value < low) else "loss")
    return {
        "step": step,
        "update": 8 * step,
        "problem": f"train-{place // 2}",
        "sample": place % 2,
        "prompt": "17+25=",
        "prompt_tokens": 6,
        "response_tokens": len(text),
        "reward": float(place == 3),
        "advantage": advantage,
        "finished": True,
        "left_out": False,
        "log_ratio_sum": levels[0],
        "mismatch_log_ratio_sum": 0.001 * place,
        "level_log_ratio": [] if method.level == "token" else levels,
        "gap": 0,
        "gap_at": 0,
        "token_ids": list(range(len(text))),
        "text": text,
        "turn_ids": [0] * len(text),
        "log_ratio": values,
        "marks": marks,
    }


def _ids(grid: Grid, problems: int) -> list[str]:
    if grid.parts:
        return [f"{name}:{number}" for name, size in SIZES.items() for number in range(size)]
    return [f"test-{number}" for number in range(problems)]


def _write_evaluation(
    folder: Path, accuracy: float, difficulty: np.ndarray, rng: np.random.Generator, ids: list[str]
) -> None:
    chance = 1 / (1 + np.exp(-(math.log(accuracy / (1 - accuracy)) * 1.3 - 1.5 * difficulty)))
    correct = rng.binomial(SAMPLES, chance)
    greedy = (chance > 0.5).astype(int)
    record = {
        "set": "test",
        "problems": len(correct),
        "samples": SAMPLES,
        "accuracy": float(correct.mean() / SAMPLES),
        "greedy": float(greedy.mean()),
        "pass_at_k": {},
        "correct": correct.tolist(),
        "greedy_correct": greedy.tolist(),
        "response_length": 10.5 + 18 * (accuracy - 0.42),
        "truncated": 0.0,
        "problem_ids": ids,
        "config_hash": "0" * 64,
    }
    _write_json(folder / "evaluation" / "test.json", record)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, sort_keys=True, indent=2) + "\n", encoding="utf-8")


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines), encoding="utf-8")


def bytes_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the marks, by relative path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and ".alp" not in path.parts)
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A training under way, three steps of it logged."""
    from .test_tracking import write_metrics

    folder = tmp_path / "results" / "grpo" / "seed3"
    folder.mkdir(parents=True)
    chosen = compose.load("train", ["method=grpo", "trainer.seed=3", f"run.dir='{folder}'"])
    (folder / "config.yaml").write_text(compose.to_yaml(chosen), encoding="utf-8")
    write_metrics(folder, 3)
    (folder / ".alp" / "train").mkdir(parents=True)
    mark = '{"made_by": "alp", "format": 1, "identity": "x", "state": "in progress", "origin": {}, "made": []}'
    (folder / ".alp" / "train" / "mark.json").write_text(mark)
    return folder
