"""Log-probs by chunks of tokens are those of whole logits, in values, gradients and nothing else; a model whose head
is not position by position is refused."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from alp import models
from alp.policy import LayerwisePerturbation
from alp.rollout.episodes import Trajectory
from alp.training import forward
from alp.training.batch import Batch, collate
from alp.training.forward import frozen_log_probs, token_log_probs
from alp.training.head import Head, Unproven, proven_head
from alp.training.job import Job
from alp.training.loop import train
from alp.training.settings_report import check_active, describe_active

from ..policy.architectures import ARCHITECTURES, build
from ..policy.models import EXACT, VOCABULARY, relative_gap

Make = Callable[..., Any]
EVERY = 10**6  # tokens a chunk: more than there are


def qwen2(vocabulary: int = VOCABULARY, *, tied: bool = False, kind: type[Any] = Qwen2ForCausalLM) -> Any:
    """A random Qwen2, in evaluation mode as all models are trained."""
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return kind(config).eval()


def batch_of(vocabulary: int = VOCABULARY, *, rows: int = 5, longest: int = 20) -> Batch:
    """Rows of different lengths, with tokens of the environment in the middle of some responses."""
    random = torch.Generator().manual_seed(1)
    trajectories = []
    for row in range(rows):
        prompt, length = 2 + row % 3, longest - 4 - 2 * (row % 4)
        ids = torch.randint(1, vocabulary, (prompt + length,), generator=random).tolist()
        mask = [0 if row % 2 and 3 <= place < 6 else 1 for place in range(length)]
        trajectories.append(
            Trajectory(
                ids[:prompt], ids[prompt:], [-1.0] * length, mask, [0] * length, finished=True, reward=1.0, group=row
            )
        )
    return collate(trajectories, pad_token_id=0, first_sequence=7, device=torch.device("cpu"))


def weights_of(batch: Batch) -> Tensor:
    """A coefficient for each log-prob in a loss, 0 outside the responses."""
    random = torch.Generator().manual_seed(2)
    return torch.randn(batch.input_ids.shape, generator=random, dtype=torch.float64) * batch.response_mask


def gradients(model: Any, batch: Batch, temperature: float = 1.0, head: Head | None = None) -> tuple[Tensor, Tensor]:
    """Log-probs and the gradient of a weighted sum of them in every weight, end to end."""
    model.zero_grad(set_to_none=True)
    log_probs, _ = token_log_probs(model, batch, temperature, head=head)
    (log_probs * weights_of(batch)).sum().backward()
    return log_probs.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_equal(model: Any, batch: Batch, chunk: int, temperature: float = 1.0) -> None:
    """Chunks give what whole logits give, to 1e-6 in float32: gradients relative to their norm."""
    head, mask = proven_head(model, chunk, 0), batch.response_mask
    values, entropy = frozen_log_probs(model, batch, temperature, None)
    chunked, chunked_entropy = frozen_log_probs(model, batch, temperature, None, head)
    size = max(1.0, float(values[mask].abs().max()))
    for actual, expected in ((chunked, values), (chunked_entropy, entropy)):
        assert float((actual - expected)[mask].abs().max()) <= 1e-6 * size
        assert not actual[~mask].any()
    (left, left_gradient), (right, right_gradient) = (
        gradients(model, batch, temperature, which) for which in (head, None)
    )
    assert torch.equal(left, chunked), "with and without a gradient: an on-policy ratio is exactly 1"
    assert float((left - right)[mask].abs().max()) <= 1e-6 * size
    assert relative_gap(left_gradient, right_gradient) <= 1e-6
    assert "forward" not in vars(head.body), "the model is left as it was"


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 7, EVERY])
@pytest.mark.parametrize("tied", [True, False])
def test_chunks_are_the_whole(tied: bool, chunk: int, temperature: float) -> None:
    assert_equal(qwen2(tied=tied), batch_of(), chunk, temperature)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_on_every_architecture(name: str) -> None:
    assert_equal(build(name).eval(), batch_of(), 7, 0.8)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {}),  # logit_scale
        ("gptj", {}),  # a bias
        ("phi", {}),
        ("bert", {}),  # several layers
    ],
)
def test_what_follows_the_last_matrix_is_the_models_own(name: str, change: dict[str, float]) -> None:
    model = build(name).eval()
    for key, value in change.items():
        assert hasattr(model.config, key)
        setattr(model.config, key, value)
    output = model.get_output_embeddings()
    if output.bias is not None:
        nn.init.normal_(output.bias)
    batch = batch_of()
    head = proven_head(model, 3, 0)
    states = head.hidden(batch.input_ids, batch.attention_mask)[0].detach()
    plain = states @ output.weight.T
    assert bool(((head.logits(states) - plain).abs() > 0.1).any()), "nothing to get wrong"
    assert_equal(model, batch, 3)


@pytest.mark.parametrize("chunk", [1, 7, EVERY])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_against_float64_written_out(name: str, chunk: int) -> None:
    """log p = z_a − log Σ e^z, H = −Σ p log p, ∂/∂z = coefficient · (1_a − p) / T: no function of ours, nor of
    torch's."""
    model, temperature = EXACT[name]().eval(), 0.7
    batch, coefficients = batch_of(), weights_of(batch_of())
    head = proven_head(model, chunk, 0)
    log_probs, gradient = gradients(model, batch, temperature, head)
    entropy = token_log_probs(model, batch, temperature, entropy=True, head=head)[1]
    model.zero_grad(set_to_none=True)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    upstream, seen = torch.zeros_like(logits), 0
    for row, place in batch.response_mask.nonzero().tolist():
        scaled = [value / temperature for value in logits[row, place - 1].tolist()]
        powers = (torch.tensor(scaled, dtype=torch.float64) - max(scaled)).exp()
        share = powers / powers.sum()
        chosen = int(batch.input_ids[row, place])
        assert float(log_probs[row, place]) == pytest.approx(float(share[chosen].log()), abs=1e-12)
        assert float(entropy[row, place]) == pytest.approx(-float((share * share.log()).sum()), abs=1e-12)
        share[chosen] -= 1.0
        upstream[row, place - 1] = -coefficients[row, place] * share / temperature
        seen += 1
    assert seen == int(batch.response_mask.sum()) > 40
    logits.backward(upstream)
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert relative_gap(gradient, expected) < 1e-13


