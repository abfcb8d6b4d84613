"""What real files hold: fillers, masks in words, positive log-probs, shifts, JSON over several lines. Named, not
guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from alp.configuration import compose
from alp.diagnosis import checking, readers
from alp.diagnosis.causes import causes
from alp.diagnosis.dumps import Dump
from alp.errors import UserError

WANTED = compose.load("diagnose").fields.model_dump()
TOKENS = 40


def made(sequences: int = 10, seed: int = 0) -> dict[str, Any]:
    """A batch of log-probs, π_old near μ; (sequences, TOKENS)."""
    rng = np.random.default_rng(seed)
    old = -rng.gamma(0.5, 1.0, size=(sequences, TOKENS)) - 0.2
    rollout = old + 0.01 * rng.normal(size=old.shape)
    return {"old_log_probs": old, "rollout_log_probs": rollout, "response_mask": np.ones(old.shape, dtype=int)}


def lines(path: Path, batch: dict[str, Any]) -> Path:
    """One object per sequence; NaN is null, infinities are what Python makes of them."""
    rows = [
        {
            name: [None if isinstance(x, float) and math.isnan(x) else x for x in np.asarray(values[row]).tolist()]
            for name, values in batch.items()
        }
        for row in range(len(batch["response_mask"]))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path) -> Dump:
    return checking.check(readers.read(path, WANTED).raw)


@pytest.mark.parametrize(
    ("value", "said"), [(math.nan, "NaN or null"), (-math.inf, "-inf"), (-9999.0, "-9999"), (-100.0, "-100")]
)
def test_fillers_are_named_with_share_and_place(tmp_path: Path, value: float, said: str) -> None:
    batch = made()
    batch["rollout_log_probs"][3, 5:9] = value
    dump = load(lines(tmp_path / "dump.jsonl", batch))
    assert dump.notes == (
        f"rollout_log_probs: {said} on 4 of 400 valid tokens (1.00 %), first at line 4, rollout_log_probs, token 5"
        " (from 0): no log-prob, these tokens are set aside",
    )
    assert dump.lengths.tolist() == [40, 40, 40, 36, *[40] * 6]
    assert np.abs(dump.difference("old_log_probs", "rollout_log_probs")).max() < 0.1


def test_too_many_fillers_are_refused(tmp_path: Path) -> None:
    batch = made()
    batch["old_log_probs"][:, :5] = -9999.0
    with pytest.raises(UserError, match=r"line 1, old_log_probs, token 0 .*-9999 on a valid token .* 12.50 % of them"):
        load(lines(tmp_path / "dump.jsonl", batch))


def test_a_policy_of_nothing_but_null_is_left_out(tmp_path: Path) -> None:
    batch = made()
    batch["rollout_log_probs"][:] = math.nan
    dump = load(lines(tmp_path / "dump.jsonl", batch))
    assert set(dump.tokens) == {"old_log_probs"}
    assert dump.notes == ("rollout_log_probs is null, NaN or infinite on every valid token: left out",)


def test_zeros_in_the_place_of_log_probs(tmp_path: Path) -> None:
    batch = made()
    batch["rollout_log_probs"][7, 30:] = 0.0
    (note,) = load(lines(tmp_path / "dump.jsonl", batch)).notes
    assert note.startswith(
        "rollout_log_probs: 0.0 on 10 of 400 valid tokens (2.50 %) where old_log_probs is below -0.1"
    )
    assert "line 8, rollout_log_probs, token 30" in note


def test_mixed_precision_is_a_diagnosis(tmp_path: Path) -> None:
    """A float32 logit minus a bfloat16 log-sum-exp, of real logits: above 0 where the model is sure."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 50, generator=random)
    logits[:, 0] += torch.where(torch.rand(400, generator=random) < 0.3, 25.0, 5.0)
    exact = logits.double().log_softmax(-1)[:, 0]
    mixed = (logits[:, 0] - logits.logsumexp(-1).bfloat16().float()).double()
    assert 0.01 < float(mixed.max()) < checking.MIXED
    batch = {
        "old_log_probs": exact.view(10, 40).numpy(),
        "rollout_log_probs": mixed.view(10, 40).numpy(),
        "response_mask": np.ones((10, 40), dtype=int),
    }
    (note,) = load(lines(tmp_path / "dump.jsonl", batch)).notes
    assert note.startswith("rollout_log_probs: up to +0.")
    assert "take the log-softmax in float32" in note
    batch["rollout_log_probs"] = -batch["rollout_log_probs"]
    with pytest.raises(UserError, match="is positive"):
        load(lines(tmp_path / "dump.jsonl", batch))


