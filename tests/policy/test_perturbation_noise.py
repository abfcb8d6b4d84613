"""The noise itself: what it depends on, its precision, its distribution and its independence.

False-alarm rate of the statistical tests: every figure below is standardised to a normal variable and compared with 6
(two-sided 2e-9 each), some 500 figures in all, so a correct generator fails with probability below 1e-6; the draws are
keyed, so a test that passes once passes always.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alp.policy import LayerwisePerturbation, sharpness

from .models import (
    BUILDERS,
    LAYERS,
    VOCABULARY,
    Batch,
    active,
    both_scales,
    collate,
    gpt2,
    gradients,
    injected,
    logits_of,
    nudge,
    probe,
    relative_gap,
)

LIMIT = 6.0
ROWS, TOKENS, CHANNELS = 16, 86, 64


def grid(sequence_ids: list[int], tokens: int = TOKENS) -> Batch:
    """A rectangular batch without padding under these sequence ids."""
    shape = (len(sequence_ids), tokens)
    ids = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones(shape, dtype=torch.long), torch.tensor(sequence_ids), torch.zeros(shape))


def draws(batch: Batch, *, seed: int = 0, update: int = 5) -> Tensor:
    """epsilon of all layers, (layers, batch, tokens, hidden), in float64 at sigma = 1."""
    model = gpt2(hidden=CHANNELS)
    noise = injected(model, LayerwisePerturbation(model, std=1.0, seed=seed), batch, update)
    return torch.stack([noise[layer] for layer in range(LAYERS)])


@pytest.fixture(scope="module")
def sample() -> Tensor:
    """epsilon over seeds, updates, layers, sequences, positions, channels: (2, 2, 3, 16, 86, 64), 1.06e6 draws."""
    batch = grid(list(range(ROWS)))
    return torch.stack([torch.stack([draws(batch, seed=s, update=u) for u in (0, 1)]) for s in (0, 1)])


def test_moments(sample: Tensor) -> None:
    """Uniform, truncated, mis-scaled or shifted noise."""
    x, n = sample.flatten(), sample.numel()
    assert n >= 1_000_000
    assert abs(float(x.mean())) * math.sqrt(n) < LIMIT
    assert abs(float((x**2).mean()) - 1) * math.sqrt(n / 2) < LIMIT
    assert abs(float((x**3).mean())) * math.sqrt(n / 15) < LIMIT
    assert abs(float((x**4).mean()) - 3) * math.sqrt(n / 96) < LIMIT
    for layer in range(LAYERS):
        part = sample[:, :, layer].flatten()
        kurtosis = float((part**4).mean() / (part**2).mean() ** 2)
        assert abs(kurtosis - 3) * math.sqrt(part.numel() / 24) < LIMIT, layer


def test_distribution_and_tails(sample: Tensor) -> None:
    """Kolmogorov-Smirnov against the normal, and the counts beyond 3 and 4 that a clipped generator lacks."""
    x, n = sample.flatten().sort().values, sample.numel()
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    ranks = torch.arange(n, dtype=torch.float64)
    distance = torch.maximum((cdf - ranks / n).abs(), ((ranks + 1) / n - cdf).abs()).max()
    assert float(distance) * math.sqrt(n) < 3.3  # 2 exp(-2 x^2) = 7e-10
    for edge in (3.0, 4.0):
        p = math.erfc(edge / math.sqrt(2))
        assert abs(int((x.abs() > edge).sum()) - n * p) / math.sqrt(n * p * (1 - p)) < LIMIT, edge


def shifted(sample: Tensor, axis: int, lag: int) -> tuple[Tensor, Tensor]:
    """Pairs of draws that lie `lag` apart along one axis."""
    size = sample.shape[axis]
    return sample.narrow(axis, 0, size - lag), sample.narrow(axis, lag, size - lag)


AXES = ("seed", "update", "layer", "sequence", "position", "channel")
LAGS = [(axis, lag) for axis, size in zip(AXES, (2, 2, 3, ROWS, 40, CHANNELS), strict=True) for lag in range(1, size)]


def test_no_correlation_along_any_axis(sample: Tensor) -> None:
    """Draws, or their squares, that follow those of another key field at any lag: shared or overlapping streams."""
    for axis, lag in LAGS:
        a, b = shifted(sample, AXES.index(axis), lag)
        n = a.numel()
        assert abs(float((a * b).mean())) * math.sqrt(n) < LIMIT, (axis, lag)
        assert abs(float(((a**2 - 1) * (b**2 - 1)).mean())) * math.sqrt(n) / 2 < LIMIT, (axis, lag)


def test_no_correlation_between_diagonal_neighbours(sample: Tensor) -> None:
    """Key fields that are added up: seed + layer, update + sequence, position + channel give one another's draws."""
    for first, second in itertools.combinations(range(len(AXES)), 2):
        for way in (1, -1):
            a, b = shifted(sample, first, 1)
            size = sample.shape[second]
            a, b = (a, b) if way == 1 else (b, a)
            x, y = a.narrow(second, 0, size - 1), b.narrow(second, 1, size - 1)
            assert abs(float((x * y).mean())) * math.sqrt(x.numel()) < LIMIT, (AXES[first], AXES[second], way)


