"""Noise relative to the RMS of each token's hidden state, and noise held in the hidden dtype, against plain torch.

What holds for absolute noise is tested for relative noise beside it (``both_scales``). Finite differences need one
layer at a time here: the RMS of a later layer follows an earlier s, and is a constant of the gradient by definition.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from alp.policy import LayerwisePerturbation
from alp.policy.layers import decoder_layers, resolve_layers
from alp.policy.noise import AddNoise
from alp.policy.streams import Normals, RowNames, row_keys

from .cases import PROPERTY
from .models import (
    EXACT,
    LAYERS,
    Batch,
    active,
    collate,
    flat,
    gpt2,
    gradients,
    logits_of,
    loss_of,
    nudge,
    qwen2,
    relative_gap,
    scales,
)

EIGHT = list(range(8))
CPU = torch.device("cpu")
LOGITS_KEY = (1 << 16) - 1


def epsilon(batch: Batch, layer: int, channels: int, update: int = 5) -> Tensor:
    """ε of a layer, (batch, tokens, channels) float32, from the stream itself."""
    ids = batch.sequence_ids[:, None].expand(batch.ids.shape).reshape(-1)
    keys = row_keys(0, update, ids, batch.position_ids.reshape(-1), layer)
    return Normals(channels, len(keys), CPU).draw(keys).clone().view(*batch.ids.shape, channels)


class Textbook:
    """The definition by autograd: h + exp(s_l) · sg[RMS(h_t)] · ε, on decoder layers or logits."""

    def __init__(self, model: Any, layers: Any, batch: Batch, start: list[float]) -> None:
        self.logs = nn.Parameter(torch.tensor(start, dtype=torch.float64).log())
        self.batch = batch
        if layers == "logits":
            self.handles = [model.register_forward_hook(self._on_logits)]
            return
        stack = decoder_layers(model)
        self.handles = [
            stack[index].register_forward_pre_hook(self._on_layer(row, index), with_kwargs=True)
            for row, index in enumerate(resolve_layers(layers, len(stack)))
        ]

    def noisy(self, row: int, key: int, hidden: Tensor) -> Tensor:
        """The perturbed state."""
        size = hidden.detach().double().square().mean(-1, keepdim=True).sqrt()
        return hidden + self.logs[row].exp() * size * epsilon(self.batch, key, hidden.shape[-1]).double()

    def _on_layer(self, row: int, index: int) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (self.noisy(row, index, args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": self.noisy(row, index, kwargs["hidden_states"])}

        return hook

    def _on_logits(self, _: nn.Module, __: Any, output: Any) -> Any:
        output.logits = self.noisy(0, LOGITS_KEY, output.logits)
        return output

    def gradients(self, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the gradients of all weights and of s."""
        model.zero_grad()
        logits = logits_of(model, self.batch).detach()
        loss_of(model, self.batch).backward()
        for handle in self.handles:
            handle.remove()
        assert self.logs.grad is not None
        return logits, flat([p.grad for p in model.parameters() if p.grad is not None]), self.logs.grad


@pytest.mark.parametrize("name", sorted(EXACT))
@pytest.mark.parametrize("layers", ["all", "logits", "1:", [0, 2]])
@pytest.mark.parametrize("side", ["right", "left"])
def test_value_and_gradients_are_those_of_the_definition(name: str, layers: Any, side: str) -> None:
    """An RMS over the batch or the tokens, one that the gradient flows through, or one that it forgets in ∂/∂s."""
    model, batch = EXACT[name](), collate(EIGHT, side=side)
    perturbation = LayerwisePerturbation(model, layers=layers, scale="relative", std=0.1)
    for row in range(len(perturbation.layers)):
        nudge(perturbation, row, 0.3 * row)
    start = perturbation.std.tolist()
    with active(perturbation, batch):
        logits = logits_of(model, batch).detach()
    weights, trained = gradients(model, perturbation, [batch])
    perturbation.detach()
    expected = Textbook(model, layers, batch, start).gradients(model)
    real = batch.attention_mask.bool()
    assert relative_gap(logits[real], expected[0][real]) < 1e-12
    assert relative_gap(weights, expected[1]) < 1e-12
    assert relative_gap(trained, expected[2]) < 1e-12
    with torch.no_grad():
        assert relative_gap(logits[real], logits_of(model, batch)[real]) > 1e-3


