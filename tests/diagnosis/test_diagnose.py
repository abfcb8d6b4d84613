"""`alp diagnose`: its figures against a plain-Python reference, three formats, the same bytes twice, and every fault in
one line."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alp import presets
from alp.cli import main
from alp.configuration import compose
from alp.diagnosis import checking, dump_formats
from alp.diagnosis import measures as measures
from alp.diagnosis import tables as tables
from alp.diagnosis.causes import causes
from alp.diagnosis.diagnosed import Diagnosed
from alp.diagnosis.dumps import Dump
from alp.diagnosis.figures import FIGURES
from alp.diagnosis.findings import findings, notes
from alp.policy import Correction, mismatch_diagnostics, ratio_diagnostics
from alp.rendering import plots
from alp.rendering.tables import records
from tests.policy import reference
from tests.reporting.conftest import bytes_below
from tests.reporting.test_figures import assert_legible

Sequence = dict[str, Any]
WANTED = compose.load("diagnose").fields.model_dump()
TOKENS = ("old_log_probs", "rollout_log_probs", "log_probs", "response_mask", "turn_ids")


def simulate(sequences: int = 40, *, seed: int = 0, width: int = 9) -> list[Sequence]:
    """Sequences of differing lengths: a bfloat16 engine, a policy that has moved, outliers, holes in the mask, junk
    under them."""
    rng = np.random.default_rng(seed)
    made = []
    for row in range(sequences):
        tokens = int(rng.integers(2, width))
        old = -rng.gamma(0.5, 1.0, size=tokens)
        engine = torch.tensor(old + 0.02 * rng.normal(size=tokens)).to(torch.bfloat16).double().numpy().clip(max=0)
        current = (old + 0.3 * rng.normal(size=tokens)).clip(max=0)
        old = old - (rng.random(tokens) < 0.1) * rng.exponential(3, size=tokens)
        mask = (rng.random(tokens) < 0.85).astype(int)
        fields = {"old_log_probs": old, "rollout_log_probs": engine, "log_probs": current}
        lists = {
            name: [float(x) if m else math.nan for x, m in zip(values, mask, strict=True)]
            for name, values in fields.items()
        }
        turns = np.sort(rng.integers(0, 3, size=tokens)).tolist()
        rest = {
            "response_mask": mask.tolist(),
            "turn_ids": turns,
            "advantages": float(rng.normal()),
            "step": 1 + row // 15,
        }
        made.append({**lists, **rest})
    for one in made[3:4]:
        one["response_mask"] = [0] * len(one["response_mask"])
    return made


def write(path: Path, sequences: list[Sequence]) -> Path:
    """The same content in the format of the suffix."""
    if path.suffix == ".jsonl":
        lines = [
            {k: [None if x != x else x for x in v] if isinstance(v, list) else v for k, v in one.items()}
            for one in sequences
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(
            pa.table({name: [one[name] for one in sequences] for name in sequences[0]}), path, row_group_size=7
        )
    else:
        longest = max(len(one["old_log_probs"]) for one in sequences)
        arrays = {}
        for name, value in sequences[0].items():
            values = [one[name] for one in sequences]
            filler = 0 if name in ("response_mask", "turn_ids") else math.nan
            arrays[name] = np.array(
                [v + [filler] * (longest - len(v)) for v in values] if isinstance(value, list) else values
            )
        np.savez(path, **arrays)
    return path


def load(path: Path) -> Dump:
    return checking.check(dump_formats.read(path, WANTED))


def run(source: Path, output: Path, *words: str) -> dict[str, Any]:
    assert main(["diagnose", f"input='{source}'", f"output='{output}'", *words]) == 0
    found: dict[str, Any] = json.loads((output / "diagnostics.json").read_text(encoding="utf-8"))
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def matrix(sequences: list[Sequence], field: str) -> list[list[Any]]:
    return [one[field] for one in sequences]


def masks(sequences: list[Sequence]) -> list[list[bool]]:
    return [[bool(m) for m in one["response_mask"]] for one in sequences]


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One folder of results, of ``simulate()``; nobody may write into it."""
    folder = tmp_path_factory.mktemp("diagnosed")
    return folder / "out", run(write(folder / "dump.jsonl", simulate()), folder / "out")


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_definitions(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    sequences, (_, found) = simulate(), diagnosed
    mask = masks(sequences)
    for pair in measures.PAIRS[:3]:
        over, under = matrix(sequences, pair.numerator), matrix(sequences, pair.denominator)
        difference = [[a - b for a, b in zip(p, q, strict=True)] for p, q in zip(over, under, strict=True)]
        expected = reference.mismatch_diagnostics(over, under, mask) | reference.ratio_diagnostics(difference, mask)
        for name, value in expected.items():
            assert found[f"{pair.prefix}{name}"] == pytest.approx(value, rel=1e-9, abs=1e-12), (pair.name, name)
    assert found["count/sequences"] == 40
    assert found["count/valid_sequences"] == sum(map(any, mask))
    assert found["count/valid_tokens"] == sum(map(sum, mask))
    assert found["count/steps"] == 3


def test_without_padding_is_the_same_as_with(tmp_path: Path) -> None:
    """Tokens as a row and sums as a column give every key that padded rows give, new ones too."""
    dump = load(write(tmp_path / "dump.npz", simulate()))
    (block,) = dump.blocks(10**9)
    mask, values = torch.from_numpy(block.mask), {name: torch.from_numpy(one) for name, one in block.fields.items()}
    old, rollout = values["old_log_probs"], values["rollout_log_probs"]
    assert measures.mismatch(dump) == pytest.approx(mismatch_diagnostics(old, rollout, mask))
    assert measures.ratios(dump, measures.MISMATCH) == pytest.approx(ratio_diagnostics(old - rollout, mask))


def test_blocks_hold_every_token_once(tmp_path: Path) -> None:
    dump = load(write(tmp_path / "dump.npz", simulate()))
    for cells in (1, 20, 61, 10**9):
        blocks = list(dump.blocks(cells))
        rows = [row[mask] for block in blocks for row, mask in zip(block.fields["log_probs"], block.mask, strict=True)]
        ends = np.cumsum(dump.lengths)[:-1]
        expected = sorted(np.split(dump.tokens["log_probs"], ends), key=len)  # those of one length in their order
        assert [row.tolist() for row in rows] == [row.tolist() for row in expected]
        assert all(block.mask.size <= max(cells, block.mask.shape[1]) for block in blocks)
        assert sum(len(block.mask) for block in blocks) == len(dump.lengths)


@pytest.mark.parametrize("cells", [25, 10**6])
def test_presets_do_what_the_reference_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(measures, "CELLS", cells)
    sequences = [one for one in simulate() if any(one["response_mask"])]
    dump, mask = load(write(tmp_path / "dump.jsonl", sequences)), masks(sequences)
    old, rollout, current = (matrix(sequences, name) for name in ("old_log_probs", "rollout_log_probs", "log_probs"))
    known = [  # to the reference: the clipped loss with one correction of today's kinds
        method
        for method in presets.known()
        if method.loss_form == "clip"
        and len(method.corrections) <= 1
        and all(one.kind == "none" or (one.weighs and not one.at_update) for one in method.corrections)
    ]
    assert len(known) > 10
    for effect in measures.effects(dump, known):
        method = effect.method
        assert effect.numerator == "log_probs"
        ratio = reference.log_ratio(
            current,
            rollout if method.denominator == "rollout" else old,
            mask,
            method.level,
            matrix(sequences, "turn_ids"),
        )
        correction = method.corrections[0] if method.corrections else Correction()
        fixed = reference.rollout_correction(
            old, rollout, mask, correction.kind, correction.level, correction.upper, correction.lower, correction.veto
        )
        clips = (method.clip_low, method.clip_high, method.dual_clip)
        loss = reference.policy_loss(
            ratio.values, [one["advantages"] for one in sequences], fixed.mask, *clips, fixed.weights
        )
        kept = [
            math.exp(ratio.values[b][t]) for b, row in enumerate(fixed.mask) for t in reference.valid_positions(row)
        ]
        shares = {name.removeprefix("ratio/"): value for name, value in loss.metrics.items()}
        shares |= {name.removeprefix("correction/"): value for name, value in fixed.metrics.items()}
        shares["below"] = sum(r < 1 - method.clip_low for r in kept) / len(kept)
        shares["above"] = sum(r > 1 + method.clip_high for r in kept) / len(kept)
        shares["above_dual"] = sum(r > (method.dual_clip or math.inf) for r in kept) / len(kept)
        assert effect.shares == pytest.approx(shares), method.name
        if correction.kind == "none":
            assert effect.weights is None
            continue
        valid = [(b, reference.valid_positions(row)) for b, row in enumerate(fixed.mask) if any(row)]
        weights = [fixed.weights[b][t] for b, row in valid for t in (row if correction.level == "token" else row[:1])]
        found = effect.weights
        assert found is not None
        assert (found.count, found.lowest, found.highest) == pytest.approx((len(weights), min(weights), max(weights)))
        assert found.total == pytest.approx(sum(weights))
        assert found.effective == pytest.approx(reference.effective_sample_size(weights))


def test_every_preset_has_a_row(tmp_path: Path) -> None:
    """Those that wait for an update say so, and show what the rest of them does."""
    dump = load(write(tmp_path / "dump.jsonl", simulate()))
    effects = {effect.method.name: effect for effect in measures.effects(dump, presets.known())}
    assert effects["apmpo"].missing == "needs rewards"
    assert not any(effect.missing for name, effect in effects.items() if name != "apmpo")
    assert effects["seq_mask_tis"].weights is not None
    assert effects["geo_rs"].weights is None
    assert effects["geo_rs"].shares["masked_sequences"] > 0
    rows = {row[0]: row for row in map(tables._effect_row, effects.values())}
    remark = "without its masks and weights of each update"
    waiting = {name for name, row in rows.items() if remark in str(row[tables.METHOD_COLUMNS.index("remark")])}
    assert waiting == {"bypass_pg_is", "cispo", "dppo_kl", "dppo_tv", "ipo", "kpop", "m2po", "opsm", "topr"}


def test_steps_are_diagnosed_alone(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    out, _ = diagnosed
    rows = rows_of(out / "tables" / "steps.csv")
    assert [(row["step"], row["ratio"]) for row in rows] == [
        (str(s), p) for s in (1, 2, 3) for p in ("old_rollout", "current_rollout")
    ]
    part = [one for one in simulate() if one["step"] == 2]
    old, rollout, mask = matrix(part, "old_log_probs"), matrix(part, "rollout_log_probs"), masks(part)
    expected = reference.mismatch_diagnostics(old, rollout, mask)
    row = rows[2]
    assert int(row["tokens"]) == sum(map(sum, mask))
    assert float(row["kl"]) == pytest.approx(expected["rollout_corr/kl"], rel=1e-5)
    size = "rollout_is_eff_sample_size_seq"
    assert float(row[size]) == pytest.approx(expected[f"rollout_corr/{size}"], rel=1e-5)


def test_steps_need_no_order(tmp_path: Path) -> None:
    sequences = simulate()
    ordered, mixed = (
        load(write(tmp_path / name, some)) for name, some in (("a.jsonl", sequences), ("b.jsonl", sequences[::-1]))
    )
    for one, two in zip(measures.step_figures(ordered), measures.step_figures(mixed), strict=True):
        assert one[0] == two[0]
        assert one[3] == pytest.approx(two[3])


def test_turns_are_read_where_a_method_needs_them(tmp_path: Path) -> None:
    sequences = simulate()
    method = next(preset for preset in presets.known() if preset.name == "token_bypass")
    method = replace(method, level="turn")
    (effect,) = measures.effects(load(write(tmp_path / "a.jsonl", sequences)), [method])
    assert not effect.missing
    assert effect.shares["above"] > 0
    for one in sequences:
        del one["turn_ids"]
    (effect,) = measures.effects(load(write(tmp_path / "b.jsonl", sequences)), [method])
    assert effect.missing == "needs turn_ids"
    assert not effect.shares


def test_stand_ins_are_named(tmp_path: Path) -> None:
    """Noise that was not dumped, and an update that was not: the table says so instead of showing another figure."""
    sequences = simulate(6)
    perturbed = [{**one, "perturbed_log_probs": [x - 0.01 for x in one["log_probs"]]} for one in sequences]
    first = [{name: value for name, value in one.items() if name != "log_probs"} for one in sequences]
    found = {}
    for name, some in (("noise", perturbed), ("plain", sequences), ("first", first)):
        table = tables.methods(measures.effects(load(write(tmp_path / f"{name}.jsonl", some)), presets.known()))
        rows = {row["method"]: row for row in records(table.frame)}
        found[name] = [(rows[method]["numerator"], rows[method]["remark"]) for method in ("seq_alp", "grpo")]
    assert found["noise"] == [("perturbed_log_probs", ""), ("log_probs", "")]
    assert found["plain"] == [("log_probs", "without its noise"), ("log_probs", "")]
    assert found["first"] == [("old_log_probs", "without its noise; first update"), ("old_log_probs", "first update")]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(min_value=1e-6, max_value=100), min_size=1, max_size=30))