def test_wide_rows() -> None:
    """Channels of one long row (the logits of a large vocabulary) that repeat or follow one another."""
    width, model = 16_384, gpt2(torch.float32, vocabulary=16_384)
    batch = grid(list(range(8)), 8)
    with torch.no_grad():
        plain = logits_of(model, batch)
        # Far above the size of the logits: rounding to float32 is far below the limits of this test.
        perturbation = LayerwisePerturbation(model, layers="logits", std=1e3, std_max=1e3)
        with active(perturbation, batch):
            x = ((logits_of(model, batch) - plain).double() / 1e3).view(64, width)
    n = x.numel()
    assert n >= 1_000_000
    assert abs(float((x**2).mean()) - 1) * math.sqrt(n / 2) < LIMIT
    assert abs(float((x**4).mean()) - 3) * math.sqrt(n / 96) < LIMIT
    for lag in [*range(1, 33), *(2**k for k in range(6, 14)), width // 2 - 1, width // 2 + 1]:
        a, b = x[:, :-lag], x[:, lag:]
        assert abs(float((a * b).mean())) * math.sqrt(a.numel()) < LIMIT, lag
        assert abs(float(((a**2 - 1) * (b**2 - 1)).mean())) * math.sqrt(a.numel()) / 2 < LIMIT, lag
    rows = (x @ x.T / math.sqrt(width)).fill_diagonal_(0.0)
    assert float(rows.abs().max()) < LIMIT + 1


def test_every_key_has_its_own_draws() -> None:
    """Fields truncated to 32 bits or packed so that two keys meet: no value may appear twice among distinct keys."""
    ids = [0, 1, 2, 255, 65_536, 2**31, 2**32, 2**32 + 1, 2**33 + 2, 2**40]
    first = [
        draws(grid(ids, 12), seed=seed, update=update)[..., :4]
        for seed, update in itertools.product((0, 1, 2, 2**31, 2**32, 2**32 + 1), (0, 1, 2, 3, 255, 65_536, 2**20))
    ]
    values = torch.stack(first).flatten(0, -2)
    rounded = (values * 1e9).round().long()
    assert len(set(map(tuple, rounded.tolist()))) == len(rounded)


def test_layer_number_is_the_key_not_the_rank_in_the_selection() -> None:
    """A selection whose layers take the noise of the first layers of `all`."""
    batch = collate([0, 1, 2])
    model = gpt2()
    everywhere = LayerwisePerturbation(model, std=0.5, seed=4)
    full = injected(model, everywhere, batch)
    everywhere.detach()
    for layers in ([2], [0, 2], (1, 3), "late"):
        some = LayerwisePerturbation(model, layers=layers, std=0.5, seed=4)
        for layer, noise in injected(model, some, batch).items():
            if noise.any():
                assert relative_gap(noise, full[layer]) < 1e-13, (layers, layer)
        some.detach()


def test_other_scales_same_draw() -> None:
    """Draws that change with sigma: the noise of each layer is sigma times the same epsilon."""
    batch, model = collate([0, 1, 2]), gpt2()
    perturbation = LayerwisePerturbation(model, std=0.1)
    before = injected(model, perturbation, batch)
    for index in range(LAYERS):
        nudge(perturbation, index, math.log(2.0 + index))
    after = injected(model, perturbation, batch)
    for layer in range(LAYERS):
        assert relative_gap(after[layer], (2.0 + layer) * before[layer]) < 1e-12, layer


@both_scales
def test_padding_side_and_missing_mask(scale: str) -> None:
    """Position = number of real tokens before: left, right, wide and no padding, and no mask at all, agree."""
    model = gpt2()
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.5)

    def real(batch: Batch) -> Tensor:
        return torch.stack(
            [noise[batch.attention_mask.bool()] for noise in injected(model, perturbation, batch).values()]
        )

    numbers = [0, 1, 2, 3]
    expected = real(collate(numbers))
    for other in (collate(numbers, side="left"), collate(numbers, side="left", width=14), collate(numbers, width=12)):
        assert relative_gap(real(other), expected) < 1e-12
    full = grid([5, 6], 7)
    with_mask = real(full)
    with torch.no_grad(), probe(model) as seen, perturbation.active(update=5, sequence_ids=full.sequence_ids):
        logits_of(model, full)
    without = torch.stack([seen.noise(layer).flatten(0, 1) for layer in range(LAYERS)])
    assert torch.equal(without, with_mask)


