"""``make same``: what counts as the same number, and that nothing differing or unexplained passes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import same


def _grid(
    folder: Path, *, reward: float = 0.1, weight: float = 1.0, cell: str = "95.1", log_prob: float = -0.5
) -> Path:
    run = folder / "task" / "model" / "grpo" / "seed0"
    (run / "evaluation").mkdir(parents=True)
    (run / "model").mkdir()
    (folder / "tables").mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward/mean": reward}) + "\n")
    (run / "timings.jsonl").write_text(json.dumps({"step": 1, "seconds": np.random.default_rng().random()}) + "\n")
    save_file({"a": np.array([1.0, weight], np.float32)}, run / "model" / "model.safetensors")
    (run / "evaluation" / "test.json").write_text(json.dumps({"accuracy": 0.5, "config_hash": str(folder)}))
    sample = json.dumps({"problem_id": "p", "log_probs": [log_prob]}) + "\n"
    (run / "evaluation" / "test.samples.jsonl.gz").write_bytes(gzip.compress(sample.encode()))
    (folder / "tables" / "main.csv").write_text(f"method,accuracy_mean\ngrpo,{cell}\n")
    return folder


def test_equal_results_in_other_folders_are_the_same(tmp_path: Path) -> None:
    there, here = same.numbers(_grid(tmp_path / "a")), same.numbers(_grid(tmp_path / "b"))
    lines, code = same.report(same.compare(there, here), {}, "abc")
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith("8 numbers that both have: 0 differ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reward": np.nextafter(0.1, 1)}, "metrics.jsonl: line 1, reward/mean: 0.1 there, 0.10000000000000002 here"),
        ({"weight": float(np.nextafter(np.float32(1), np.float32(2)))}, "a: 1 of 2 elements, the largest by 1.19e-07"),
        ({"cell": "95.10"}, "tables/main.csv: row 1 (grpo): accuracy_mean"),
        ({"log_prob": -0.25}, "test.samples.jsonl.gz: line 1, log_probs: [-0.5] there, [-0.25] here"),
    ],
)
def test_the_last_bit_of_anything_is_a_difference(change: dict[str, float], said: str, tmp_path: Path) -> None:
    there, here = same.numbers(_grid(tmp_path / "a")), same.numbers(_grid(tmp_path / "b", **change))  # type: ignore[arg-type]
    lines, code = same.report(same.compare(there, here), {}, "abc")
    assert code == 1
    assert said in lines[0]
    assert "1 differ;" in lines[-1]


def test_a_name_of_one_side_needs_a_reason(tmp_path: Path) -> None:
    there, here = same.numbers(_grid(tmp_path / "a")), same.numbers(_grid(tmp_path / "b"))
    del there["tables/main.csv: row 1 (grpo): accuracy_mean"]
    lines, code = same.report(same.compare(there, here), {}, "abc")
    assert code == 1
    assert "NO REASON GIVEN" in lines[0]
    lines, code = same.report(same.compare(there, here), {"tables/*": "a new column"}, "abc")
    assert code == 0
    assert lines[0].endswith("a new column")


def test_nothing_to_compare_is_no_success() -> None:
    assert same.report(same.compare({}, {}), {}, "abc")[1] == 1
