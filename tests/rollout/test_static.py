"""A cache of fixed size gives what the growing one gives: on a CPU here, as CUDA graphs where there is a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alp.configuration import compose
from alp.rollout import decoding, probe, static
from alp.rollout.decoding import Way
from alp.rollout.engine import Completion, Request, Sampling
from alp.rollout.hf import HFEngine
from tests.policy.architectures import build

CPU = torch.device("cpu")
NAMES = ["llama", "qwen2", "gemma2", "gemma3_text", "gpt2", "mistral"]
WINDOW = 6  # narrower than what is sampled, and than some prompts
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def _model(name: str) -> Any:
    model = build(name).eval()
    text = model.config.get_text_config()
    if getattr(text, "sliding_window", None):
        text.sliding_window = WINDOW
        for module in model.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = WINDOW
    return model


def _requests(vocabulary: int, samples: int = 4) -> list[Request]:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in (3, 9, 5, 9, 14)]
    return [
        Request(tuple(ids), (0, 0, 1, place, number)) for place, ids in enumerate(prompts) for number in range(samples)
    ]


def _engine(model: Any, device: torch.device = CPU, **options: Any) -> HFEngine:
    engine = HFEngine(model, dtype="float32", device=device, batch_size=64, **options)
    engine.sync_weights(model.named_parameters(), version=0)
    return engine


def _halved(self: static.Preallocated, rows: int, before: int) -> int:
    """Rows as with graphs: some of them compute for nobody."""
    return static.halved(rows, before)


@pytest.mark.parametrize("padded_rows", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_samples_and_log_probs_are_those_of_the_growing_cache(
    name: str, padded_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that grows several times, rows that end at different times, windows that are passed."""
    monkeypatch.setattr(static, "_SHORTEST", 8)
    monkeypatch.setattr(static, "_FEWEST", 2)
    if padded_rows:
        monkeypatch.setattr(static.Preallocated, "_held", _halved)
    model = _model(name)
    grown, fixed = _engine(model, static=False), _engine(model, static=True)
    assert (grown.describe()["decoding"], fixed.describe()["decoding"]) == (Way.PADDED, Way.STATIC)
    vocabulary = int(model.config.get_text_config().vocab_size)
    ends = tuple(range(2, 2 + vocabulary // 16))  # a sixteenth of the vocabulary ends a response
    sampling = Sampling(1.0, 40, eos_token_id=1, pad_token_id=0, stop_token_ids=ends)
    one, other = (engine.generate(_requests(vocabulary), sampling) for engine in (grown, fixed))
    lengths = [len(item.token_ids) for item in one]
    assert min(lengths) < 10 < 20 < max(lengths)
    _agree(one, other)


def _agree(one: list[Completion], other: list[Completion], tolerance: float = 1e-5) -> None:
    for first, second in zip(one, other, strict=True):
        assert first.token_ids == second.token_ids
        assert first.finished == second.finished
        assert first.log_probs == pytest.approx(second.log_probs, abs=tolerance)


@settings(max_examples=200, deadline=None)
@given(before=st.integers(1, 600), share=st.floats(0, 1))
def test_rows_of_memory_halve_and_hold_what_runs(before: int, share: float) -> None:
    rows = max(1, math.ceil(before * share))
    held = static.halved(rows, before)
    assert rows <= held <= before
    assert held == before or held < 2 * max(rows, static._FEWEST) + 1
    assert static.halved(rows, held) == held
    sizes = {static.halved(count, before) for count in range(1, before + 1)}
    assert len(sizes) <= 1 + math.log2(before)


def test_memory_grows_in_powers_of_two_and_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    init = static._Memory.__init__

    def noted(self: Any, *given: Any, **more: Any) -> None:
        init(self, *given, **more)
        made.append((self.rows, self.columns))

    monkeypatch.setattr(static._Memory, "__init__", noted)
    monkeypatch.setattr(static, "_SHORTEST", 8)
    model = _model("llama")
    engine = _engine(model, static=True)
    made.clear()
    engine.generate([Request((3, 4, 5), (0,)), Request((3, 4), (1,))], Sampling(1.0, 34, 10**6, 0))
    assert made == [(2, 8), (2, 16), (2, 32), (2, 37)], "the last is prompt and response"


@pytest.mark.parametrize("name", ["mamba2", "qwen3_next", "openai-gpt"])
def test_what_cannot_goes_on_with_what_it_had(name: str) -> None:
    model = build(name).eval()
    ways = [decoding.choose(model, static=asked) for asked in (False, True)]
    assert ways[0] == ways[1] != Way.STATIC


def test_a_cpu_takes_it_only_when_asked() -> None:
    model = _model("llama")
    assert [_engine(model, static=asked).describe()["decoding"] for asked in (None, False, True)] == [
        Way.PADDED,
        Way.PADDED,
        Way.STATIC,
    ]
    assert compose.load("train").rollout.static_cache is None
    assert compose.load("train", ["rollout.static_cache=true"]).rollout.static_cache is True


@NEEDS_GPU
@pytest.mark.parametrize("name", NAMES)
def test_graphs_on_a_gpu_give_the_model_s_log_probs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And follow weights that change in place, whichever model they are in."""
    monkeypatch.setattr(static, "_SHORTEST", 8)
    device = torch.device("cuda")
    model = _model(name).to(device)
    engines = [_engine(model, device), _engine(model, device, borrow=False)]
    requests = _requests(int(model.config.get_text_config().vocab_size))
    sampling = Sampling(1.0, 40, eos_token_id=1, pad_token_id=0, stop_token_ids=(2, 3))
    for version in (1, 2):
        for engine in engines:
            assert engine.describe()["decoding"] == Way.GRAPHED
            engine.sync_weights(model.named_parameters(), version)
            found = engine.generate(requests, sampling)
            ids = [[*request.prompt_ids, *item.token_ids] for request, item in zip(requests, found, strict=True)]
            rows = probe.sequence_log_probs(model, ids, 1.0)
            for row, item in zip(rows, found, strict=True):
                assert item.log_probs == pytest.approx(row[-len(item.token_ids) :], abs=1e-3)
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(1.1)


@NEEDS_GPU
def test_a_gpu_s_memory_is_given_back_after_a_batch() -> None:
    device = torch.device("cuda")
    model = _model("llama").to(device)
    engine = _engine(model, device)
    sampling = Sampling(1.0, 40, eos_token_id=1, pad_token_id=0)
    engine.generate(_requests(50), sampling)
    before = torch.cuda.memory_allocated()
    engine.generate(_requests(50), sampling)
    assert torch.cuda.memory_allocated() == before