@both_scales
def test_packed_rows_get_the_noise_of_unpacked_ones(scale: str) -> None:
    """Several sequences in one row: keys per token, whatever the place in the row."""
    model = gpt2()
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.5)
    alone = grid([40, 41, 42], 6)
    with torch.no_grad(), probe(model) as seen, active(perturbation, alone):
        logits_of(model, alone)
    expected = {layer: seen.noise(layer) for layer in range(LAYERS)}
    sizes = [4, 6, 3]
    sequence_ids = torch.tensor([[40] * 4 + [41] * 6 + [42] * 3])
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    ids = torch.cat([alone.ids[i, :size] for i, size in enumerate(sizes)])[None]
    own = (sequence_ids.mT == sequence_ids) & torch.ones(sum(sizes), sum(sizes)).tril().bool()
    mask = torch.zeros(own.shape, dtype=torch.float64).masked_fill(~own, torch.finfo(torch.float64).min)[None, None]
    context = perturbation.active(update=5, sequence_ids=sequence_ids, positions=positions)
    with torch.no_grad(), probe(model) as seen, context:
        model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    for layer in range(LAYERS):
        wanted = torch.cat([expected[layer][i, :size] for i, size in enumerate(sizes)])
        assert relative_gap(seen.noise(layer)[0], wanted) < 1e-12, layer


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_bfloat16_noise_is_added_in_float32(name: str) -> None:
    """Noise rounded to bf16 before the sum: the sum itself must be the float32 sum, rounded once."""
    batch = grid(list(range(8)), 40)
    exact = BUILDERS[name](torch.float32)
    noise = injected(exact, LayerwisePerturbation(exact, std=0.7), batch)
    model = BUILDERS[name](torch.bfloat16)
    perturbation = LayerwisePerturbation(model, std=0.7)
    with torch.no_grad(), probe(model) as seen, active(perturbation, batch):
        logits_of(model, batch)
    for layer in range(LAYERS):
        assert seen.after[layer].dtype == torch.bfloat16
        expected = (seen.before[layer].float() + noise[layer]).bfloat16()
        assert float((expected == seen.after[layer]).float().mean()) > 0.995, layer
    weights, trained = gradients(model, perturbation, [collate([0, 1])])
    assert weights.isfinite().all()
    assert trained.dtype != torch.bfloat16
    assert trained.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1e-2, 1e-1, 1.0])