@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_noise_with_and_without_layer_checkpointing(checkpointing: bool) -> None:
    model, batch = qwen2(), batch_of()
    if checkpointing:
        models.checkpoint_layers(model)
    head = proven_head(model, 7, 0)
    noise = LayerwisePerturbation(model, std=0.05, seed=3)
    results = []
    for which in (head, None):
        for scale in noise.parameters():
            scale.grad = None
        with noise.active(update=4, sequence_ids=batch.sequence_ids, attention_mask=batch.attention_mask):
            results.append((*gradients(model, batch, head=which), noise.std_grad.clone(), noise.realised_rms))
    (left, *left_gradients), (right, *right_gradients) = results
    quiet, _ = frozen_log_probs(model, batch, 1.0, None)
    assert float((right - quiet).abs().max()) > 0.01, "no noise, nothing shown"
    torch.testing.assert_close(left, right * batch.response_mask, atol=2e-6, rtol=0)
    for actual, expected in zip(left_gradients, right_gradients, strict=True):
        assert relative_gap(actual, expected) <= 2e-6


def test_a_frozen_head_stays_frozen() -> None:
    """As under LoRA: gradients go through it to what learns."""
    model, batch = qwen2(), batch_of()
    model.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.requires_grad_(True)
    assert_equal(model, batch, 7)
    assert model.lm_head.weight.grad is None


