"""Samples are what the trainer scores: on every architecture of docs/architectures.md, whatever cache it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alp.errors import UserError
from alp.rollout import decoding, probe
from alp.rollout.decoding import Way
from alp.rollout.engine import Completion, Host, Probe, Request, Sampling
from alp.rollout.episodes import Trajectory
from alp.rollout.hf import HFEngine
from alp.rollout.probe import Probed, StaleWeights
from alp.training.batch import Batch, collate
from alp.training.forward import token_log_probs
from tests.policy.architectures import ARCHITECTURES, BY_LENGTH, RECOMPUTED, build

CPU = torch.device("cpu")
SAMPLING = Sampling(temperature=1.0, max_new_tokens=10, eos_token_id=2, pad_token_id=0)
WAYS = {Way.PADDED: "with its cache", Way.BY_LENGTH: BY_LENGTH, Way.RECOMPUTED: RECOMPUTED}


def _requests(vocabulary: int) -> list[Request]:
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in (3, 9, 5, 9, 14)]
    return [Request(tuple(ids), (0, 0, 1, place, sample)) for place, ids in enumerate(prompts) for sample in range(2)]


def _batch(requests: list[Request], completions: list[Completion]) -> Batch:
    trajectories = [
        Trajectory(
            list(request.prompt_ids),
            item.token_ids,
            item.log_probs,
            [1] * len(item.token_ids),
            [0] * len(item.token_ids),
            item.finished,
            0.0,
            0,
        )
        for request, item in zip(requests, completions, strict=True)
    ]
    return collate(trajectories, pad_token_id=0, first_sequence=0, device=CPU)


@torch.no_grad()
def _gap(model: nn.Module, requests: list[Request], completions: list[Completion]) -> Tensor:
    """|log-prob of the engine - log-prob of the trainer| of every sampled token, from the trainer's padded batch."""
    batch = _batch(requests, completions)
    return (token_log_probs(model, batch, SAMPLING.temperature)[0] - batch.rollout_log_probs)[batch.response_mask].abs()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_samples_are_what_the_trainer_scores(name: str) -> None:
    model = build(name).eval()
    engine = HFEngine(model, dtype="float32", device=CPU, batch_size=8)
    engine.sync_weights(model.named_parameters(), version=0)
    requests = _requests(int(model.config.get_text_config().vocab_size))
    gap = _gap(model, requests, engine.generate(requests, SAMPLING))
    assert float(gap.max()) < 1e-3, f"{name} with {engine.describe()['decoding']}"
    assert WAYS[Way(engine.describe()["decoding"])] == ARCHITECTURES[name].samples


class Forgetful(nn.Module):
    """A model whose padding changes what it computes, so that no way is right."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids: Tensor, **given: Any) -> Any:
        outputs = self.inner(input_ids=input_ids, **given)
        outputs.logits = outputs.logits * (1 + input_ids.shape[1])
        return outputs


def test_a_model_that_no_way_fits_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^rollout=hf: Forgetful cannot be sampled .*padding behind a sequence"):
        HFEngine(Forgetful(build("qwen2").eval()), dtype="float32", device=CPU, batch_size=8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_probe_sees_a_wrong_cache_behind_rounding_and_noise(
    monkeypatch: pytest.MonkeyPatch, dtype: str, noise: float
) -> None:
    """The engine's own weights in its own dtype on both sides: with a right cache it passes, with a wrong one not."""
    model = build("mamba").eval()
    sequences = probe.sequences([[3, 4, 5]] * 4, 50, seed=0)
    host = Host(
        model,
        Path("folder"),
        Path("log"),
        CPU,
        0,
        Probe(sequences, lambda ids, t: probe.sequence_log_probs(model, ids, t), "float32"),
    )

    def engine() -> Probed:
        inner = HFEngine(
            model, dtype=dtype, device=CPU, batch_size=8, weight_noise=noise, reference_dtype="float32", borrow=False
        )
        inner.tolerance = 10.0  # what the trainer allows is another question
        return Probed(inner, host, name="hf", temperature=1.0)

    engine().sync_weights(model.named_parameters(), version=0)
    monkeypatch.setattr(decoding, "choose", lambda model, **_: Way.PADDED)
    with pytest.raises(StaleWeights, match=r"^rollout=hf: .* other log-probs than the same tokens at once"):
        engine().sync_weights(model.named_parameters(), version=0)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("way", list(Way))
def test_batches_hold_every_place_once(way: Way, size: int) -> None:
    lengths = [3, 9, 5, 9, 3, 3, 14]
    batches = decoding.batches(way, lengths, size)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)
    if way is Way.BY_LENGTH:
        assert all(len({lengths[place] for place in batch}) == 1 for batch in batches)
    assert decoding.batches(way, [], size) == []
