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
    assert compose.identity(config) == compose.identity(
        compose.load("train", [f"rollout={engine}", f"validation={engine}", "rollout.max_new_tokens=23"])
    )
    assert compose.load("evaluate", ["rollout=auto"]).rollout.engine == engine
