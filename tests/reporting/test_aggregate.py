"""Tables of a fabricated grid: columns of the contract, figures computed a second way, stable bytes, one-line
errors."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alp.code_identity import job_closure
from alp.configuration import compose
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.reporting import registry
from alp.reporting.aggregate import aggregate
from alp.reporting.arms import label
from alp.reproducibility import PACKAGE

from .conftest import SAMPLES, bytes_below, fabricate, write_grid

Finished = tuple[Grid, Path]
QUANTILE = 12.7062047  # of Student's t with one degree of freedom: two seeds


@pytest.fixture(scope="module")
def tables(finished: Finished) -> Path:
    grid, results = finished
    aggregate(grid, results)
    return grid.folder(results) / "tables"


def rows(tables: Path, name: str) -> list[dict[str, str]]:
    with (tables / f"{name}.csv").open() as stream:
        return list(csv.DictReader(stream))


def accuracies(grid: Grid, results: Path, arm: str) -> np.ndarray:
    """(seeds, problems), read without the code under test."""
    paths = [grid.run_dir(results, arm, seed) / "evaluation" / "test.json" for seed in grid.seeds]
    return np.array([json.loads(path.read_text(encoding="utf-8"))["correct"] for path in paths]) / SAMPLES


def test_every_table_comes_in_three_forms(tables: Path) -> None:
    names = {path.name for path in tables.iterdir()}
    one_engine = [
        table.name for table in registry.registered("tables") if table.name not in ("mismatch", "sets", "tools")
    ]
    assert names == {f"{name}.{ending}" for name in one_engine for ending in ("csv", "md", "tex")}


def test_main_keeps_the_contract(tables: Path) -> None:
    documented = (
        "method, accuracy_mean, accuracy_low, accuracy_high, seeds, published, difference_to_reference, difference_low,"
        " difference_high, clear, greedy_mean, length_mean, best_step, best_validation"
    )
    assert (tables / "main.csv").read_text(encoding="utf-8").splitlines()[0] == documented.replace(", ", ",")
    assert [row["method"] for row in rows(tables, "main")] == [
        "base",
        "grpo",
        "token_bypass",
        "token_alp",
        "token_alp-sigma0",
    ]


def test_main_against_a_second_computation(finished: Finished, tables: Path) -> None:
    grid, results = finished
    found = {row["method"]: row for row in rows(tables, "main")}
    alp, grpo = (accuracies(grid, results, name) for name in ("token_alp", "grpo"))
    row = found["token_alp"]
    assert float(row["accuracy_mean"]) == pytest.approx(alp.mean(), abs=1e-6)
    assert float(row["difference_to_reference"]) == pytest.approx((alp - grpo).mean(), abs=1e-6)
    one, other = (alp - grpo).mean(1)
    reach = QUANTILE * abs(one - other) / 2  # the standard error of a mean of two
    assert [float(row["difference_low"]), float(row["difference_high"])] == pytest.approx(
        [(one + other) / 2 - reach, (one + other) / 2 + reach], abs=2e-6
    )
    assert row["seeds"] == "2"
    assert float(row["accuracy_low"]) < float(row["accuracy_mean"]) < float(row["accuracy_high"]) <= 1


def test_the_base_model_has_the_noise_of_its_samples(finished: Finished, tables: Path) -> None:
    grid, results = finished
    record = json.loads((grid.base_dir(results) / "evaluation" / "test.json").read_text(encoding="utf-8"))
    shares = np.array(record["correct"]) / SAMPLES
    error = np.sqrt((shares * (1 - shares)).sum() / (SAMPLES - 1)) / len(shares)
    base = rows(tables, "main")[0]
    assert float(base["accuracy_high"]) - float(base["accuracy_mean"]) == pytest.approx(1.964 * error, rel=1e-3)


def test_marks_are_those_of_holms_test(fresh: Finished) -> None:
    """Arms whose every seed is a little, or far, above GRPO's: all intervals but one exclude zero, two stay clear."""
    grid, results = fresh

    def shift(arm: str, *counts: int) -> None:
        for seed, count in zip(grid.seeds, counts, strict=True):
            path = grid.run_dir(results, arm, seed) / "evaluation" / "test.json"
            plain = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(plain | {"correct": [6] * 20 + [6 + count // 20] * 20}))

    shift("grpo", 0, 0)
    shift("token_bypass", 60, 60)  # no variance: clear
    shift("token_alp", 160, 180)  # p = 0.037 alone, the third of four comparisons
    shift("token_alp-sigma0", 0, 20)
    aggregate(grid, results)
    found = {row["method"]: row for row in rows(grid.folder(results) / "tables", "main")}
    assert [row["clear"] for row in found.values()] == ["true", "", "true", "false", "false"]
    assert float(found["token_alp"]["difference_low"]) > 0
    markdown = (grid.folder(results) / "tables" / "main.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in markdown.splitlines() if "] †" in line] == [
        "Base model",
        "Token-Bypass",
    ]
    assert r"] $\dagger$" in (grid.folder(results) / "tables" / "main.tex").read_text(encoding="utf-8")


def test_base_and_reference_leave_empty_what_they_have_not(tables: Path) -> None:
    base, grpo, *_ = rows(tables, "main")
    assert base["seeds"] == base["published"] == base["best_step"] == ""
    assert float(base["difference_to_reference"]) < 0
    assert grpo["difference_to_reference"] == grpo["difference_low"] == grpo["clear"] == ""
    assert base["clear"] in ("true", "false")


def test_published_stands_beside_presets_alone_as_a_fraction(tables: Path) -> None:
    found = {row["method"]: row["published"] for row in rows(tables, "main")}
    assert found == {
        "base": "",
        "grpo": "0.357700",
        "token_bypass": "",
        "token_alp": "0.378700",
        "token_alp-sigma0": "",
    }


def test_best_validation_is_the_best_seed_mean(finished: Finished, tables: Path) -> None:
    grid, results = finished
    per_seed = []
    for seed in grid.seeds:
        lines = [
            json.loads(line)
            for line in (grid.run_dir(results, "grpo", seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        per_seed.append({line["step"]: line["validation/accuracy"] for line in lines if "validation/accuracy" in line})
    means = {step: sum(one[step] for one in per_seed) / len(per_seed) for step in per_seed[0]}
    row = rows(tables, "main")[1]
    assert int(row["best_step"]) == max(means, key=lambda step: means[step])
    assert float(row["best_validation"]) == pytest.approx(max(means.values()), abs=1e-6)


def test_pass_at_one_is_the_accuracy(tables: Path) -> None:
    main = {row["method"]: row["accuracy_mean"] for row in rows(tables, "main")}
    table = rows(tables, "pass_at_k")
    assert {row["method"]: row["pass_at_1"] for row in table} == main
    assert list(table[0]) == ["method", "set", "pass_at_1", "pass_at_2", "pass_at_4", "pass_at_8", "pass_at_16"]
    for row in table:
        values = [float(value) for key, value in row.items() if key.startswith("pass_at_")]
        assert values == sorted(values)


def test_ratio_tails_compare_with_bypass_of_the_level(tables: Path) -> None:
    table = {(row["method"], row["level"]): row for row in rows(tables, "ratio_tails")}
    alp, bypass = table["token_alp", "token"], table["token_bypass", "token"]
    assert alp["reference"] == "token_bypass"
    assert bypass["width_reduction"] == ""
    assert float(alp["width"]) == pytest.approx(float(alp["q999"]) - float(alp["q001"]), abs=2e-6)
    assert float(alp["width_reduction"]) == pytest.approx(1 - float(alp["width"]) / float(bypass["width"]), abs=1e-4)
    assert table["token_alp", "sequence"]["reference"] == table["token_alp", "sequence"]["width_reduction"] == ""


def test_noise_budgets_hold_both_probes_and_add_up(tables: Path) -> None:
    table = rows(tables, "noise_budget")
    layers = ["0", "1", "2", "all together", "mismatch"]
    assert [(row["method"], row["step"], row["layer"]) for row in table] == [
        ("token_alp", step, layer) for step in ("5", "10") for layer in layers
    ]
    for rows_of_probe in (table[:5], table[5:]):
        parts = [float(row["token_variance"]) for row in rows_of_probe[:3]]
        assert [float(row["token_share"]) for row in rows_of_probe[:3]] == pytest.approx(
            [part / sum(parts) for part in parts], rel=1e-4
        )
        assert float(rows_of_probe[3]["token_share"]) == pytest.approx(1.05, rel=1e-4)
        assert float(rows_of_probe[4]["token_variance"]) == pytest.approx(1e-6)
        assert rows_of_probe[4]["token_share"] == ""


def test_controls_say_what_differs(tables: Path) -> None:
    found = [(row["method"], row["control"], row["changed"]) for row in rows(tables, "controls")]
    assert found == [("token_alp", "token_alp-sigma0", "noise"), ("token_alp", "token_bypass", "noise, clip range")]
    for row in rows(tables, "controls"):
        assert float(row["difference"]) == pytest.approx(
            float(row["accuracy_mean"]) - float(row["control_mean"]), abs=2e-6
        )
        assert float(row["difference_low"]) <= float(row["difference"]) <= float(row["difference_high"])


def test_people_see_rounded_text(tables: Path) -> None:
    markdown, latex = (
        (tables / "main.md").read_text(encoding="utf-8"),
        (tables / "main.tex").read_text(encoding="utf-8"),
    )
    assert markdown.splitlines()[2].startswith("| Base model | ")
    assert r"\toprule" in latex
    assert "37.87" in latex
    assert r"Token-ALP ($\sigma_0$ = 0)" in latex
    assert "%" not in latex.replace(r"\%", "").replace("% needs the booktabs package", "")
    columns = {line.count("&") for line in latex.splitlines() if line.endswith(r"\\")}
    assert len(columns) == 1


def test_bytes_are_stable(finished: Finished, tables: Path) -> None:
    before = bytes_below(tables)
    aggregate(*finished)
    assert bytes_below(tables) == before
    assert all(content.endswith(b"\n") and b"\r" not in content for content in before.values())


@pytest.mark.parametrize(
    ("arms", "expected", "heading"),
    [
        (["gspo", "seq_mis"], {"base": "gspo", "seq_mis": "gspo"}, "Difference to GSPO"),
        (["gspo", "grpo", "seq_mis"], {"base": "grpo", "gspo": "grpo", "seq_mis": "grpo"}, "Difference to GRPO"),
        (["grpo-a", "seq_mis-a", "seq_mis-b"], {"seq_mis-a": "grpo-a"}, "Difference to GRPO"),
        (["grpo", "grpo-a", "seq_mis-a"], dict.fromkeys(["base", "grpo-a", "seq_mis-a"], "grpo"), "Difference to GRPO"),
        (["seq_mis", "seq_tis"], {}, "Difference to GRPO"),
    ],
)
def test_what_an_arm_is_compared_with(arms: list[str], expected: dict[str, str], heading: str, tmp_path: Path) -> None:
    """GRPO, else GSPO; where the grid has it under variants alone, that of the arm's own."""
    parts = [(name.partition("-")[0], name.partition("-")[2]) for name in arms]
    variants = [f", variant: {of}, overrides: [trainer.weight_decay=0.0{len(of)}]" if of else "" for _, of in parts]
    listed = ", ".join(f"{{method: {parts[at][0]}{variants[at]}}}" for at in range(len(arms)))
    text = f"title: t\ndescription: d\ntask: arithmetic\nmodel: arithmetic_tiny\nseeds: [0, 1]\narms: [{listed}]\n"
    grid, results = fabricate(write_grid(tmp_path, text, "compared"), tmp_path / "results", steps=3)
    aggregate(grid, results)
    folder = grid.folder(results) / "tables"
    found = {row["method"]: row for row in rows(folder, "main")}
    assert {name for name, row in found.items() if row["difference_to_reference"]} == set(expected)
    for name, other in expected.items():
        gap = float(found[name]["accuracy_mean"]) - float(found[other]["accuracy_mean"])
        assert float(found[name]["difference_to_reference"]) == pytest.approx(gap, abs=2e-6)
    assert heading in (folder / "main.md").read_text(encoding="utf-8")


def test_controls_without_any_hold_a_header_alone(tmp_path: Path) -> None:
    text = "title: t\ndescription: d\ntask: arithmetic\nmodel: arithmetic_tiny\nseeds: [4]\narms: [{method: seq_alp}]\n"
    grid, results = fabricate(write_grid(tmp_path, text, "lonely"), tmp_path / "results", steps=3)
    aggregate(grid, results)
    folder = grid.folder(results) / "tables"
    assert len((folder / "controls.csv").read_text(encoding="utf-8").splitlines()) == 1
    row = rows(folder, "main")[1]
    assert row["difference_to_reference"] == row["published"] == ""
    assert row["seeds"] == "1"
    assert row["accuracy_low"] == row["accuracy_high"] == ""
    base, arm = (folder / "main.md").read_text(encoding="utf-8").splitlines()[2:]
    assert ("[" in base, "[" in arm) == (True, False)


def test_a_grid_without_bypass_compares_tails_with_noise_free_alp(tmp_path: Path) -> None:
    arms = "arms: [{method: token_alp}, {method: token_alp, variant: sigma0}]\n"
    text = f"title: t\ndescription: d\ntask: arithmetic\nmodel: arithmetic_tiny\nseeds: [0]\n{arms}"
    grid, results = fabricate(write_grid(tmp_path, text), tmp_path / "results", steps=3)
    aggregate(grid, results)
    found = {
        (row["method"], row["level"]): row["reference"] for row in rows(grid.folder(results) / "tables", "ratio_tails")
    }
    assert found["token_alp", "token"] == "token_alp-sigma0"


@pytest.mark.parametrize("lost", ["metrics.jsonl", "evaluation/test.json"])
def test_a_missing_file_is_one_line_with_file_and_command(fresh: Finished, lost: str) -> None:
    grid, results = fresh
    path = grid.run_dir(results, "token_alp", 1) / lost
    path.unlink()
    with pytest.raises(UserError) as caught:
        aggregate(grid, results)
    assert str(path) in str(caught.value)
    assert "snakemake --cores 2 --config grid=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_base_is_named(fresh: Finished) -> None:
    grid, results = fresh
    path = grid.base_dir(results) / "evaluation" / "test.json"
    path.unlink()
    with pytest.raises(UserError, match=r"base/evaluation/test\.json"):
        aggregate(grid, results)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("problem_ids", None, "lacks"),
        ("samples", 8, "outside"),
        ("problems", 3, "counts"),
        ("greedy_correct", [1] * 30, "counts"),
    ],
)
def test_a_damaged_evaluation_is_refused(fresh: Finished, key: str, value: object, message: str) -> None:
    grid, results = fresh
    path = grid.run_dir(results, "grpo", 0) / "evaluation" / "test.json"
    plain = json.loads(path.read_text(encoding="utf-8"))
    plain.pop(key)
    path.write_text(json.dumps(plain | ({} if value is None else {key: value})))
    with pytest.raises(UserError, match=message):
        aggregate(grid, results)


def test_other_problems_cannot_be_paired(fresh: Finished) -> None:
    grid, results = fresh
    path = grid.run_dir(results, "grpo", 0) / "evaluation" / "test.json"
    plain = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(plain | {"problem_ids": plain["problem_ids"][::-1]}))
    with pytest.raises(UserError, match="other problems or samples"):
        aggregate(grid, results)


def test_a_cut_line_is_refused(fresh: Finished) -> None:
    grid, results = fresh
    path = grid.run_dir(results, "grpo", 0) / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-20])
    with pytest.raises(UserError, match="no valid JSON at line 4"):
        aggregate(grid, results)