@pytest.mark.parametrize("columns", ["rollout_log_probs", "old_log_probs"])
def test_a_shift_by_one_token(tmp_path: Path, columns: str) -> None:
    batch = made()
    assert causes(load(lines(tmp_path / "right.jsonl", batch)))[0].name == "rounding"
    batch[columns] = np.roll(batch[columns], 1, axis=1)
    cause = causes(load(lines(tmp_path / "dump.jsonl", batch)))[0]
    way = "later" if columns == "rollout_log_probs" else "earlier"
    assert cause.name == "off by one token"
    assert cause.evidence.startswith(f"in 100 % of the sequences μ stands one token {way} than π_old")


def test_transposed_arrays(tmp_path: Path) -> None:
    batch = made()
    batch["response_mask"] = (np.arange(TOKENS) < np.array([[40, 3, 18, 25, 7, 40, 12, 31, 5, 22]]).T).astype(int)
    np.savez(tmp_path / "right.npz", **batch)
    assert not load(tmp_path / "right.npz").notes
    np.savez(tmp_path / "turned.npz", **{name: values.T for name, values in batch.items()})
    assert any("were the arrays transposed?" in note for note in load(tmp_path / "turned.npz").notes)


MASKS: dict[str, Callable[[int], Any]] = {
    "booleans": bool,
    "words": lambda value: "true" if value else "False",
    "figures": str,
    "floats": float,
}


@pytest.mark.parametrize("spelling", [*MASKS, "one text"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_masks_in_any_spelling(tmp_path: Path, spelling: str, suffix: str) -> None:
    batch = made()
    batch["response_mask"][:, ::3] = 0
    rows = batch["response_mask"].tolist()
    if spelling == "one text":
        if suffix == ".parquet":
            pytest.skip("a text per row of a Parquet file is no list")
        spelled: list[Any] = ["".join(map(str, row)) for row in rows]
    else:
        spelled = [[MASKS[spelling](value) for value in row] for row in rows]
    path = tmp_path / f"dump{suffix}"
    columns = {name: values.tolist() for name, values in batch.items()} | {"response_mask": spelled}
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        path.write_text(
            "".join(
                json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)
            )
        )
    assert load(path).lengths.tolist() == [26] * 10


# ---- JSON over several lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["objects", "array", "compact array"])
def test_json_over_several_lines_is_read(tmp_path: Path, form: str) -> None:
    batch = made(3)
    rows = [json.loads(line) for line in lines(tmp_path / "right.jsonl", batch).read_text().splitlines()]
    text = "\n".join(json.dumps(row, indent=2) for row in rows) if form == "objects" else json.dumps(rows, indent=2)
    (tmp_path / "dump.jsonl").write_text(json.dumps(rows) if form == "compact array" else text)
    pretty, plain = load(tmp_path / "dump.jsonl"), load(tmp_path / "right.jsonl")
    assert {name: values.tolist() for name, values in pretty.tokens.items()} == {
        name: values.tolist() for name, values in plain.tokens.items()
    }


def test_cut_files_are_told_from_pretty_ones(tmp_path: Path) -> None:
    batch, path = made(3), tmp_path / "dump.jsonl"
    whole = lines(path, batch).read_text()
    pretty = "\n".join(json.dumps(json.loads(line), indent=1) for line in whole.splitlines())
    cases = {
        whole[:-50]: r"line 3 is no valid JSON .* was it cut off\?; the lines before are whole: head -n 2 keeps them",
        pretty[:-50]: r"line 257 begins an object over several lines, and the file ends inside of it: was it cut off\?",
        pretty.replace("]", "}", 1): r"line 1 is no valid JSON",
    }
    for text, message in cases.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load(path)