def test_under_autocast_gradients_of_chunks_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one token: a hundred bfloat16 summands, and no more error than of whole logits."""
    model, batch = qwen2(512), batch_of(512, rows=12)
    head, mask = proven_head(model, 1, 0), batch.response_mask

    def results(which: Head | None) -> tuple[Tensor, Tensor, Tensor]:
        log_probs, gradient = gradients(model, batch, head=which)
        assert log_probs.dtype == torch.float32
        return log_probs[mask], gradient, model.lm_head.weight.grad.flatten()

    exact = results(None)
    monkeypatch.setattr(
        forward,
        "precision",
        lambda _device, cache=True: torch.autocast("cpu", torch.bfloat16, cache_enabled=cache),
    )
    whole = results(None)
    with torch.autocast("cpu", torch.bfloat16):  # around it, so that a cast would be shared between chunks
        chunked = results(head)
    for ours, theirs, expected in zip(chunked, whole, exact, strict=True):
        error, allowed = relative_gap(ours, expected), 1.02 * relative_gap(theirs, expected)
        assert 1e-4 < error < allowed


class _Largest(TorchDispatchMode):
    """The largest tensor that anything computes."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _kept_bytes(model: Any, batch: Batch, head: Head | None) -> int:
    """What the graph of the log-probs holds when the backward begins, weights apart."""
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> _Kept:
        holder = _Kept(tensor)
        kept.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        log_probs, _ = token_log_probs(model, batch, 1.0, head=head)
    storages = {holder.tensor.untyped_storage().data_ptr(): holder.tensor.untyped_storage() for holder in kept}
    assert log_probs.requires_grad
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


def test_memory_does_not_grow_with_the_vocabulary() -> None:
    small, large, chunk = 64, 4096, 8
    kept, largest = {}, {}
    for vocabulary in (small, large):
        model, batch = qwen2(vocabulary), batch_of(small, rows=16)
        for head in (proven_head(model, chunk, 0), None):
            kept[vocabulary, head is None] = _kept_bytes(model, batch, head)
            with _Largest() as mode:
                gradients(model, batch, head=head)
            largest[vocabulary, head is None] = mode.elements
    tokens = batch.input_ids.numel()
    assert kept[large, False] == kept[small, False], "what lives until the backward"
    assert kept[large, True] - kept[small, True] > 0.8 * tokens * (large - small) * 4
    # The weights, the gradient of them laid end to end here, and nothing of the size of tokens times vocabulary.
    assert largest[large, True] >= (tokens - len(batch)) * large
    assert largest[large, False] <= sum(parameter.numel() for parameter in qwen2(large).parameters()) < tokens * large


def test_no_token_to_score_is_no_error() -> None:
    model, batch = qwen2(), batch_of()
    nothing = batch.with_(response_mask=torch.zeros_like(batch.response_mask))
    log_probs, _ = token_log_probs(model, nothing, 1.0, head=proven_head(model, 7, 0))
    log_probs.sum().backward()
    assert not log_probs.any()
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


class _Capped(Qwen2ForCausalLM):
    """A transformation of each position by itself, under a name that nobody knows."""

    def forward(self, **given: Any) -> Any:
        output = super().forward(**given)
        output.logits = 3 * torch.tanh(output.logits / 3) + 0.1 * output.logits.softmax(-1)
        return output


class _Centred(Qwen2ForCausalLM):
    """Positions mix behind the body."""

    def forward(self, **given: Any) -> Any:
        output = super().forward(**given)
        output.logits = output.logits - 0.01 * output.logits.mean(1, keepdim=True)
        return output


class _Copying(Qwen2ForCausalLM):
    """Logits look at the ids again."""

    def forward(self, **given: Any) -> Any:
        output = super().forward(**given)
        output.logits = output.logits.scatter_add(
            -1, given["input_ids"].unsqueeze(-1), torch.ones_like(output.logits[..., :1])
        )
        return output


