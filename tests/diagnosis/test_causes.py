"""Causes by name, on patterns that are made here: each fault is named, what is no fault is not, nothing is guessed. How
often they are right on real rollouts is for `benchmarks.causes` to say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from alp.diagnosis import checking
from alp.diagnosis.causes import NONE, causes
from alp.diagnosis.dumps import FIELDS, Dump, Raw

SEQUENCES, TOKENS, WORDS, STEPS = 120, 12, 14, 6
Logits = Callable[[Tensor], Tensor]


class Made:
    """Logits of a made-up model for every place, tokens drawn from them, and both policies' log-probs."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        sharp = torch.rand(SEQUENCES, TOKENS, 1, generator=self.random, dtype=torch.float64) * 6
        self.logits = sharp * torch.randn(SEQUENCES, TOKENS, WORDS, generator=self.random, dtype=torch.float64)
        self.lengths = torch.randint(5, TOKENS + 1, (SEQUENCES,), generator=self.random)
        self.tokens = self.drawn(self.logits)

    def drawn(self, logits: Tensor) -> Tensor:
        flat = logits.softmax(-1).view(-1, WORDS)
        return flat.multinomial(1, generator=self.random).view(SEQUENCES, TOKENS)

    def noisy(self, size: float) -> Tensor:
        noise = torch.randn(self.logits.shape, generator=self.random, dtype=torch.float64)
        return self.logits + size * noise

    def scored(self, logits: Tensor, tokens: Tensor | None = None) -> Tensor:
        ids = self.tokens if tokens is None else tokens
        return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]

    def dump(self, old: Tensor, rollout: Tensor) -> Dump:
        mask = (torch.arange(TOKENS) < self.lengths[:, None]).double()
        arrays = {"old_log_probs": old, "rollout_log_probs": rollout, "response_mask": mask}
        flat = {name: values.double().numpy().ravel().copy() for name, values in arrays.items()}
        lengths = dict.fromkeys(flat, np.full(SEQUENCES, TOKENS))
        steps = np.repeat(np.arange(STEPS), SEQUENCES // STEPS).astype(float)
        return checking.check(Raw(flat, lengths, steps, str, {name: name for name in FIELDS}))


def named(made: Made, old: Tensor, rollout: Tensor) -> list[str]:
    return [cause.name for cause in causes(made.dump(old, rollout))]


def test_what_is_no_fault_is_no_alarm() -> None:
    made = Made()
    exact = made.scored(made.logits)
    assert named(made, exact, exact.float().double()) == ["agreement"]
    for size in (3e-4, 3e-3, 1e-2, 6e-2):
        (cause,) = causes(made.dump(exact, made.scored(made.noisy(size))))
        assert cause.name == "rounding"
        assert not cause.alarm


@pytest.mark.parametrize("heat", [0.8, 1.1, 1.5])
def test_temperature(heat: float) -> None:
    made = Made()
    made.tokens = made.drawn(made.logits / heat)
    assert named(made, made.scored(made.noisy(3e-3)), made.scored(made.logits / heat))[0] == "temperature on one side"


@pytest.mark.parametrize("words", [2, 4])
def test_support(words: int) -> None:
    made = Made()
    kept = made.logits.masked_fill(made.logits < made.logits.topk(words).values[..., -1:], -torch.inf)
    made.tokens = made.drawn(kept)
    assert named(made, made.scored(made.noisy(3e-3)), made.scored(kept))[0] == "top-k or top-p on one side"


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_off_by_one(share: float) -> None:
    made = Made()
    rollout = made.scored(made.noisy(3e-3))
    hit = torch.arange(SEQUENCES) < share * SEQUENCES
    rollout[hit] = rollout[hit].roll(1, dims=1)
    assert named(made, made.scored(made.logits), rollout)[0] == "off by one token"


def test_retokenised_and_wrong_sequences() -> None:
    made = Made()
    rollout, other = made.scored(made.noisy(3e-3)), made.scored(made.logits, torch.flip(made.tokens, [0]))
    from_place = torch.arange(TOKENS) >= torch.randint(2, 5, (SEQUENCES, 1), generator=made.random)
    hit = (torch.arange(SEQUENCES) % 3 == 0)[:, None]
    old = made.scored(made.logits)
    assert named(made, torch.where(hit & from_place, other, old), rollout)[0] == "retokenised text"
    few = (torch.arange(SEQUENCES) % 40 == 7)[:, None]
    assert named(made, torch.where(few, other, old), rollout)[0] == "wrong sequences"


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_placeholders_and_padding(share: float) -> None:
    made = Made()
    old, rollout = made.scored(made.logits), made.scored(made.noisy(3e-3))
    hit = torch.rand(rollout.shape, generator=made.random) < share
    assert named(made, old, rollout.masked_fill(hit, 0.0))[0] == "placeholders"
    behind = torch.arange(TOKENS) >= made.lengths[:, None] - 2
    assert named(made, old.masked_fill(behind, -7.0), rollout.masked_fill(behind, 0.0))[0] == "padding in the mask"


@pytest.mark.parametrize(
    ("size", "otherwise"), [(0.15, "quantised rollouts"), (0.4, "other weights (quantised, stale, another head)")]
)
def test_weights_that_grow_apart_are_stale_and_others_are_not(size: float, otherwise: str) -> None:
    made = Made()
    rows = torch.arange(SEQUENCES)[:, None, None] // (SEQUENCES // STEPS)
    noise = torch.randn(made.logits.shape, generator=made.random, dtype=torch.float64)
    rollout = made.scored(made.noisy(3e-3))
    assert named(made, made.scored(made.logits + size * rows / STEPS * noise), rollout)[0] == "stale weights"
    assert named(made, made.scored(made.logits + size * noise), rollout)[0] == otherwise


def test_a_few_sequences_that_agree_at_first_are_wrong_ones() -> None:
    """Too few to be a way of handling text, wherever they break off."""
    made = Made()
    rollout, other = made.scored(made.noisy(3e-3)), made.scored(made.logits, torch.flip(made.tokens, [0]))
    hit = (torch.arange(SEQUENCES) % 60 == 7)[:, None] & (torch.arange(TOKENS) >= 2)
    assert named(made, torch.where(hit, other, made.scored(made.logits)), rollout)[0] == "wrong sequences"


def test_experts_that_flip_make_no_wrong_sequence() -> None:
    """Two tokens of one sequence, a few tenths of a nat each, and nothing else beyond rounding."""
    made = Made()
    rollout = made.scored(made.noisy(3e-3))
    flipped = rollout.clone()
    flipped[7, :2] -= 0.3
    assert "wrong sequences" not in named(made, made.scored(made.logits), flipped)
    flipped[7, :4] -= 3.0
    assert named(made, made.scored(made.logits), flipped)[0] == "wrong sequences"


def test_faults_of_a_model_that_rounds_loudly() -> None:
    """bfloat16 of a model with large logits, five times what the embedded one makes: the faults have their names."""
    made = Made()
    loud = 0.06
    kept = made.logits.masked_fill(made.logits < made.logits.topk(3).values[..., -1:], -torch.inf)
    noisy = kept + made.noisy(loud) - made.logits
    made.tokens = made.drawn(kept)
    assert named(made, made.scored(made.logits), made.scored(noisy))[0] == "top-k or top-p on one side"

    made = Made()
    old, rollout = made.scored(made.logits), made.scored(made.noisy(loud))
    assert named(made, old, rollout) == ["rounding"]
    part = torch.rand(rollout.shape, generator=made.random)
    mixed = torch.where(part < 0.5, made.scored(made.noisy(30.0)), rollout)
    assert named(made, old, mixed)[0] == "log-probs of two models (speculative decoding)"
    half = (torch.arange(SEQUENCES) % 2 == 0)[:, None]
    assert named(made, old, torch.where(half, rollout.roll(1, dims=1), rollout))[0] == "off by one token"


def test_a_policy_that_is_sure_by_itself_holds_no_placeholders() -> None:
    """A model that collapsed gives some tokens a log-prob that rounds to 0, and others nearly."""
    made = Made()
    rollout = made.scored(made.noisy(3e-3))
    sure = -torch.rand(rollout.shape, generator=made.random, dtype=torch.float64) * 1e-5
    old = torch.where(sure > -2e-6, 0.0, sure)
    assert "placeholders" not in named(made, old, rollout)
    assert named(made, torch.where(sure > -2e-6, 0.0, made.scored(made.logits)), rollout)[0] == "placeholders"


def test_two_models_and_a_few_tokens_far_out() -> None:
    made = Made()
    old, rollout = made.scored(made.logits), made.scored(made.noisy(3e-3))
    draft = made.scored(made.noisy(1.5))
    part = torch.rand(rollout.shape, generator=made.random)
    found = named(made, old, torch.where(part < 0.4, draft, rollout))[0]
    assert found == "log-probs of two models (speculative decoding)"
    found = named(made, old, torch.where(part < 0.02, draft, rollout))[0]
    assert found == "a few tokens far out (routing of experts)"


def test_other_prompt() -> None:
    """Differences that fade with the distance from it."""
    made = Made()
    noise = torch.randn(made.logits.shape, generator=made.random, dtype=torch.float64)
    fading = 1.5 * torch.exp(-torch.arange(TOKENS, dtype=torch.float64))[:, None]
    old = made.scored(made.logits + fading * noise)
    assert named(made, old, made.scored(made.noisy(1e-2)))[0] == "another prompt (chat template)"


def test_no_pattern_and_too_few_tokens() -> None:
    made = Made()
    rollout = made.scored(made.noisy(3e-3))
    old = made.scored(made.logits, torch.flip(made.tokens, [0, 1]))  # nothing agrees anywhere
    assert set(named(made, old, rollout)) <= {
        NONE,
        "other weights (quantised, stale, another head)",
        "quantised rollouts",
    }
    dump = made.dump(made.scored(made.logits), rollout)
    part = Dump(
        {name: values[:50] for name, values in dump.tokens.items()}, np.array([50]), np.array([0]), None, 1, str
    )
    (cause,) = causes(part)
    assert (cause.name, cause.confidence) == (NONE, 0.0)
