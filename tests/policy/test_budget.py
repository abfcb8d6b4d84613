"""The noise budget against readings of its own: hooks that add torch's normals, a linearisation by autograd, and plain
sums in Python. Everything in float64.

Estimates are compared within 6 of their standard errors; draws are keyed, so a test that passes once passes always.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alp.policy import LayerwisePerturbation, noise_budget
from alp.policy.budget import Budget, Piece, Source, Spread, bands, spread
from alp.policy.method import Perturbation

from .models import LAYERS, Batch, active, collate, gpt2, logits_of, qwen2

SEQUENCES, LIMIT = 24, 6.0


def log_probs_of(model: Any, batch: Batch) -> Tensor:
    """log π of every token, (batch, tokens); 0 for the first."""
    chosen = logits_of(model, batch)[:, :-1].log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(chosen, (1, 0))


def mask_of(batch: Batch) -> Tensor:
    """A response: all real tokens but the first two."""
    return batch.attention_mask.bool() & (batch.attention_mask.cumsum(1) > 2)


def piece_of(model: Any, batch: Batch) -> Piece:
    return Piece(lambda: log_probs_of(model, batch), mask_of(batch), batch.sequence_ids, batch.attention_mask)


def attach_to(model: Any, *, seed: int = 0) -> Callable[[Any, list[float]], LayerwisePerturbation]:
    def attach(layers: Any, std: list[float]) -> LayerwisePerturbation:
        return LayerwisePerturbation(
            model, layers=layers, std=std, learnable=False, std_min=1e-30, std_max=1e30, seed=seed
        )

    return attach


def budget_of(model: Any, batches: list[Batch], std: list[float], *, draws: int = 8, **options: Any) -> Budget:
    pieces = [piece_of(model, batch) for batch in batches]
    return noise_budget(
        attach_to(model), pieces, layers=options.pop("layers", range(len(std))), std=std, draws=draws, **options
    )


def plainly(changes: list[list[list[float]]]) -> tuple[float, float]:
    """Population variances of tokens and of sums, of changes[draw][sequence][token], by the standard library."""
    tokens = [value for draw in changes for row in draw for value in row]
    sums = [math.fsum(row) for draw in changes for row in draw]
    return statistics.pvariance(tokens), statistics.pvariance(sums)


@given(
    st.lists(
        st.tuples(st.lists(st.booleans(), min_size=4, max_size=4), st.lists(st.floats(-3, 3), min_size=8, max_size=8)),
        min_size=1,
        max_size=5,
    ).filter(lambda rows: any(any(mask) for mask, _ in rows))
)
def test_spread_is_the_population_variance(rows: list[tuple[list[bool], list[float]]]) -> None:
    """Masked tokens and rows without a token are ignored whatever they hold, NaN too; pieces are one batch."""
    mask = torch.tensor([row for row, _ in rows])
    change = torch.tensor([values for _, values in rows], dtype=torch.float64).view(-1, 2, 4).transpose(0, 1)
    change = change.masked_fill(~mask, math.nan)
    kept = [
        [[change[draw, row, t].item() for t in range(4) if mask[row, t]] for row in range(len(rows)) if mask[row].any()]
        for draw in (0, 1)
    ]
    found, (token, sequence) = spread([change], [mask]), plainly(kept)
    assert found.token == pytest.approx(token, abs=1e-12)
    assert found.sequence == pytest.approx(sequence, abs=1e-12)
    halves = [change[:, :1], change[:, 1:]] if len(rows) > 1 else [change]
    masks = [mask[:1], mask[1:]] if len(rows) > 1 else [mask]
    again = spread(halves, masks)
    for name, value in vars(found).items():
        assert vars(again)[name] == pytest.approx(value, abs=1e-12)


def test_the_standard_error_is_that_of_repeated_batches_of_draws() -> None:
    """Of normal tokens with known variances; and a single draw has none."""
    rng = torch.Generator().manual_seed(1)
    sizes = torch.rand(40, 5, generator=rng, dtype=torch.float64) + 0.5
    mask = torch.ones(40, 5, dtype=torch.bool)

    def once() -> Spread:
        return spread([sizes * torch.randn(6, 40, 5, generator=rng, dtype=torch.float64)], [mask])

    found = [once() for _ in range(400)]
    for level in ("token", "sequence"):
        truth = statistics.stdev(getattr(item, level) for item in found)
        stated = statistics.mean(getattr(item, f"{level}_error") for item in found)
        assert stated == pytest.approx(truth, rel=0.15)
    single = spread([sizes.unsqueeze(0)], [mask])
    assert single.token_error is None
    assert single.sequence_error is None


@pytest.mark.parametrize("layer", range(LAYERS))
def test_one_layer_against_hooks_that_add_torch_s_normals(layer: int) -> None:
    """The noise reaches that layer alone, at its size, and its effect is as large as that of any other normals."""
    model, batch, std = gpt2(), collate(list(range(SEQUENCES))), 0.05
    generator, mask = torch.Generator().manual_seed(3), mask_of(batch)

    def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] + std * torch.randn(args[0].shape, generator=generator, dtype=torch.float64), *args[1:])

    with torch.no_grad():
        clean = log_probs_of(model, batch)
        handle = model.transformer.h[layer].register_forward_pre_hook(hook)
        other = spread([torch.stack([log_probs_of(model, batch) - clean for _ in range(40)])], [mask])
        handle.remove()
    source = budget_of(model, [batch], [std], layers=[layer], draws=40).sources[0]
    assert source.name == str(layer)
    assert source.realised_rms == pytest.approx(std, rel=0.05)
    for level in ("token", "sequence"):
        error = math.hypot(getattr(source.spread, f"{level}_error"), getattr(other, f"{level}_error"))
        gap = getattr(source.spread, level) - getattr(other, level)
        assert abs(gap) < LIMIT * error
        assert LIMIT * error < 2 * getattr(other, level), "the comparison can fail"


@pytest.mark.parametrize("layer", range(LAYERS))
def test_small_noise_is_sigma_squared_times_the_squared_gradient(layer: int) -> None:
    """Var Δ log π = σ² ‖∂ log π/∂h‖² to first order, per token and for the sum over a sequence."""
    model, batch, std = gpt2(), collate(list(range(8))), 1e-5
    mask, seen = mask_of(batch), {}

    def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen["hidden"] = args[0].detach().requires_grad_()
        return (seen["hidden"], *args[1:])

    handle = model.transformer.h[layer].register_forward_pre_hook(hook)
    values = log_probs_of(model, batch)
    handle.remove()

    def squared(value: Tensor) -> float:
        return float(torch.autograd.grad(value, seen["hidden"], retain_graph=True)[0].square().sum())

    by_token = [squared(values[row, place]) for row, place in mask.nonzero().tolist()]
    by_sequence = [squared(values[row][mask[row]].sum()) for row in range(len(mask)) if mask[row].any()]
    found = budget_of(model, [batch], [std], layers=[layer], draws=200).sources[0].spread
    for level, exact in (("token", by_token), ("sequence", by_sequence)):
        expected, error = std**2 * statistics.mean(exact), getattr(found, f"{level}_error")
        assert abs(getattr(found, level) - expected) < LIMIT * error
        assert LIMIT * error < 0.8 * expected


def test_small_noise_adds_up_and_large_noise_does_not() -> None:
    model, batch = gpt2(), collate(list(range(SEQUENCES)))
    small, large = (budget_of(model, [batch], [std] * LAYERS, draws=60) for std in (1e-5, 1.0))
    for level in ("token", "sequence"):
        added = small.additivity(level)
        error = getattr(small.together, f"{level}_error") / getattr(small.together, level)
        assert added == pytest.approx(1, abs=LIMIT * error)
        assert LIMIT * error < 0.8
    assert large.additivity("token") != pytest.approx(1, abs=0.1)


def test_together_is_the_noise_of_all_layers_and_shares_sum_to_one() -> None:
    """The whole is what one perturbation of every layer makes under the same keys, read by hand."""
    model, batch, std = gpt2(), collate(list(range(6))), [0.01, 0.02, 0.05]
    budget, mask = budget_of(model, [batch], std, draws=3), mask_of(batch)
    assert [source.name for source in budget.sources] == ["0", "1", "2"]
    noise = LayerwisePerturbation(model, std=std)
    changes = []
    with torch.no_grad():
        clean = log_probs_of(model, batch)
        for draw in range(3):
            with active(noise, batch, (1 << 32) - 2 - draw):
                changes.append(log_probs_of(model, batch) - clean)
    kept = [[change[row][mask[row]].tolist() for row in range(6) if mask[row].any()] for change in changes]
    token, sequence = plainly(kept)
    assert budget.together.token == pytest.approx(token, rel=1e-9)
    assert budget.together.sequence == pytest.approx(sequence, rel=1e-9)
    for level in ("token", "sequence"):
        shares = budget.shares(level)
        parts = [getattr(source.spread, level) for source in budget.sources]
        assert math.fsum(share for share in shares if share is not None) == pytest.approx(1)
        assert shares == pytest.approx([part / math.fsum(parts) for part in parts])


def test_it_repeats_whatever_the_pieces_and_leaves_nothing_behind() -> None:
    """Two forwards of four sequences are one of eight; the model and torch's random state are as they were."""
    model, whole = gpt2(), collate(list(range(8)))
    halves = [collate(list(range(4))), collate(list(range(4, 8)))]
    state, before = torch.random.get_rng_state(), log_probs_of(model, whole)
    first, again = (budget_of(model, [whole], [0.02] * LAYERS, draws=2) for _ in range(2))
    split = budget_of(model, halves, [0.02] * LAYERS, draws=2)
    assert first == again
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(log_probs_of(model, whole), before)
    assert not any(layer._forward_pre_hooks for layer in model.transformer.h)
    assert split.together.token == pytest.approx(first.together.token, rel=1e-9)
    for one, other in zip(split.sources, first.sources, strict=True):
        assert one.spread.sequence == pytest.approx(other.spread.sequence, rel=1e-9)
        assert one.hidden_rms == pytest.approx(other.hidden_rms, rel=1e-9)


