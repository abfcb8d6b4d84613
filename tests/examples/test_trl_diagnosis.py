"""A run of TRL with our callback: what it logs is what the batch says, and the dump is diagnosed from end to end."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alp.cli import main
from alp.diagnosis import readers
from alp.diagnosis.dumps import FIELDS
from alp.models import load_model
from tests.parity.cases import random_case
from tests.parity.conftest import trl_side  # noqa: F401  (a fixture)
from tests.parity.trl_side import FIRST_ROW_TOKEN, TrlSide

STEPS, TOKENS = 2, 6


def _sampled(trainer: Any, rows: int, seed: int) -> dict[str, list[Any]]:
    """Random tokens with the log-probs of the model's weights, each off by a tenth: a poor engine's."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_ROW_TOKEN, 25, (rows, 1 + TOKENS), generator=random)
    engine = load_model(Path(trainer.model.name_or_path), torch.device("cpu"))
    engine.load_state_dict(trainer.model.state_dict())
    with torch.no_grad():
        for parameter in engine.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=random))
        logits = engine(input_ids=ids).logits[:, :-1].float()
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return {
        "prompt_ids": ids[:, :1].tolist(),
        "completion_ids": ids[:, 1:].tolist(),
        "logprobs": log_probs.tolist(),
        "env_mask": [[1] * TOKENS] * rows,
    }


@pytest.mark.slow
@pytest.mark.xdist_group("trl")
def test_a_run_of_trl(trl_side: TrlSide, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    from examples.trl_diagnosis import DiagnosisCallback

    case = random_case(5, rows=8, samples=4)
    handed: list[list[list[float]]] = []

    def rollout(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        made = _sampled(trainer, case.rows, seed=len(handed))
        handed.append(made["logprobs"])
        return made

    trainer = trl_side.trainer(
        case,
        rollout,
        correct=True,
        per_device_train_batch_size=case.rows // 2,
        gradient_accumulation_steps=2,
        num_iterations=1,
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        log_completions=True,
    )
    trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)  # our engine copies the weights itself
    trainer.add_callback(DiagnosisCallback(trainer, folder=tmp_path / "dumps"))
    trainer.train()
    logged = [line for line in trainer.state.log_history if "diagnosis/rollout_corr/k3_kl" in line]
    assert [line["step"] for line in logged] == [1, 2]
    assert {"diagnosis/ratio/token/log_q999", "diagnosis/ratio/sequence/log_q50"} <= set(logged[0])

    assert main(["diagnose", f"input='{tmp_path}/dumps'", f"output='{tmp_path}/out'"]) == 0
    said = capsys.readouterr().out
    assert f"read as TRL generation batch, {STEPS} steps: 16 sequences" in said
    first = readers.read(sorted((tmp_path / "dumps").iterdir())[0], {field: field for field in FIELDS}).raw
    assert sorted(first.tokens["rollout_log_probs"]) == pytest.approx(sorted(itertools.chain(*handed[0])), abs=1e-6)
    gap = first.tokens["old_log_probs"] - first.tokens["rollout_log_probs"]
    assert 1e-4 < np.abs(gap).max() < 1, "the engine was to be a little off"
    assert logged[0]["diagnosis/rollout_corr/k3_kl"] == pytest.approx(np.mean(np.expm1(gap) - gap), rel=1e-4)
    steps = (tmp_path / "out" / "tables" / "steps.csv").read_text(encoding="utf-8").splitlines()
    assert len(steps) == 1 + STEPS

    # what TRL writes by itself: texts
    folder = Path(trainer.args.output_dir) / "completions"
    assert main(["diagnose", f"input='{folder}'"]) == 2
    assert "read as TRL completions: no log-probs in it; add the callback" in capsys.readouterr().err


def test_a_batch_without_the_engine_says_so_once() -> None:
    """TRL with its own generation has no sampling log-probs."""
    from transformers import TrainerCallback

    from examples.trl_diagnosis import DiagnosisCallback

    pieces = [{"completion_mask": torch.ones(2, 3), "advantages": torch.ones(2)}]
    callback = DiagnosisCallback(SimpleNamespace(_buffered_inputs=pieces))
    assert isinstance(callback, TrainerCallback)
    with pytest.warns(UserWarning, match="no log-probs of the engine"):
        callback.on_step_end(None, None, None)
    callback.on_step_end(None, None, None)  # the same batch: no second warning (an error in this suite)
