"""``alp diagnose … model.path=``: log-probs of the training code for a dump that has the engine's alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from alp.cli import main
from alp.models import load_model
from alp.training.forward import sequence_log_probs
from tests.diagnosis import native

ROWS, PROMPT, TOKENS = 64, 3, 10


def _sequences(model: Path) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids, and the model's log-probs of all but the first."""
    random = np.random.default_rng(0)
    ids = random.integers(2, 12, size=(ROWS, PROMPT + TOKENS)).tolist()
    with torch.no_grad():
        return ids, sequence_log_probs(load_model(model, torch.device("cpu")).eval(), ids, 0.7)


def _open_instruct(folder: Path, ids: list[list[int]], log_probs: list[list[float]]) -> Path:
    lines = [
        {
            "step": 1,
            "prompt_tokens": row[:PROMPT],
            "response_tokens": row[PROMPT:],
            "finish_reason": "stop",
            "logprobs": values[PROMPT - 1 :],
            "advantage": 1.0,
        }
        for row, values in zip(ids, log_probs, strict=True)
    ]
    path = folder / "run_rollouts_000001.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _slime(folder: Path, ids: list[list[int]], log_probs: list[list[float]]) -> Path:
    samples = [
        {"tokens": row, "response_length": TOKENS, "rollout_log_probs": values[PROMPT - 1 :]}
        for row, values in zip(ids, log_probs, strict=True)
    ]
    torch.save({"rollout_id": 1, "samples": samples}, folder / "rollout_1.pt")
    return folder / "rollout_1.pt"


@pytest.mark.parametrize("write", [_open_instruct, _slime])
def test_token_ids_are_scored(
    write: object, base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine that agrees with the model at temperature 0.7, scored at it and at 1."""
    ids, log_probs = _sequences(base_model)
    path = write(tmp_path, ids, log_probs)  # type: ignore[operator]
    words = [f"input='{path}'", f"output='{tmp_path}/out'", f"model.path='{base_model}'"]
    assert main(["diagnose", *words, "model.temperature=0.7"]) == 0
    assert "old_log_probs are the model's of model.path, in float32 at T = 0.7" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "diagnostics.json").read_text(encoding="utf-8"))
    assert record["count/valid_tokens"] == ROWS * TOKENS
    assert record["rollout_corr/k3_kl"] < 1e-10
    assert "input/model_sha256" in record
    assert main(["diagnose", *words]) == 0
    record = json.loads((tmp_path / "out" / "diagnostics.json").read_text(encoding="utf-8"))
    assert record["rollout_corr/k3_kl"] > 1e-3
    assert "likely cause: " in capsys.readouterr().out


def test_what_cannot_be_scored_is_one_line(
    base_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids, log_probs = _sequences(base_model)
    path = _slime(tmp_path, [[*row[:-1], 10_000] for row in ids], log_probs)
    cases = {
        path: "the dump has token 10000, the model knows",
        native.slime_train(tmp_path, 2): "the dump has log_probs already: nothing to score again",
        native.miles_columns(tmp_path, 3): "model.path: no token ids in it",
    }
    for source, message in cases.items():
        assert main(["diagnose", f"input='{source}'", f"output='{tmp_path}/o'", f"model.path='{base_model}'"]) == 2
        assert message in capsys.readouterr().err
    assert main(["diagnose", f"input='{path}'", "model.path=nowhere"]) == 2
    assert "model.path: no model in nowhere" in capsys.readouterr().err