def test_realised_rms_is_the_scale(dtype: torch.dtype, share: float) -> None:
    """sigma within 2 % where it is at least 1e-2 of the hidden RMS, over 2e5 elements a layer."""
    batch, model = grid(list(range(64)), 100), gpt2(dtype)
    with torch.no_grad(), probe(model) as seen:
        logits_of(model, batch)
    std = share * float(seen.before[0].double().square().mean().sqrt())
    perturbation = LayerwisePerturbation(model, layers=[0], std=std, std_max=10.0)
    with torch.no_grad(), probe(model) as seen, active(perturbation, batch):
        logits_of(model, batch)
    realised = torch.as_tensor(perturbation.realised_rms).double()
    assert realised.shape == (1,)
    assert abs(float(realised[0]) / std - 1) < 0.02
    assert float(realised[0]) == pytest.approx(float(seen.noise(0).double().square().mean().sqrt()), rel=1e-4)


def test_realised_rms_shows_noise_lost_to_rounding() -> None:
    """sigma = 1e-6 under a bf16 stream changes almost nothing: the logged figure must say so, not repeat sigma."""
    batch, model = grid(list(range(16)), 100), gpt2(torch.bfloat16)
    perturbation = LayerwisePerturbation(model, std=1e-6)
    with torch.no_grad(), probe(model) as seen, active(perturbation, batch):
        logits_of(model, batch)
    realised = torch.as_tensor(perturbation.realised_rms).double()
    for layer in range(LAYERS):
        assert float((seen.noise(layer) != 0).float().mean()) < 0.01
        assert float(realised[layer]) < 0.5e-6
        assert float(realised[layer]) == pytest.approx(float(seen.noise(layer).square().mean().sqrt()), rel=1e-3)


def test_sharpness_is_the_mean_change_under_one_percent_noise() -> None:
    """A wrong scale, padding that counts, or a probe that stays on the model."""
    batch, model = collate(list(range(16))), gpt2()
    valid = batch.attention_mask[:, 1:].bool()

    def log_probs() -> Tensor:
        every = logits_of(model, batch)[:, :-1].log_softmax(-1)
        return every.gather(-1, batch.ids[:, 1:, None]).squeeze(-1)

    with torch.no_grad(), probe(model) as seen:
        plain = log_probs()
    real = batch.attention_mask.bool()
    sizes = [float(seen.before[layer][real].square().mean().sqrt()) for layer in range(LAYERS)]
    perturbation = LayerwisePerturbation(model, std=1.0, std_max=100.0)
    for layer, size in enumerate(sizes):
        nudge(perturbation, layer, math.log(1e-2 * size))
    changes = []
    for update in range(20):
        with torch.no_grad(), active(perturbation, batch, update):
            changes.append(float((log_probs() - plain).abs()[valid].mean()))
    perturbation.detach()
    figure = sharpness(model, log_probs, valid, sequence_ids=batch.sequence_ids, attention_mask=batch.attention_mask)
    centre = sum(changes) / len(changes)
    spread = math.sqrt(sum((x - centre) ** 2 for x in changes) / (len(changes) - 1))
    assert abs(figure - centre) < 5 * spread
    assert 5 * spread < centre
    assert torch.equal(log_probs(), plain)


Breaker = Callable[[LayerwisePerturbation, Batch], Any]
BREAKERS: dict[str, tuple[str, Breaker]] = {
    "batch": ("sequence_ids", lambda p, b: p.active(update=1, sequence_ids=b.sequence_ids[:2])),
    "three axes": ("sequence_ids", lambda p, b: p.active(update=1, sequence_ids=b.ids[None])),
    "packed alone": ("positions", lambda p, b: p.active(update=1, sequence_ids=b.ids)),
    "floats": ("sequence_ids", lambda p, b: p.active(update=1, sequence_ids=b.sequence_ids.float())),
    "mask": (
        "attention_mask",
        lambda p, b: p.active(update=1, sequence_ids=b.sequence_ids, attention_mask=b.attention_mask[:, :3]),
    ),
}


@pytest.mark.parametrize("what", sorted(BREAKERS))
def test_bad_context_is_refused(what: str) -> None:
    """Keys that broadcast to a batch they were not made for, named in the error."""
    model, batch = gpt2(), collate([0, 1, 2, 3])
    perturbation = LayerwisePerturbation(model, std=0.1)
    name, enter = BREAKERS[what]
    with pytest.raises(ValueError, match=name), enter(perturbation, batch):
        logits_of(model, batch)