def test_optional_metrics_may_be_missing(fresh: Finished) -> None:
    grid, results = fresh
    for seed in grid.seeds:
        path = grid.run_dir(results, "token_alp", seed) / "metrics.jsonl"
        path.write_text("".join(json.dumps({"step": step, "reward/mean": None}) + "\n" for step in range(1, 4)))
    aggregate(grid, results)
    folder = grid.folder(results) / "tables"
    assert rows(folder, "main")[3]["best_step"] == ""
    assert next(row for row in rows(folder, "ratio_tails") if row["method"] == "token_alp")["width"] == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("base", "Base model"),
        ("grpo", "GRPO"),
        ("seq_mis", "Seq-MIS"),
        ("token_alp-sigma0", "Token-ALP (σ₀ = 0)"),
        ("seq_alp-sigma0003", "Seq-ALP (σ₀ = 0.003)"),
        ("new_method-some_thing", "New-Method (some thing)"),
    ],
)
def test_labels(name: str, shown: str) -> None:
    assert label(name) == shown


@pytest.mark.parametrize(
    ("verb", "parts", "strangers"),
    [
        ("aggregate", {"tables/main.py", "runs.py"}, {"draw.py", "looks.py", "figures/sigma.py", "report.py"}),
        ("figures", {"figures/sigma.py", "looks.py", "runs.py"}, {"aggregate.py", "tables/main.py", "report.py"}),
        ("report", {"aggregate.py", "tables/main.py", "figures/sigma.py"}, {"draw.py", "tracking.py"}),
        ("manifest", {"registry.py", "conclusions.py"}, {"figures/sigma.py", "draw.py", "report.py"}),
    ],
)
def test_a_change_in_one_part_rebuilds_no_other(verb: str, parts: set[str], strangers: set[str]) -> None:
    """Whatever the registry imports by name counts too."""
    room = PACKAGE / "reporting"
    module = compose.ENTRIES[verb].partition(":")[0]
    closure = job_closure(module, {"schema": ["train"], "verb": verb}).files.values()
    names = {path.relative_to(room).as_posix() for path in closure if path.is_relative_to(room)}
    assert parts <= names
    assert not strangers & names


def test_tables_need_neither_torch_nor_plots() -> None:
    code = (
        "import sys, alp.reporting.aggregate; print(sorted({'torch', 'transformers', 'mlflow', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