def test_its_draws_are_those_of_no_update_and_not_of_the_sharpness_probe() -> None:
    """A live perturbation with the same seed may stand on the model: it stays idle, and gives other noise."""
    model, batch = gpt2(), collate(list(range(4)))
    live = LayerwisePerturbation(model, std=0.02)
    alone = budget_of(gpt2(), [batch], [0.02] * LAYERS, draws=1)
    beside = budget_of(model, [batch], [0.02] * LAYERS, draws=1)
    assert beside == alone
    with torch.no_grad():
        clean = log_probs_of(model, batch)
        for update in (0, 1, (1 << 32) - 1):
            with active(live, batch, update):
                change = log_probs_of(model, batch) - clean
            assert spread([change.unsqueeze(0)], [mask_of(batch)]).token != alone.together.token


@given(st.integers(1, 80), st.none() | st.integers(2, 12))
def test_bands_are_every_layer_once_and_the_first_alone(count: int, most: int | None) -> None:
    rows = [list(range(count))[band] for band in bands(count, most)]
    assert [row for band in rows for row in band] == list(range(count))
    assert len(rows) == (count if most is None else min(count, most))
    assert rows[0] == [0]
    sizes = {len(band) for band in rows[1:]}
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_bands_are_named_and_measured_as_one() -> None:
    model, batch = gpt2(layers=6), collate(list(range(4)))
    budget = budget_of(model, [batch], [0.02] * 6, draws=2, most=3)
    assert [source.name for source in budget.sources] == ["0", "1-2", "3-5"]
    alone = budget_of(model, [batch], [0.02] * 2, layers=[1, 2], draws=2)
    assert budget.sources[1].spread == alone.together


