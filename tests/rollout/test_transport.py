"""Weights on their way to an engine process: the same bits however they go, and the current ones whatever happens."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alp import models
from alp.configuration import compose
from alp.rollout import probe, transport
from alp.rollout.engine import Completion, Host, Probe, Request, Sampling
from alp.rollout.process import EngineLost
from alp.rollout.supervised import SupervisedEngine
from alp.rollout.transport import Inbox, Outbox

SAMPLING = Sampling(temperature=0.8, max_new_tokens=8, eos_token_id=1, pad_token_id=0)
REQUESTS = [Request(prompt, (0, 0, 1, place, 0)) for place, prompt in enumerate([(3, 12, 4, 13), (5, 12), (2, 13)])]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=NEEDS_GPU)]
SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6)


@pytest.mark.parametrize("memory", [True, False])
@settings(max_examples=40, deadline=None)
@given(shapes=SHAPES, half=st.booleans(), seed=st.integers(0, 99))
def test_every_tensor_arrives_in_the_engine_s_dtype(memory: bool, shapes: list[Any], half: bool, seed: int) -> None:
    dtype, generator = torch.bfloat16 if half else torch.float32, torch.Generator().manual_seed(seed)
    weights = {str(number): torch.randn(shape, generator=generator) for number, shape in enumerate(shapes)}
    with pytest.MonkeyPatch.context() as patch:
        if not memory:
            patch.delattr(os, "memfd_create", raising=False)
        outbox = Outbox(dtype, {name: value.shape for name, value in weights.items()}, {"again": "0"})
    for _ in range(2):
        outbox.fill(weights.items())
        way = outbox.way(None)
        message, tensors = outbox.message(way)
        assert (outbox.descriptor is not None) == (way == transport.SHARED)
        found = Inbox(outbox.descriptor).open(json.loads(json.dumps(message))["weights"], tensors)
        assert found.keys() == weights.keys() | {"again"} == outbox.values.keys()
        for name, value in weights.items():
            assert torch.equal(found[name], value.to(dtype))
            assert torch.equal(outbox.values[name], value.to(dtype))
        assert torch.equal(found["again"], found["0"])
        assert outbox.bytes == sum(value.numel() * dtype.itemsize for value in weights.values())
        weights = {name: value + 1.0 for name, value in weights.items()}


def test_foreign_weights_are_refused() -> None:
    outbox = Outbox(torch.float32, {"one": (2,), "two": (3,)}, {})
    for names in (["one"], ["one", "two", "three"]):
        with pytest.raises(ValueError, match="stand on one side only"):
            outbox.fill((name, torch.zeros({"one": 2}.get(name, 3))) for name in names)


class Small(SupervisedEngine):
    """``tests/rollout/hf_server.py`` under supervision."""

    server = "tests.rollout.hf_server"
    drops: ClassVar[bool] = False

    def start_message(self) -> dict[str, Any]:
        return {"folder": str(self.host.folder), "device": str(self.host.device), "drops": self.drops}

    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}

    def advice(self, lost: EngineLost) -> str:
        return str(lost)


class Dropping(Small):
    """One that lets go of its weights after every batch, as vLLM does at sleep level 2."""

    drops = True


@pytest.fixture(params=DEVICES)
def model(request: pytest.FixtureRequest, base_model: Path) -> Any:
    return models.load_model(base_model, request.param)


@pytest.fixture
def engine(model: Any, base_model: Path, tmp_path: Path) -> Iterator[Small]:
    made = _engine(Small, model, base_model, tmp_path)
    yield made
    made.close()


def _engine(kind: type[Small], model: Any, folder: Path, tmp_path: Path) -> Small:
    fixed = Probe(
        probe.sequences([[3, 12, 4]], 16, seed=0),
        lambda sequences, temperature: probe.sequence_log_probs(model, sequences, temperature),
        dtype="float32",
    )
    rollout = compose.load("train", ["rollout=vllm", "rollout.dtype=float32", "rollout.time_limit=60"]).rollout
    return kind(rollout, Host(model, folder, tmp_path / "log", next(model.parameters()).device, 0, fixed))


def _gap(model: Any, found: list[Completion]) -> float:
    """Largest |log-prob of the engine - of the model|."""
    sequences = [[*request.prompt_ids, *item.token_ids] for request, item in zip(REQUESTS, found, strict=True)]
    with torch.autocast("cuda", enabled=False):
        rows = probe.sequence_log_probs(model, sequences, SAMPLING.temperature)
    pairs = zip(rows, found, strict=True)
    return max(
        abs(a - b) for row, item in pairs for a, b in zip(row[-len(item.token_ids) :], item.log_probs, strict=True)
    )


def _move(model: Any) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.2)


def test_an_engine_follows_its_weights_and_is_started_again_with_them(engine: Small, model: Any) -> None:
    """On a GPU by CUDA IPC, and after a restart by the host."""
    gpu = model.device.type == "cuda"
    before: list[Completion] = []
    for version in (0, 1):
        figures = engine.sync_weights(model.named_parameters(), version)
        assert engine.describe()["weights_by"] == (transport.CUDA_IPC if gpu else transport.SHARED)
        assert figures["sync/bytes"] == sum(value.nbytes for value in model.parameters())
        found = engine.generate(REQUESTS, SAMPLING)
        assert found != before
        assert _gap(model, found) < 1e-4
        before = found
        if version == 0:
            _move(model)
    assert engine.process is not None
    os.kill(engine.process.pid, signal.SIGKILL)
    kept = [value.detach().clone() for value in model.parameters()]
    _move(model)  # what an engine is started again with is what it had
    with pytest.raises(probe.StaleWeights):
        engine.generate(REQUESTS, SAMPLING)
    with torch.no_grad():
        for value, old in zip(model.parameters(), kept, strict=True):
            value.copy_(old)
    assert engine.generate(REQUESTS, SAMPLING) == before
    assert engine.describe()["weights_by"] == transport.SHARED


def test_an_engine_that_dropped_its_weights_is_given_them_again(model: Any, base_model: Path, tmp_path: Path) -> None:
    engine = _engine(Dropping, model, base_model, tmp_path)
    try:
        engine.sync_weights(model.named_parameters(), 0)
        found = [engine.generate(REQUESTS, SAMPLING) for _ in range(3)]
        assert found[0] == found[1] == found[2]
        assert _gap(model, found[0]) < 1e-4
        assert engine.describe()["syncs"] == 4, "one, and one more before each batch but the first, and before this"
        assert engine.restarts == 0
    finally:
        engine.close()


def test_memory_that_an_engine_cannot_open_is_said_and_the_host_s_is_taken(
    model: Any, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(transport, "_handle", lambda flat: {"gpu": "another"})
    if model.device.type == "cpu":  # an engine of which the trainer believes that it is on the same GPU
        monkeypatch.setattr(
            Outbox, "_device", property(lambda self: self._host, lambda self, value: None), raising=False
        )
        monkeypatch.setattr(transport, "gpu", lambda device: None)
        monkeypatch.setattr(transport, "_pin", lambda owner, host: None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: torch.Stream(device))
        monkeypatch.setattr(Outbox, "settle", lambda self: None)
    caplog.set_level(logging.WARNING)
    engine = _engine(Small, model, base_model, tmp_path)
    try:
        engine.sync_weights(model.named_parameters(), 0)
        assert "cannot open the trainer's GPU memory" in caplog.text
        assert engine.describe()["weights_by"] == transport.SHARED
        assert _gap(model, engine.generate(REQUESTS, SAMPLING)) < 1e-4
        assert engine.restarts == 0
    finally:
        engine.close()


@NEEDS_GPU
def test_a_gpu_s_buffer_is_given_back_after_a_sync(engine: Small, model: Any) -> None:
    """What is on the card after a sync is what was there before."""
    engine.sync_weights(model.named_parameters(), 0)
    before = torch.cuda.memory_allocated()
    engine.sync_weights(model.named_parameters(), 1)
    assert torch.cuda.memory_allocated() == before