def test_effective_sample_size(weights: list[float]) -> None:
    found = measures.Weights()
    for part in (weights[:3], weights[3:]):  # of two blocks, the second may be empty
        found.add(np.array(part))
    assert found.effective == pytest.approx(reference.effective_sample_size(weights), rel=1e-9)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_every_documented_output_is_there(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    out, found = diagnosed
    expected = {"diagnostics.json", "report.html"}
    figures = [artefact.name for artefact in FIGURES]
    expected |= {
        f"tables/{name}.{end}"
        for name in ("causes", "mismatch", "ratio_quantiles", "policies", "methods", "gradients", "steps")
        for end in ("csv", "md", "tex")
    }
    expected |= {f"figures/{name}.{end}" for name in figures for end in ("svg", "png")}
    assert set(bytes_below(out)) == expected
    assert found["input/name"] == "dump.jsonl"
    assert len(found["input/sha256"]) == 64
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/svg+xml;base64,') == len(figures)
    assert page.count("<table>") == 7
    assert "http://" not in page
    assert "https://" not in page
    docs = (Path(__file__).resolve().parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")
    for name in (*figures, *WANTED):
        assert name in docs, name


@pytest.mark.long
def test_three_formats_and_two_runs_give_the_same_bytes(diagnosed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = diagnosed
    before = bytes_below(folder)
    for suffix in (".jsonl", ".parquet", ".npz"):
        out = tmp_path / suffix[1:]
        run(write(tmp_path / f"dump{suffix}", simulate()), out)
        after = bytes_below(out)
        if suffix == ".jsonl":
            assert after == before
        plain = [json.loads(one["diagnostics.json"]) for one in (before, after)]
        assert plain[0].pop("input/name") == "dump.jsonl"
        assert plain[1].pop("input/name") == f"dump{suffix}"
        assert len({one.pop("input/sha256") for one in plain}) == (1 if suffix == ".jsonl" else 2)
        assert plain[0] == plain[1]
        del after["diagnostics.json"], after["report.html"]  # both name the input
        assert after == {name: content for name, content in before.items() if name in after}


def test_a_batch_per_line_is_the_same_as_a_sequence_per_line(tmp_path: Path) -> None:
    sequences = simulate()
    batches = [
        {name: [one[name] for one in part] for name in part[0]}
        for part in (sequences[:15], sequences[15:30], sequences[30:])
    ]
    for batch in batches:
        assert len(set(batch["step"])) == 1
        batch["step"] = batch["step"][0]  # one step for the whole batch is how trainers log
        batch["advantages"] = [[a] * len(row) for a, row in zip(batch["advantages"], batch["log_probs"], strict=True)]
    (tmp_path / "batches.jsonl").write_text("".join(json.dumps(batch) + "\n" for batch in batches))
    one, two = load(write(tmp_path / "single.jsonl", sequences)), load(tmp_path / "batches.jsonl")
    assert one.lengths.tolist() == two.lengths.tolist()
    assert one.steps is not None
    assert two.steps is not None
    assert one.steps.tolist() == two.steps.tolist()
    for name, values in one.tokens.items():
        assert values.tolist() == two.tokens[name].tolist(), name


def test_dumps_of_verl_and_trl(tmp_path: Path) -> None:
    """Padded tensors under the names of two trainers, float32, prompts' padding left at zero; TRL's by a mapping."""
    rng = np.random.default_rng(4)
    old = -rng.gamma(0.5, 1.0, size=(8, 12)).astype(np.float32)
    rollout = torch.from_numpy(old + np.float32(0.01) * rng.normal(size=old.shape).astype(np.float32)).clamp(max=0)
    mask = (np.arange(12) < rng.integers(3, 13, size=(8, 1))).astype(np.int64)
    advantages = np.repeat(rng.normal(size=(8, 1)), 12, axis=1).astype(np.float32) * mask
    verl = {
        "old_log_probs": old * mask,
        "rollout_log_probs": rollout.numpy() * mask,
        "response_mask": mask,
        "advantages": advantages,
    }
    np.savez(tmp_path / "verl.npz", **verl, token_level_scores=np.zeros((8, 12)))
    trl = {
        "old_per_token_logps": old,
        "sampling_per_token_logps": rollout.numpy(),
        "completion_mask": mask,
        "advantages": advantages[:, 0],
    }
    np.savez(tmp_path / "trl.npz", **trl)
    names = {
        "old_log_probs": "old_per_token_logps",
        "rollout_log_probs": "sampling_per_token_logps",
        "response_mask": "completion_mask",
    }
    first = run(tmp_path / "verl.npz", tmp_path / "verl")
    second = run(tmp_path / "trl.npz", tmp_path / "trl", *(f"fields.{field}={name}" for field, name in names.items()))
    assert {k: v for k, v in first.items() if not k.startswith("input/")} == {
        k: v for k, v in second.items() if not k.startswith("input/")
    }
    expected = reference.mismatch_diagnostics(
        old.astype(float).tolist(), rollout.double().tolist(), mask.astype(bool).tolist()
    )
    assert first["rollout_corr/k3_kl"] == pytest.approx(expected["rollout_corr/k3_kl"], rel=1e-9)


def test_another_dump_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    sequences = simulate(8)
    run(write(tmp_path / "a.jsonl", sequences), tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "steps.svg").is_file()
    for one in sequences:
        del one["step"]
    run(write(tmp_path / "a.jsonl", sequences), tmp_path / "out")
    assert not [name for name in bytes_below(tmp_path / "out") if "steps" in name]


def test_output_is_named_after_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.jsonl", simulate(5))
    assert main(["diagnose", "input=mine.jsonl"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "results/diagnose/mine"
    assert (tmp_path / "results" / "diagnose" / "mine" / "report.html").is_file()
    assert len(shown) < 10


def test_summary_names_the_furthest_sequence_and_what_is_odd(tmp_path: Path) -> None:
    sequences = simulate(6)
    for one in sequences:
        one["rollout_log_probs"] = list(one["old_log_probs"])
        one["advantage"] = one.pop("advantages")
    dump = load(write(tmp_path / "equal.jsonl", sequences))
    found = notes(dump, WANTED, measures.diagnostics(dump))
    assert found[0] == "old_log_probs and rollout_log_probs are equal on every token: was one tensor dumped twice?"
    assert found[1:] == ["not read: field 'advantage'; did you mean 'advantages'?"]
    valid = sequences[4]["response_mask"].index(1)
    sequences[4]["old_log_probs"][valid] = sequences[4]["rollout_log_probs"][valid] - 12.5
    dump = load(write(tmp_path / "one.jsonl", sequences))
    lines = findings(dump, measures.diagnostics(dump), causes(dump))
    assert lines[-1].startswith("furthest sequence: index 4 (from 0), line 5, Σ log π_old / μ = −12.5 over")
    assert lines[0].endswith("; 1 sequences have no valid token")


def test_a_field_s_name_commands_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sequences = [{**one, "log_prob\x1b[31ms": one["log_probs"]} for one in simulate(4)]
    for one in sequences:
        del one["log_probs"]
    run(write(tmp_path / "dump.jsonl", sequences), tmp_path / "out")
    shown = capsys.readouterr().out
    assert r"not read: field 'log_prob\x1b[31ms'; did you mean 'log_probs'?" in shown
    assert "\x1b" not in shown + (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_divergence_beyond_the_exponential_is_its_tangent(tmp_path: Path) -> None:
    one = {"old_log_probs": [-0.1, -1.0], "rollout_log_probs": [-900.0, -1.0], "response_mask": [1, 1]}
    found = run(write(tmp_path / "far.jsonl", [one]), tmp_path / "out")
    tangent = math.expm1(20) - 20 + math.expm1(20) * (899.9 - 20)
    assert found["rollout_corr/k3_kl"] == pytest.approx(tangent / 2)
    assert all(value is not None for value in found.values())
    assert found["rollout_corr/kl"] == pytest.approx(-899.9 / 2)


@pytest.mark.parametrize("sequences", [40, 1])
def test_text_is_legible(tmp_path: Path, sequences: int) -> None:
    dump = load(write(tmp_path / "dump.jsonl", simulate(sequences, width=40)))
    diagnosed = Diagnosed.of(dump)
    for artefact in FIGURES:
        with plots.style():
            assert_legible(artefact.make(diagnosed))


# ---- faults ----------------------------------------------------------------------------------------------------------

GOOD = {"old_log_probs": [-0.5, -1.0], "rollout_log_probs": [-0.5, -1.1], "response_mask": [1, 1]}
FAULTS = {
    "a probability": (
        [GOOD, GOOD | {"old_log_probs": [0.5, 0.2]}],
        "line 2, old_log_probs, token 0 (from 0): 0.5 is positive; a log",
    ),
    "probabilities": ([GOOD | {"rollout_log_probs": [0.5, 0.2]}], "like probabilities: dump their logarithms"),
    "negated": ([GOOD | {"rollout_log_probs": [0.5, 2.2]}], "as if the sign were changed"),
    "null": (
        [GOOD, GOOD | {"old_log_probs": [-0.5, None]}],
        "line 2, old_log_probs, token 1 (from 0): NaN or null on a valid token",
    ),
    "infinite": (
        [GOOD | {"rollout_log_probs": [-math.inf, -1]}],
        "line 1, rollout_log_probs, token 0 (from 0): -inf on a valid token",
    ),
    "mask": ([GOOD | {"response_mask": [1, 0.5]}], "line 1, response_mask, token 1 (from 0): 0.5 is neither 0 nor 1"),
    "null mask": ([GOOD | {"response_mask": [1, None]}], "NaN or null is neither 0 nor 1"),
    "lengths": (
        [GOOD, GOOD | {"response_mask": [1, 1, 1]}],
        "line 2: old_log_probs has 2 tokens, response_mask 3: one value per token",
    ),
    "nothing valid": (
        [GOOD | {"response_mask": [0, 0]}],
        "no valid token: response_mask is 0 everywhere in 1 sequences",
    ),
    "text": ([GOOD | {"old_log_probs": [-1, "x"]}], 'line 1, old_log_probs: numbers expected, got "x"'),
    "nested": ([GOOD | {"rollout_log_probs": [[-1], [-1]]}], "line 1, rollout_log_probs: numbers expected, got [-1]"),
    "no list": ([GOOD | {"old_log_probs": -1}], "line 1, old_log_probs: a list of numbers expected, got -1"),
    "no object": ([[1, 2]], "line 1 holds no JSON object"),
    "lost field": ([GOOD | {"log_probs": [-1, -1]}, GOOD], "line 2: no field 'log_probs', which line 1 has"),
    "late field": ([GOOD, GOOD | {"step": 3}], "line 1: no field 'step', which line 2 has"),
    "half a step": ([GOOD | {"step": 1.5}], "line 1, step: 1.5 is no whole number"),
    "steps": ([GOOD | {"step": [1, 2]}], "line 1, step: one number per sequence expected, got a list"),
    "turn": ([GOOD | {"turn_ids": [-1, 0]}], "line 1, turn_ids, token 0 (from 0): -1 is no turn"),
    "advantage": ([GOOD | {"advantages": None}], "line 1, advantages, token 0 (from 0): NaN or null on a valid token"),
    "batch": (
        [{k: [v, v] for k, v in GOOD.items()} | {"step": [1]}],
        "line 1, step: 1 entries for a batch of 2 sequences",
    ),
    "in a batch": (
        [{k: [v, v] for k, v in (GOOD | {"old_log_probs": [-1.0, None]}).items()}],
        "line 1, sequence 0 of its batch (from 0), old_log_probs, token 1 (from 0): NaN or null",
    ),
}


def fails(capsys: pytest.CaptureFixture[str], source: Path, *words: str) -> str:
    """The one line that the fault gives; nothing may be written."""
    out = source.parent / "out"
    assert main(["diagnose", f"input='{source}'", f"output='{out}'", *words]) == 2
    captured = capsys.readouterr()
    assert not out.exists()
    assert not captured.out
    assert "Traceback" not in captured.err
    (line,) = [line for line in captured.err.splitlines() if line.startswith("alp: error: diagnose: ")]
    return line


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, message = FAULTS[name]
    (tmp_path / "dump.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert message in fails(capsys, tmp_path / "dump.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".npz"])
@pytest.mark.parametrize(
    ("field", "hint"), [("rollout_log_prob", "rollout_log_probs"), ("response_maks", "response_mask")]
)
def test_a_misspelt_field_is_found_in_every_format(
    suffix: str, field: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {field if name == hint else name: value for name, value in GOOD.items()}
    message = fails(capsys, write(tmp_path / f"dump{suffix}", [one]))
    assert f"no field '{hint}' (or say fields.{hint}=<its name there>); did you mean '{field}'?" in message


def test_a_mapped_field_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "dump.npz", [GOOD])
    assert "no field 'logps' (asked for by fields.log_probs); choose from" in fails(
        capsys, source, "fields.log_probs=logps"
    )
    assert main(["diagnose", "fields.log_prob=x"]) == 2
    assert "unknown key 'fields.log_prob'; did you mean 'fields.log_probs'?" in capsys.readouterr().err


def test_faults_in_rows_name_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = GOOD | {"old_log_probs": [-0.5, math.nan]}
    for suffix in (".parquet", ".npz"):
        message = fails(capsys, write(tmp_path / f"dump{suffix}", [GOOD, bad]))
        assert f"dump{suffix}: row 1 (from 0), old_log_probs, token 1 (from 0): NaN or null on a valid token" in message


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "dump.jsonl", [GOOD])
    assert "no file" in (message := fails(capsys, tmp_path / "dmp.jsonl"))
    assert "did you mean 'dump.jsonl'?" in message
    assert "no folder" in fails(capsys, tmp_path / "nowhere" / "dump.npz")
    assert "unknown suffix '.jsnl' of dump.jsnl; did you mean '.jsonl'?" in fails(capsys, tmp_path / "dump.jsnl")
    assert "unknown suffix '.h5' of dump.h5; choose from .json, .jsonl, .npz" in fails(capsys, tmp_path / "dump.h5")
    for suffix in (".jsonl", ".npz", ".parquet"):
        (tmp_path / f"empty{suffix}").touch()
        assert "is empty" in fails(capsys, tmp_path / f"empty{suffix}")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    assert "holds no sequence" in fails(capsys, tmp_path / "blank.jsonl")
    (tmp_path / "folder.npz").mkdir()
    assert "no dump in this folder" in fails(capsys, tmp_path / "folder.npz")
    assert main(["diagnose"]) == 2
    assert "diagnose: no input given: input=<a file or a folder of them>, .jsonl" in capsys.readouterr().err
    assert main(["diagnose", f"input='{tmp_path}/dump.jsonl'", f"output='{tmp_path}/dump.jsonl/x'"]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err


def test_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps(GOOD)
    (tmp_path / "cut.jsonl").write_text(f"{line}\n{line[:40]}")
    assert "cut.jsonl: line 2 is no valid JSON at column 33; it ends too soon: was it cut off?" in fails(
        capsys, tmp_path / "cut.jsonl"
    )
    (tmp_path / "bytes.jsonl").write_bytes(b'{"a": "\xff"}\n')
    assert "line 1 is no valid JSON" in fails(capsys, tmp_path / "bytes.jsonl")
    for suffix in (".npz", ".parquet"):
        whole = write(tmp_path / f"whole{suffix}", [GOOD] * 50).read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(whole[: len(whole) // 2])
        message = fails(capsys, tmp_path / f"cut{suffix}")
        assert "is no NPZ file (or was cut off)" in message or "as Parquet: " in message
        (tmp_path / f"text{suffix}").write_text(line)
        fails(capsys, tmp_path / f"text{suffix}")


def test_arrays_that_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {name: np.array([values]) for name, values in GOOD.items()}
    cases = {
        "holds Python objects, which are not read": np.array([[-1.0, {}]], dtype=object),
        "shape (sequences, tokens) expected, got (2,)": np.array([-1.0, -1.0]),
        "numbers expected, got dtype <U1": np.array([["a", "b"]]),
        "old_log_probs has 1 sequences": np.zeros((3, 2)),
        "old_log_probs has 2 tokens, rollout_log_probs 3": np.zeros((1, 3)),
    }
    for message, array in cases.items():
        np.savez(tmp_path / "dump.npz", **(good | {"rollout_log_probs": array}))
        found = fails(capsys, tmp_path / "dump.npz")
        assert message in found or ("sequences" in message and "has 3 sequences" in found), found
    np.savez(tmp_path / "dump.npz", **good, step=np.array([1, 2]))
    assert "step has 2 sequences, old_log_probs 1" in fails(capsys, tmp_path / "dump.npz")


def test_columns_that_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "column old_log_probs: a list of numbers per row expected, the file has double": [-1.0],
        "column old_log_probs: a list of numbers per row expected, the file has list<": [["a", "b"]],
        "row 0 (from 0), old_log_probs: null where a list is expected": pa.array([None], type=pa.list_(pa.float32())),
    }
    for message, values in cases.items():
        table = pa.table({**{name: [one] for name, one in GOOD.items()}, "old_log_probs": values})
        pq.write_table(table, tmp_path / "dump.parquet")
        assert message in fails(capsys, tmp_path / "dump.parquet")