class _Skipping(Qwen2ForCausalLM):
    """Logits of another state than the last."""

    def forward(self, **given: Any) -> Any:
        output = super().forward(**given, output_hidden_states=True)
        output.logits = self.lm_head(output.hidden_states[0])
        return output


class _Growing(Qwen2ForCausalLM):
    """Logits depend on a position's place."""

    def forward(self, **given: Any) -> Any:
        output = super().forward(**given)
        output.logits = output.logits * (1 + 0.01 * torch.arange(output.logits.shape[1])[:, None])
        return output


class _Twice(Qwen2ForCausalLM):
    """The body runs twice."""

    def forward(self, **given: Any) -> Any:
        super().forward(**given)
        return super().forward(**given)


def test_an_unknown_transformation_of_each_position_is_no_matter() -> None:
    assert_equal(qwen2(kind=_Capped), batch_of(), 7)


@pytest.mark.parametrize("kind", [_Centred, _Copying, _Skipping, _Growing, _Twice])
def test_a_head_that_reads_more_than_a_position_is_refused(kind: type[Any]) -> None:
    model = qwen2(kind=kind)
    with pytest.raises(Unproven):
        proven_head(model, 7, 0)
    assert "forward" not in vars(model.model)
    assert not model.model._forward_hooks


def test_a_dead_head_proves_nothing() -> None:
    model = qwen2()
    nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(Unproven, match=r"differ by 0 .* the largest of which is 0"):
        proven_head(model, 7, 0)


def test_the_trial_takes_no_random_number() -> None:
    before = torch.get_rng_state()
    proven_head(qwen2(), 7, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_head_belongs_to_its_model() -> None:
    with pytest.raises(ValueError, match="head: of another model"):
        token_log_probs(qwen2(), batch_of(), 1.0, head=proven_head(qwen2(), 7, 0))


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = qwen2()
    head = proven_head(model, 7, 0)
    with pytest.raises(RuntimeError):
        head.logits(torch.zeros(3, 33))
    assert "forward" not in vars(model.model)
    head.body.forward = own = head.body.forward  # as wrappers do
    assert head.logits(torch.zeros(3, 32)).shape == (3, VOCABULARY)
    assert vars(head.body)["forward"] is own


def _trained(train_config: Make, *words: str, folder: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    run = train(train_config("method=seq_alp", "trainer.steps=2", "trainer.kl=0.1", *words, folder=folder))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads((run / "active.json").read_text(encoding="utf-8"))


def test_a_job_by_chunks(train_config: Make) -> None:
    """Scoring, reference, updates and the sharpness probe."""
    whole, active = _trained(train_config, folder="whole")
    assert (active["log_probs"], active["logits_chunk"]) == ("whole", None)
    chunked, active = _trained(train_config, "trainer.logits_chunk=5", folder="chunked")
    assert (active["log_probs"], active["logits_chunk"]) == ("chunked", 5)
    assert "log_probs_whole_because" not in active
    # One step: in the next one rounding may have sampled another token.
    for name, value in whole[1].items():
        assert chunked[1][name] == pytest.approx(value, rel=2e-3, abs=2e-5), name


def test_noise_on_the_logits_needs_them_whole(train_config: Make, caplog: pytest.LogCaptureFixture) -> None:
    words = ["method.perturbation.layers=logits", "trainer.logits_chunk=5"]
    _, active = _trained(train_config, *words, folder="logits")
    assert (active["log_probs"], active["logits_chunk"]) == ("whole", None)
    assert "perturbation" in active["log_probs_whole_because"]
    assert "not in chunks" in caplog.text


def test_whole_logits_without_a_reason_stop_the_job(train_config: Make, tmp_path: Path) -> None:
    job = Job(train_config("trainer.logits_chunk=5", folder="run"), tmp_path / "run")
    assert job.head is not None
    job.updater.head = None
    with pytest.raises(RuntimeError, match="tokens a chunk of logits: None is active, the configuration says 5"):
        check_active(job.config, describe_active(job.config, job.engine, job.model, job.updater))