def test_logits_are_a_source_of_their_own() -> None:
    model, batch = qwen2(), collate(list(range(4)))
    budget = budget_of(model, [batch], [0.1], layers=["logits"], draws=2)
    assert [source.name for source in budget.sources] == ["logits"]
    assert budget.shares("token") == [1.0]
    assert budget.together == budget.sources[0].spread
    assert 0.05**2 < budget.together.token < 0.2**2, "about sqrt(2) of the logits' own noise at most"


def test_noise_that_is_lost_in_rounding_has_no_shares() -> None:
    none = Spread(0.0, 0.0, 0.0, 0.0)
    budget = Budget((Source((0,), 1.0, 0.0, none), Source((1,), 1.0, 0.0, none)), none)
    assert budget.shares("token") == [None, None]
    assert budget.additivity("token") is None


def test_settings_of_a_method_attach_as_they_say() -> None:
    settings = Perturbation(layers=[0, 2], std=0.03, learnable=False, lr=0.5)
    noise = LayerwisePerturbation.of(gpt2(), settings, seed=7)
    assert (noise.layers, noise.seed, noise.learnable) == ([0, 2], 7, False)
    assert noise.std.tolist() == pytest.approx([0.03, 0.03])
    assert LayerwisePerturbation.of(gpt2(), settings, seed=7, layers=[1], std=[0.1]).layers == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws, most"),
        ({"most": 1}, "draws, most"),
        ({"layers": [0, 1]}, "std: a size for each of 2 layers"),
        ({"layers": [5]}, "lie outside"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget_of(gpt2(), [collate([0])], [0.02], **options)


def test_no_valid_token_is_refused() -> None:
    model, batch = gpt2(), collate([0])
    empty = Piece(
        lambda: log_probs_of(model, batch), torch.zeros(1, 10).bool(), batch.sequence_ids, batch.attention_mask
    )
    with pytest.raises(ValueError, match="no valid token"):
        noise_budget(attach_to(model), [empty], layers=[0], std=[0.1], draws=2)
