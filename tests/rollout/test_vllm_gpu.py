"""vLLM on the trainer's own GPU: weights by CUDA IPC, asleep during updates, and never stale."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from alp import models
from alp.configuration import compose
from alp.rollout import probe, registry, transport, vllm
from alp.rollout.engine import Host, Probe, Request, Sampling
from alp.training.loop import train
from tests.conftest import TINY_TASK, TINY_TRAINER

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or vllm.installed() != "cuda", reason="needs a CUDA GPU, and vLLM built for it"
)
SAMPLING = Sampling(temperature=0.8, max_new_tokens=12, eos_token_id=1, pad_token_id=0)
REQUESTS = [Request(prompt, (0, 0, 1, place, 0)) for place, prompt in enumerate([(3, 12, 4, 13), (5, 12), (2, 13)])]
WORDS = ["rollout=vllm", "rollout.kv_cache_gib=0.5", "rollout.temperature=0.8", "rollout.max_new_tokens=24"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A taught model with heads of 64."""
    from alp.training.pretrain import pretrain

    place = tmp_path_factory.mktemp("wide")
    words = ["model.hidden=128", "model.heads=2", "model.intermediate=128", "model.layers=2", "pretrain.steps=60"]
    pretrain(compose.load("pretrain", [*TINY_TASK, *words, f"run.dir='{place}'"]))
    return place / "model"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_weights_cross_by_ipc_and_survive_sleep_and_death(folder: Path, tmp_path: Path, level: int) -> None:
    model = models.load_model(folder, torch.device("cuda"))
    fixed = Probe(
        probe.sequences([[3, 12, 4]], 16, seed=0),
        lambda sequences, temperature: probe.sequence_log_probs(model, sequences, temperature),
        dtype="bfloat16",
    )
    settings: Any = compose.load("train", [*WORDS, f"rollout.sleep_level={level}"]).rollout
    host = Host(model, folder, tmp_path / "log", torch.device("cuda"), 0, fixed)
    inner: Any = registry.implementation(settings).make(settings, host)
    try:
        for version in (0, 1):
            inner.sync_weights(model.named_parameters(), version)
            assert inner.describe()["weights_by"] == transport.CUDA_IPC
            found = inner.generate(REQUESTS, SAMPLING)
            assert inner.generate(REQUESTS, SAMPLING) == found
            with torch.no_grad():
                for value in model.parameters():
                    value.mul_(1.1)
        with torch.no_grad():
            for value in model.parameters():
                value.div_(1.1)
        os.kill(inner.process.pid, signal.SIGKILL)
        assert inner.generate(REQUESTS, SAMPLING) == found
    finally:
        inner.close()


def test_a_job_trains_on_what_it_samples(folder: Path, tmp_path: Path) -> None:
    """Asleep at level 2 during updates; the divergence of engine and trainer stays that of bfloat16."""
    trainer = [word for word in TINY_TRAINER if not word.startswith("trainer.device")]
    place = [f"model.path='{folder}'", f"run.dir='{tmp_path / 'run'}'", "run.tracking=null", "trainer.device=cuda"]
    words = [*WORDS, "rollout.sleep_level=2", "method=token_mis", "trainer.steps=3"]
    run = train(compose.load("train", [*TINY_TASK, *trainer, *place, *words]))
    active = json.loads((run / "active.json").read_text(encoding="utf-8"))
    assert (active["weights_by"], active["sleep_level"]) == (transport.CUDA_IPC, 2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    gaps = [line["rollout_corr/k3_kl"] for line in lines if "rollout_corr/k3_kl" in line]
    assert len(gaps) == 3
    assert max(gaps) < 1e-2