@pytest.mark.parametrize("name", sorted(EXACT))
@pytest.mark.parametrize("layers", ["logits", *([layer] for layer in range(LAYERS))])
def test_gradient_of_the_scales_is_the_finite_difference(name: str, layers: Any) -> None:
    """A missing factor c or RMS, or a gradient of another draw."""
    model, batch = EXACT[name](), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, layers=layers, scale="relative", std=0.1)
    _, trained = gradients(model, perturbation, [batch])
    step, values = 1e-5, []
    for delta in (step, -2 * step):
        nudge(perturbation, 0, delta)
        with torch.no_grad(), active(perturbation, batch):
            values.append(float(loss_of(model, batch)))
    assert float(trained) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-7, abs=1e-8)


def rows_and_noise(hidden: Tensor, log_std: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """``AddNoise`` on rows (rows, channels) that are named by their number; its four results and the ε."""
    names = RowNames(3, 1, 2, torch.stack([torch.arange(len(hidden)) + 7, torch.arange(len(hidden))]))
    valid = options.pop("valid", torch.ones(len(hidden), dtype=torch.bool))
    found = AddNoise.apply(hidden[None], log_std, names, valid, lambda: None, True, options.pop("relative", True))
    noise = Normals(hidden.shape[1], len(hidden), CPU).draw(names.keys()).clone()
    return (found[0][0], *found[1:], noise)


@PROPERTY
@given(
    rows=st.integers(1, 9),
    channels=st.integers(1, 40),
    powers=st.lists(st.integers(-20, 20), min_size=9, max_size=9),
    seed=st.integers(0, 99),
)
def test_tokens_have_noise_of_their_own_size(rows: int, channels: int, powers: list[int], seed: int) -> None:
    """One size for all tokens: each token's noise follows its own RMS, whatever stands beside it."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    size = 2.0 ** torch.tensor(powers[:rows], dtype=torch.float64)[:, None]
    log_std = torch.tensor(math.log(0.3), dtype=torch.float64)
    result, added, present, mean, noise = rows_and_noise(unit * size, log_std)
    rms = (unit * size).square().mean(-1)
    expected = 0.3 * rms.sqrt()[:, None] * noise
    assert torch.allclose(result - unit * size, expected, rtol=1e-12, atol=1e-13 * float(size.max()))
    assert float(present) == pytest.approx(float(rms.mean()), rel=1e-12)
    assert float(mean) == pytest.approx(float(0.3 * rms.sqrt().mean()), rel=1e-12)
    assert float(added) == pytest.approx(float(expected.square().mean()), rel=1e-9)
    # A power of two on all rows is a power of two on all noise, to the bit.
    assert torch.equal(rows_and_noise(unit * size * 8, log_std)[0], 8 * result)


def test_a_token_without_hidden_state_has_no_noise_and_one_without_gradient_adds_none() -> None:
    """0 / 0 in a row of zeros, and NaN of padding that reaches ∂loss/∂s as 0 · NaN."""
    hidden = torch.ones(4, 6)
    hidden[1], hidden[2] = 0.0, math.nan
    hidden.requires_grad_()
    log_std = torch.tensor(-2.0, requires_grad=True)
    valid = torch.tensor([True, True, False, True])
    result, _, present, mean, noise = rows_and_noise(hidden, log_std, valid=valid)
    assert torch.equal(result[1], torch.zeros(6))
    assert float(mean) == pytest.approx(math.exp(-2) * 2 / 3)
    assert float(present) == pytest.approx(2 / 3)
    result[[0, 1, 3]].sum().backward()
    assert log_std.grad is not None
    assert float(log_std.grad) == pytest.approx(math.exp(-2) * float(noise[[0, 3]].double().sum()), rel=1e-5)
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.tensor([1.0, 1.0, 0.0, 1.0])[:, None].expand(4, 6))


def test_reported_sizes_are_c_and_what_it_makes() -> None:
    """c under the name of σ, or a mean that counts padding."""
    model, sizes = gpt2(), []
    perturbation = LayerwisePerturbation(model, scale="relative", std=0.01)
    for batch in (collate(EIGHT), collate(EIGHT, width=21), collate(EIGHT, side="left")):
        seen: dict[int, Tensor] = {}

        def keep(layer: int, _: nn.Module, args: Any, kwargs: Any, seen: dict[int, Tensor] = seen) -> None:
            seen[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

        handles = [
            module.register_forward_pre_hook(
                lambda *given, layer=layer: keep(layer, *given), with_kwargs=True, prepend=True
            )
            for layer, module in enumerate(model.transformer.h)
        ]
        with torch.no_grad(), active(perturbation, batch):
            logits_of(model, batch)
        for handle in handles:
            handle.remove()
        real = batch.attention_mask.bool()
        expected = [0.01 * float(seen[layer][real].square().mean(-1).sqrt().mean()) for layer in range(LAYERS)]
        assert perturbation.mean_std.tolist() == pytest.approx(expected, rel=1e-12)
        assert perturbation.std.tolist() == pytest.approx([0.01] * LAYERS)
        sizes.append(perturbation.mean_std)
    assert sizes[0].tolist() == pytest.approx(sizes[1].tolist(), rel=1e-12)
    assert sizes[0].max() > 2 * sizes[0].min(), "layers of this model differ in size"
    plain = LayerwisePerturbation(model := qwen2(), std=0.02)
    assert not plain.mean_std.any(), "before a forward"
    with torch.no_grad(), active(plain, collate(EIGHT)):
        logits_of(model, collate(EIGHT))
    assert torch.equal(plain.mean_std, plain.std)


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hidden_dtype_rounds_every_step(dtype: torch.dtype, relative: bool) -> None:
    """log σ, σ_t, ε, their product and the sum in the hidden dtype, bit for bit, and ∂/∂s with those ε and σ_t."""
    generator = torch.Generator().manual_seed(4)
    hidden = (3 * torch.randn(40, 33, generator=generator)).to(dtype).requires_grad_()
    log_std = torch.tensor(-1.7, dtype=dtype, requires_grad=True)
    result, added, _, _, noise = rows_and_noise(hidden, log_std, relative=relative)
    size = log_std.detach().exp().expand(40, 1)
    if relative:
        size = (size.float() * hidden.detach().float().square().mean(-1, keepdim=True).sqrt()).to(dtype)
    product = size * noise.to(dtype)
    expected = hidden.detach() + product
    assert result.dtype is dtype
    assert float((result == expected).float().mean()) > (0.99 if relative else 1 - 1e-9)  # of RMS the last bit is free
    assert float(added) == pytest.approx(float((expected.float() - hidden.detach().float()).square().mean()), rel=1e-3)
    gradient = torch.randn(40, 33, generator=generator).to(dtype)
    result.backward(gradient)
    slope = (gradient.double() * noise.to(dtype).double() * size.double()).sum()
    assert log_std.grad is not None
    assert log_std.grad.dtype is dtype
    assert float(log_std.grad) == pytest.approx(float(slope), rel=2 * torch.finfo(dtype).eps)
    wide = rows_and_noise(hidden.detach(), log_std.detach().float(), relative=relative)[0]
    assert not torch.equal(wide, result.detach())


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hidden_dtype_of_a_wide_model_is_wide(dtype: torch.dtype, scale: str) -> None:
    """Other rounding where there is nothing to round to."""
    model, batch, found = gpt2(dtype), collate(EIGHT), []
    for held in ("wide", "hidden"):
        perturbation = LayerwisePerturbation(model, scale=scale, std=0.1, dtype=held)
        found.append(gradients(model, perturbation, [batch]))
        perturbation.detach()
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_bfloat16_log_sigma_moves_in_its_steps(scale: str) -> None:
    """A log σ that is held in float32 after all: near log 1e-6 bfloat16 knows nothing finer than 0.0625."""
    model, batch = qwen2(torch.bfloat16), collate(EIGHT)
    perturbation = LayerwisePerturbation(model, scale=scale, std=1e-6, dtype="hidden")
    (logs,) = scales(perturbation)
    assert logs.dtype is torch.bfloat16
    before = logs.detach().double()
    for delta in (0.02, 0.04):
        nudge(perturbation, 0, delta)
    assert float(logs.detach().double()[0] - before[0]) == 0.0625
    weights, trained = gradients(model, perturbation, [batch])
    assert weights.isfinite().all()
    assert trained.dtype is torch.bfloat16
    perturbation.project_()
    assert float(perturbation.std.double().max()) < 2e-6
    assert LayerwisePerturbation(model, scale=scale, std=1e-6).state_dict()["log_std"].dtype is torch.float32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": "relativ"}, "scale: unknown 'relativ'; did you mean 'relative'"),
        ({"dtype": "half"}, "dtype: unknown"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, Any], says: str) -> None:
    """Absolute noise under a misspelt name."""
    with pytest.raises(ValueError, match=says):
        LayerwisePerturbation(gpt2(), **options)


def test_a_state_of_the_other_scale_is_refused() -> None:
    """c taken for σ."""
    absolute, relative = (LayerwisePerturbation(gpt2(), scale=scale, std=0.2) for scale in ("absolute", "relative"))
    with pytest.raises(ValueError, match="state: of scale relative, not absolute"):
        absolute.load_state_dict(relative.state_dict())
    with pytest.raises(ValueError, match="state: of scale absolute, not relative"):
        relative.load_state_dict(absolute.state_dict())
    assert "scale" not in absolute.state_dict()
    relative.load_state_dict(relative.state_dict())
