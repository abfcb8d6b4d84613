"""The Hugging Face engine: exact log-probs of what it sampled, samples that belong to their key, honest low
precision."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
import torch
from torch import Tensor

from alp import models
from alp.configuration import compose
from alp.policy import LayerwisePerturbation
from alp.rollout import probe, registry
from alp.rollout.engine import Completion, Host, Probe, Purpose, Request, Sampling, uniforms
from alp.rollout.hf import HFEngine, evaluating, quantise

CPU = torch.device("cpu")
SAMPLING = Sampling(temperature=0.8, max_new_tokens=12, eos_token_id=1, pad_token_id=0)
PROMPTS = [(3, 12, 4, 13), (5, 12, 13), (9, 8, 12, 7, 7, 13), (2, 13)]


@pytest.fixture(scope="module")
def model(base_model: Path) -> Any:
    return models.load_model(base_model, CPU)


def _engine(model: Any, dtype: str = "float32", **options: Any) -> HFEngine:
    engine = HFEngine(model, dtype=dtype, device=CPU, batch_size=options.pop("batch_size", 64), **options)
    engine.sync_weights(model.named_parameters(), version=0)
    return engine


def _requests(samples: int = 5) -> list[Request]:
    return [
        Request(prompt, (Purpose.TRAINING, 0, 1, place, sample))
        for place, prompt in enumerate(PROMPTS)
        for sample in range(samples)
    ]


@torch.no_grad()
def _teacher_forced(model: Any, request: Request, completion: Completion, temperature: float) -> Tensor:
    """Log-probs of the completion by one plain forward without cache or padding."""
    ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
    log_probs = (model(ids).logits.float() / temperature).log_softmax(-1)[0, len(request.prompt_ids) - 1 : -1]
    return log_probs.gather(-1, torch.tensor(completion.token_ids).unsqueeze(-1)).squeeze(-1)


def test_log_probs_are_those_of_the_sampled_ids_at_the_temperature(model: Any) -> None:
    for request, completion in zip(_requests(), _engine(model).generate(_requests(), SAMPLING), strict=True):
        expected = _teacher_forced(model, request, completion, SAMPLING.temperature)
        torch.testing.assert_close(torch.tensor(completion.log_probs), expected, atol=2e-5, rtol=0)


def test_end_token_belongs_to_the_response_and_a_cut_one_has_none(model: Any) -> None:
    found = _engine(model).generate(_requests(20), SAMPLING)
    assert any(item.finished for item in found)
    for item in found:
        assert item.finished == (item.token_ids[-1] == SAMPLING.eos_token_id)
        assert SAMPLING.eos_token_id not in item.token_ids[:-1]
        assert item.finished or len(item.token_ids) == SAMPLING.max_new_tokens
    cut = _engine(model).generate(_requests(3), Sampling(0.8, 2, 1, 0))
    assert all(len(item.token_ids) <= 2 for item in cut)
    assert any(not item.finished for item in cut)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_samples_belong_to_their_key_not_to_the_batch(model: Any, batch_size: int) -> None:
    requests = _requests()
    reference = {
        request.key: item for request, item in zip(requests, _engine(model).generate(requests, SAMPLING), strict=True)
    }
    shuffled = [
        requests[index] for index in torch.randperm(len(requests), generator=torch.Generator().manual_seed(1)).tolist()
    ]
    for request, item in zip(shuffled, _engine(model, batch_size=batch_size).generate(shuffled, SAMPLING), strict=True):
        assert item.token_ids == reference[request.key].token_ids
        torch.testing.assert_close(item.log_probs, reference[request.key].log_probs, atol=2e-5, rtol=0)


def test_keys_do_not_share_random_numbers() -> None:
    keys = [
        (purpose, seed, step, problem, sample)
        for purpose in (0, 1)
        for seed in (0, 1)
        for step in (0, 1)
        for problem in (0, 1)
        for sample in (0, 1)
    ]
    assert len({tuple(uniforms(key, 4)) for key in keys}) == len(keys)
    assert (uniforms(keys[0], 8)[:4] == uniforms(keys[0], 4)).all(), "a longer limit must not change the beginning"


@torch.no_grad()
def test_first_token_has_the_model_s_distribution(model: Any) -> None:
    count = 4000
    requests = [Request(PROMPTS[0], (0, 0, 0, 0, sample)) for sample in range(count)]
    found = _engine(model, batch_size=count).generate(requests, Sampling(0.8, 1, 1, 0))
    expected = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / 0.8).softmax(-1).double()
    seen = torch.bincount(torch.tensor([item.token_ids[0] for item in found]), minlength=len(expected)).double() / count
    # Six standard deviations for each of the tokens: false alarms below 1e-7.
    assert bool(((seen - expected).abs() <= 6 * (expected * (1 - expected) / count).sqrt() + 1e-12).all())


def test_greedy_takes_the_most_likely_token(model: Any) -> None:
    requests = _requests(1)
    for request, item in zip(requests, _engine(model).generate(requests, Sampling(0.0, 6, 1, 0)), strict=True):
        ids = list(request.prompt_ids)
        for token in item.token_ids:
            with torch.no_grad():
                assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


@pytest.mark.parametrize(
    ("dtype", "floor", "ceiling"), [("float32", 0.0, 1e-5), ("bfloat16", 1e-5, 0.1), ("int8", 1e-5, 0.2)]
)
def test_mismatch_is_real_and_bounded(model: Any, dtype: str, floor: float, ceiling: float) -> None:
    requests = _requests()
    found = _engine(model, dtype).generate(requests, SAMPLING)
    gaps = [
        (_teacher_forced(model, request, item, SAMPLING.temperature) - torch.tensor(item.log_probs)).abs().mean()
        for request, item in zip(requests, found, strict=True)
    ]
    assert floor <= float(torch.stack(gaps).mean()) <= ceiling


def test_quantised_weights_have_at_most_255_levels_per_channel() -> None:
    weight = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0))
    rounded = quantise(weight)
    assert all(len(row.unique()) <= 255 for row in rounded)
    assert bool(((rounded - weight).abs() <= weight.abs().amax(-1, keepdim=True) / 254 + 1e-7).all())
    assert bool((quantise(torch.zeros(2, 3)) == 0).all())


def test_weight_noise_has_the_stated_size_and_changes_with_the_version(model: Any) -> None:
    engine = _engine(model, weight_noise=0.02, seed=5)
    clean = {name: value.detach() for name, value in model.named_parameters()}

    def relative() -> Tensor:
        parts = [(value - clean[name]) / clean[name] for name, value in engine.parameters.items() if value.dim() == 2]
        return torch.cat([part[torch.isfinite(part)] for part in parts])

    first = relative()
    assert abs(float(first.detach().std()) / 0.02 - 1) < 0.05
    engine.sync_weights(model.named_parameters(), version=1)
    assert not torch.equal(relative(), first)
    engine.sync_weights(model.named_parameters(), version=0)
    assert torch.equal(relative(), first)
    assert engine.describe()["weight_noise"] == 0.02


def test_sync_refuses_foreign_weights_and_generate_wants_some(model: Any) -> None:
    engine = HFEngine(model, dtype="float32", device=CPU, batch_size=4)
    with pytest.raises(RuntimeError, match="no weights yet"):
        engine.generate(_requests(), SAMPLING)
    with pytest.raises(ValueError, match="stand on one side only"):
        engine.sync_weights([("other.weight", torch.zeros(1))], version=0)


def test_engine_follows_new_weights(model: Any, base_model: Path) -> None:
    changed = models.load_model(base_model, CPU)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.3)
    engine = _engine(model, borrow=False)
    before = engine.generate(_requests(), SAMPLING)
    engine.sync_weights(changed.named_parameters(), version=1)
    after = engine.generate(_requests(), SAMPLING)
    assert [item.log_probs for item in before] != [item.log_probs for item in after]
    for request, item in zip(_requests(), after, strict=True):
        expected = _teacher_forced(changed, request, item, SAMPLING.temperature)
        torch.testing.assert_close(torch.tensor(item.log_probs), expected, atol=2e-5, rtol=0)


def test_the_model_itself_is_sampled_from_where_no_copy_is_needed(model: Any) -> None:
    """One set of weights in memory: the engine's tensors are the model's."""
    parameters = dict(model.named_parameters())
    borrowed, copied = _engine(model), _engine(model, borrow=False)
    assert all(borrowed.parameters[name] is value for name, value in parameters.items())
    assert {value.data_ptr() for value in copied.parameters.values()}.isdisjoint(
        value.data_ptr() for value in parameters.values()
    )
    assert (borrowed.describe()["borrowed"], copied.describe()["borrowed"]) == (True, False)
    for words in ({"dtype": "bfloat16"}, {"dtype": "int8"}, {"weight_noise": 0.01}):
        assert not _engine(model, **words).borrowed, words


def test_a_borrowed_model_gives_the_samples_of_a_copy(base_model: Path) -> None:
    """To the last bit, with the noise attached and layers that compute their activations again; and it comes back as
    it was."""
    model = models.load_model(base_model, CPU)
    for value in model.parameters():  # where a copy's lie: a product's last digits depend on the memory's alignment
        value.data = value.data.clone()
    plain = _engine(model, borrow=False).generate(_requests(), SAMPLING)
    models.checkpoint_layers(model)
    noise = LayerwisePerturbation(model, std=0.5, seed=0)
    modes = {name: module.training for name, module in model.named_modules()}
    assert any(modes.values())
    assert _engine(model).generate(_requests(), SAMPLING) == plain
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert noise.hooks > 0


def test_a_model_comes_back_in_its_mode_after_a_failure(base_model: Path) -> None:
    model = models.load_model(base_model, CPU)
    model.model.layers[1].training = True
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    engine = _engine(model)
    with pytest.raises(IndexError):
        engine.generate([Request((99_999,), (0, 0, 0, 0, 0))], SAMPLING)  # an id that has no embedding
    assert [module for module in model.modules() if module.training] == [model.model.layers[1]]


def test_a_borrowed_model_takes_no_other_weights(model: Any, base_model: Path) -> None:
    engine, other = _engine(model), models.load_model(base_model, CPU)
    with pytest.raises(ValueError, match="samples from the served model itself"):
        engine.sync_weights(other.named_parameters(), version=1)
    engine.sync_weights(model.named_parameters(), version=1)
    assert engine.version == 1


def _host(model: Any, folder: Path, reference: Any = None) -> Host:
    fixed = Probe(
        probe.sequences([list(prompt) for prompt in PROMPTS], 16, seed=0),
        lambda sequences, temperature: probe.sequence_log_probs(reference or model, sequences, temperature),
        dtype="float32",
    )
    return Host(model, folder, folder / "hf.log", CPU, 0, fixed)


FORMATS = [
    ["rollout.dtype=float32"],
    ["rollout.dtype=bfloat16"],
    ["rollout.dtype=int8"],
    ["rollout.dtype=float32", "rollout.weight_noise=0.02"],
    ["rollout.dtype=int8", "rollout.weight_noise=0.3"],
]


@pytest.mark.parametrize("words", FORMATS)
def test_the_first_sync_is_probed_in_every_format(model: Any, base_model: Path, words: list[str]) -> None:
    settings = compose.load("train", words).rollout
    engine = registry.make(settings, _host(model, base_model))
    before = torch.get_rng_state()
    engine.sync_weights(model.named_parameters(), version=0)
    assert torch.equal(torch.get_rng_state(), before)
    plain = HFEngine.make(settings, _host(model, base_model))
    plain.sync_weights(model.named_parameters(), version=0)
    assert engine.generate(_requests(), SAMPLING) == plain.generate(_requests(), SAMPLING), "the probe changes nothing"


@pytest.mark.parametrize("words", FORMATS[:4])
def test_an_engine_of_other_weights_stops_the_job(model: Any, base_model: Path, words: list[str]) -> None:
    """Held against a model whose logits have the other sign."""
    other = models.load_model(base_model, CPU)
    with torch.no_grad():
        other.model.norm.weight.mul_(-1.0)
    engine = registry.make(compose.load("train", words).rollout, _host(model, base_model, reference=other))
    with pytest.raises(
        probe.StaleWeights, match=r"^rollout=hf: after its first sync \(version 3\) .*model read from .*"
    ):
        engine.sync_weights(model.named_parameters(), version=3)


def test_a_probe_stays_within_the_model(model: Any) -> None:
    assert [len(ids) for ids in probe.sequences([[3] * 30, [4] * 5], 16, seed=0, longest=40)] == [36, 17]
    assert all(max(ids) < 16 for ids in probe.sequences([[3]], 16, seed=0))


def test_one_engine_does_not_import_another() -> None:
    """Neither the registry, nor what makes the HF engine, knows of vLLM's modules; and the other way round."""
    script = (
        "import sys; from alp.rollout import registry; from alp.configuration import compose\n"
        "rollouts = [compose.load('train', [f'rollout={name}']).rollout for name in ('hf', 'vllm')]\n"
        "assert 'torch' not in sys.modules\n"
        "for rollout in rollouts:\n"
        "    registry.implementation(rollout)\n"
        "    loaded = sorted(name for name in sys.modules if name.startswith('alp.rollout.'))\n"
        "    print(*loaded)\n"
        "    for name in loaded: del sys.modules[name]\n"
        "    from alp.rollout import registry\n"
    )
    done = run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    hf, vllm = (line.split() for line in done.stdout.splitlines())
    assert "alp.rollout.hf" in hf
    assert not any("vllm" in name or "supervised" in name for name in hf)
    assert {"alp.rollout.vllm", "alp.rollout.supervised"} <= set(vllm)
    assert "alp.rollout.hf" not in vllm
