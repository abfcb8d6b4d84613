"""What the end of a job needs is tried at its start, and a folder that cannot be written again is mended or refused
there."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alp import models
from alp.errors import UserError
from alp.training.loop import train

CPU = torch.device("cpu")
INHERITED: dict[str, dict[str, Any]] = {  # of published generation_config.json files
    "temperature without sampling": {"temperature": 0.6},
    "top_p without sampling": {"top_p": 0.9, "do_sample": False},
    "a pad of -1": {"pad_token_id": -1},
    "a pad of -1 and ends": {"pad_token_id": -1, "eos_token_id": [1, 5], "temperature": 0.1},
    "beams of one": {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
    "a penalty": {"penalty_alpha": 0.6},
}


@pytest.fixture
def folder(base_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(base_model, tmp_path / "model")
    return tmp_path / "model"


def _inherit(folder: Path, **values: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize("name", INHERITED)
def test_a_generation_config_that_cannot_be_saved_is_mended_at_load(
    folder: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    _inherit(folder, **INHERITED[name])
    model, tokenizer = models.load_model(folder, CPU), models.load_tokenizer(folder)
    said = [record.getMessage() for record in caplog.records if "could not be saved" in record.getMessage()]
    models.check_saving(model, tokenizer, folder)
    models.save_model(model, tokenizer, tmp_path / "saved")
    kept = json.loads((tmp_path / "saved" / "generation_config.json").read_text(encoding="utf-8"))
    assert kept["eos_token_id"] == INHERITED[name].get("eos_token_id", 1)
    assert len(said) == (name != "a penalty"), "that one can be written again as it is"
    again = models.load_model(tmp_path / "saved", CPU)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_a_whole_job_ends_with_such_a_folder(folder: Path, train_config: Callable[..., Any]) -> None:
    _inherit(folder, **INHERITED["a pad of -1 and ends"])
    run = train(train_config(f"model.path='{folder}'", "trainer.steps=1"))
    assert (run / "model" / "model.safetensors").exists()
    active = json.loads((run / "active.json").read_text(encoding="utf-8"))
    assert active["end_tokens"] == {"tokenizer": [1], "config.json": [1], "generation_config.json": [1, 5]}
    assert active["decoding"] == "cache"


def test_what_cannot_be_saved_is_refused_before_the_first_step(
    folder: Path, train_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> Any:
        tokenizer = models.load_tokenizer(path)
        tokenizer.init_kwargs["made"] = object()  # nothing that JSON can hold
        return tokenizer

    model, tokenizer = models.load_model(folder, CPU), load(folder)
    with pytest.raises(UserError, match=r"^model.path: what .* holds could not be saved again: TypeError"):
        models.check_saving(model, tokenizer, folder)


def test_problems_with_long_prompts_are_left_out_and_counted(
    train_config: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = [
        "task.digits=2",
        "task.train=40",
        "task.validation=60",
        "rollout.max_new_tokens=24",
        "validation.max_new_tokens=24",
    ]
    run = train(train_config(*words, "trainer.steps=1", "model.max_prompt_tokens=5", folder="short"))
    assert (run / "model").exists()
    said = [record.getMessage() for record in caplog.records if "are left out" in record.getMessage()]
    assert any(line.startswith("train: ") and "prompts of over 5 tokens" in line for line in said), said
    with pytest.raises(UserError, match=r"^model.max_prompt_tokens: no problem of train has a prompt of at most 1 tok"):
        train(train_config(*words, "model.max_prompt_tokens=1", folder="none"))
