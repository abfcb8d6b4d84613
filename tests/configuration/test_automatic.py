"""``rollout=auto``: what the machine has decides, and the composed configuration says which it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from alp.configuration import automatic, compose


@pytest.mark.parametrize(("driver", "installed", "engine"), [(1, 1, "vllm"), (1, 0, "hf"), (0, 1, "hf"), (0, 0, "hf")])
def test_vllm_is_taken_on_a_gpu_where_it_is_installed(
    driver: int, installed: int, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "version"
    if driver:
        file.touch()
    monkeypatch.setattr(automatic, "_DRIVER", file)
    monkeypatch.setattr(automatic, "find_spec", lambda name: object() if installed else None)
    config = compose.load("train", ["rollout=auto", "validation=auto", "rollout.max_new_tokens=23"])
    assert (config.rollout.engine, config.validation.engine, config.rollout.max_new_tokens) == (engine, engine, 23)
    sleeping = ["rollout.sleep_level=2", "validation.sleep_level=2"] if engine == "vllm" else []
    said = [f"rollout={engine}", f"validation={engine}", "rollout.max_new_tokens=23", *sleeping]
    assert compose.identity(config) == compose.identity(compose.load("train", said))
    evaluation = compose.load("evaluate", ["rollout=auto"]).rollout
    assert (evaluation.engine, getattr(evaluation, "sleep_level", 0)) == (engine, 0)
    if engine == "vllm":
        assert compose.load("train", ["rollout=auto", "rollout.sleep_level=1"]).rollout.sleep_level == 1


def test_a_model_file_may_leave_out_what_has_a_default(tmp_path: Path) -> None:
    """A user's file of a version that had not these keys, and an override of one of them."""
    import shutil

    shutil.copytree(compose.CONFIGS, tmp_path / "configs")
    file = tmp_path / "configs" / "model" / "mine.yaml"
    text = (tmp_path / "configs" / "model" / "arithmetic_tiny.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(("max_prompt_tokens:", "lora:"))]
    file.write_text("\n".join(lines).replace("name: arithmetic_tiny", "name: mine"), encoding="utf-8")
    before = compose.CONFIGS
    compose.read_from(tmp_path / "configs")
    try:
        assert compose.load("train", ["model=mine"]).model.lora is None
        chosen = compose.load("train", ["model=mine", "model.lora={rank: 2, alpha: 4}", "model.max_prompt_tokens=7"])
        assert (chosen.model.lora.rank, chosen.model.max_prompt_tokens) == (2, 7)
        assert compose.load("evaluate", ["model=mine", "model.max_prompt_tokens=7"]).model.max_prompt_tokens == 7
    finally:
        compose.read_from(before)
