"""The Triton kernels against the CPU's stream: their source on numpy, interpreted, compiled, and on a GPU.

Where Triton is not installed, or too old, only the first of the four runs; where there is no GPU, all but the last.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import alp.policy.noise
from alp.policy import LayerwisePerturbation
from alp.policy.noise import AddNoise, device_kernels
from alp.policy.streams import Normals, channel_words, row_keys

from .models import both_scales, collate, gradients, qwen2, relative_gap

CPU = torch.device("cpu")
SOURCE = Path(alp.policy.noise.__file__).with_name("kernels.py")
OLDEST = (3, 1)  # Triton 3.0, which came with torch 2.4, does not compile them: torch draws there


def _triton() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    try:
        found = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "Triton is not installed"
    if tuple(map(int, found.split(".")[:2])) < OLDEST:
        return f"Triton {found} is too old for the kernels"
    return None


needs_triton = pytest.mark.skipif(_triton() is not None, reason=_triton() or "")
CLOSE = 1e-6  # between normals on two kinds of device


def as_is(function: Any = None, **_: Any) -> Any:
    """``triton.jit`` that leaves Python."""
    return function or as_is


def cast(value: Any, dtype: Any, bitcast: bool = False) -> Any:
    """``tl.cast`` on numpy."""
    value = np.asarray(value)
    return value.view(dtype) if bitcast else value.astype(dtype)


@pytest.fixture(scope="module")
def on_numpy() -> ModuleType:
    """``kernels.py`` with numpy in the place of Triton's language."""
    language = SimpleNamespace(
        cast=cast,
        constexpr=lambda value: value,
        floor=np.floor,
        sqrt_rn=np.sqrt,
        static_range=range,
        umulhi=lambda a, b: ((a.astype(np.uint64) * np.uint64(b)) >> np.uint64(32)).astype(np.uint32),
        where=np.where,
        **{name: getattr(np, name) for name in ("float32", "int32", "int64", "uint32")},
    )
    text = SOURCE.read_text(encoding="utf-8")
    text = text.replace("import triton.language as tl\n", "").replace("import triton\n", "")
    module = ModuleType("alp.policy.kernels_on_numpy")
    module.__package__ = "alp.policy"
    module.__dict__.update(tl=language, triton=SimpleNamespace(jit=as_is))
    exec(compile(text, str(SOURCE), "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("seed", [0, 1, 1 << 32, (1 << 64) - 1, 0x0123456789ABCDEF])
def test_the_source_makes_the_keys_and_words_of_the_stream(on_numpy: ModuleType, seed: int) -> None:
    """The integer part, without Triton: a word that differs in one bit is other noise on a GPU than on a CPU."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1 << 48, (500,), generator=generator)
    positions = torch.randint(1 << 32, (500,), generator=generator)
    for update, layer in ((0, 0), (1, 1), (77, 12), ((1 << 32) - 1, (1 << 16) - 1)):
        keys = row_keys(seed, update, ids, positions, layer)
        fields = (np.array([value]) for value in (layer, update, seed & 0xFFFFFFFF, seed >> 32))
        found = on_numpy.row_key(positions.numpy(), ids.numpy(), *fields)
        assert np.array_equal(np.stack(found, axis=-1), keys.numpy())
    half = 40
    a, b, c, d = (word[:, None] for word in keys.numpy().T)
    table = channel_words(half, CPU).numpy()
    words = on_numpy.hashed(table[:half], a, b, c), on_numpy.hashed(table[half:], a, b, d)
    assert all(word.dtype == np.int32 for word in words)
    found = np.concatenate(on_numpy.normal_pair(*words), axis=1)
    assert found.dtype == np.float32
    expected = Normals(2 * half, 500, CPU).draw(keys)
    assert float((torch.from_numpy(found) - expected).abs().max()) <= CLOSE
    # Other words would be other normals, not close ones.
    assert float((torch.from_numpy(found).roll(1, 1) - expected).abs().max()) > 1


def test_the_polynomials_are_good_to_a_rounding_everywhere(on_numpy: ModuleType) -> None:
    """Where a device's own functions are poor: the logarithm near 1, sine and cosine at their zeros and borders."""
    near = 1 - np.arange(1, 4000, dtype=np.float32) * np.float32(2.0**-24)
    x = np.concatenate([near, np.logspace(-62, 0, 200_000, base=2).astype(np.float32), [np.float32(1)]])
    exact = np.log(x.astype(np.float64))
    assert np.all(np.abs(on_numpy.logarithm(x) - exact) <= 1.2e-7 * np.abs(exact))
    angle = np.linspace(-math.pi, math.pi, 300_001).astype(np.float32)
    quarters = np.arange(-4, 5) * np.float32(math.pi / 4)
    angle = np.concatenate([angle, quarters, np.nextafter(quarters, np.float32(0)), [1e-9]]).astype(np.float32)
    cosine, sine = on_numpy.cosine_sine(angle)
    assert np.abs(cosine - np.cos(angle.astype(np.float64))).max() <= 1e-7
    assert np.abs(sine - np.sin(angle.astype(np.float64))).max() <= 1e-7


def test_extreme_words_make_the_normals_of_the_stream(on_numpy: ModuleType) -> None:
    """The largest radius and the smallest, at angles all around."""
    radius = np.array([0, 1, -1, 2, 1 << 30, (1 << 31) - 1, -(1 << 31), -(1 << 31) + 1], dtype=np.int32)[:, None]
    angle = np.linspace(-(1 << 31), (1 << 31) - 1, 1001).astype(np.int64).astype(np.int32)[None]
    first, second = on_numpy.normal_pair(radius, angle)
    uniform = torch.from_numpy(radius | 1).float() * 2.0**-31
    size, turn = (-(uniform * uniform).log()).sqrt(), torch.from_numpy(angle).float() * (2 * math.pi * 2.0**-32)
    assert float(size.max()) > 6.5
    for found, expected in ((first, turn.cos() * size), (second, turn.sin() * size)):
        assert float((torch.from_numpy(found) - expected).abs().max()) <= CLOSE


Found = dict[str, list[dict[str, Tensor]]]


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the kernels compute in Triton's interpreter."""
    file = tmp_path_factory.mktemp("interpreted") / "found.pt"
    subprocess.run(
        [sys.executable, "-m", "tests.policy.interpreted", "cpu", str(file)],
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    loaded: Found = torch.load(file)
    return loaded


def compare(found: Found, *, gpu: bool) -> None:
    """Every figure against the CPU's way. The interpreter cuts bfloat16 off where a GPU rounds."""
    from .interpreted import CASES, UPDATES, model_update

    for case, got in zip(CASES, found["cases"], strict=True):
        names, (hidden, grad, log_std, valid) = case.names(CPU), case.inputs(CPU)
        keys, half = names.keys(), (case.channels + 1) // 2
        a, b, c, d = keys[:, :, None].unbind(1)
        x = channel_words(half, CPU) + a
        x = (x ^ (x >> 16)) * 0x7FEB352D + b
        x = (x ^ (x >> 15)) * (0x846CA68B - (1 << 32))
        words = torch.cat([keys, x[:, :half] + c, x[:, half:] + d], dim=1)
        assert torch.equal(got["words"], words), case
        noise = Normals(case.channels, case.rows, CPU).draw(keys).clone()
        assert float((got["normals"] - noise).abs().max()) <= CLOSE, case
        expected = AddNoise.apply(hidden, log_std, names, valid, lambda: None, False)[0]
        gap = (got["sum"].float() - expected.float()).abs()
        step = torch.finfo(case.dtype).eps * expected.float().abs().maximum(hidden.float().abs())
        assert bool((gap <= step + CLOSE).all()), case
        if gpu:
            assert int((gap > CLOSE).sum()) <= gap.numel() // 50, case
        wide = hidden.double()
        added = (got["sum"].double() - wide).square().sum(-1)
        squares = torch.where(valid, torch.stack([added, wide.square().sum(-1)]), 0.0)
        assert torch.allclose(got["squares"].double(), squares, rtol=1e-5), case
        dots = (grad.double() * noise.double()).sum(-1)
        scale = grad.double().norm(dim=-1) * noise.double().norm(dim=-1)
        assert bool(((got["dots"].double() - dots).abs() <= 1e-6 * scale).all()), case
        compare_forms(case, got, hidden, grad, log_std, valid)
    for form, got in zip(UPDATES, found["updates"], strict=True):
        expected_update = model_update(CPU, *form)
        for name, value in expected_update.items():
            # There, products differ too; the gradient of the scales of relative noise is small against its terms.
            loose = 10 if (name, form[1]) == ("scales", "relative") else 1
            assert relative_gap(got[name], value) <= loose * (1e-4 if gpu else 1e-5), (name, form)


def compare_forms(
    case: Any, got: dict[str, Tensor], hidden: Tensor, grad: Tensor, log_std: Tensor, valid: Tensor
) -> None:
    """Relative and narrow noise against ``AddNoise`` on a CPU, and its sizes against the RMS in float64."""
    from .interpreted import FORMS

    names, step = case.names(CPU), torch.finfo(case.dtype).eps
    noise = Normals(case.channels, case.rows, CPU).draw(names.keys()).clone().to(case.dtype)
    dots = (grad.double() * noise.double()).sum(-1)
    scale = grad.double().norm(dim=-1) * noise.double().norm(dim=-1)
    half = case.dtype is not torch.float32
    assert bool(((got["narrow dots"].double() - dots).abs() <= (2 * step if half else 1e-6) * scale).all()), case
    for relative, narrow in FORMS:
        form = f"{'relative' if relative else 'absolute'} {'narrow' if narrow else 'wide'}"
        logs = log_std.to(case.dtype) if narrow else log_std
        expected = AddNoise.apply(hidden, logs, names, valid, lambda: None, False, relative)[0]
        found = got[f"{form} sum"].double()
        # Of narrow noise each of σ, ε and their product may be cut off where the other rounds.
        size = (expected.double() - hidden.double()).abs()
        allowed = step * expected.double().abs().maximum(hidden.double().abs()) + (4 * step * size if narrow else 0)
        assert bool(((found - expected.double()).abs() <= allowed + 4 * CLOSE).all()), (case, form)
        wide = hidden.double()
        squares = torch.stack([(found - wide).square().sum(-1), wide.square().sum(-1)])
        squares = torch.where(valid, squares, 0.0)
        assert torch.allclose(got[f"{form} squares"].double(), squares, rtol=1e-5), (case, form)
        if relative:
            sizes = logs.exp().double() * wide.square().mean(-1).sqrt()
            assert torch.allclose(got[f"{form} sizes"].double(), sizes, rtol=step if narrow else 1e-6), (case, form)


@needs_triton
def test_interpreted_kernels_are_the_stream(interpreted: Found) -> None:
    """Addresses, masks, loops and sums, and the whole of a model's update with and without checkpointing."""
    compare(interpreted, gpu=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@needs_triton
def test_kernels_on_a_gpu_are_the_stream() -> None:
    """The same on whatever card is there; and the choice falls on them."""
    from .interpreted import everything

    device = torch.device("cuda", 0)
    assert device_kernels(device) is not None
    found = everything(device)
    compare(found, gpu=True)
    again = everything(device)
    for one, two in zip(found["cases"], again["cases"], strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


@needs_triton
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_kernels_compile_for_a_gpu_that_is_not_there(
    dtype: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What only the real compiler refuses; sums are rounded to nearest and nothing approximate is left."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        pytest.skip("TRITON_INTERPRET is set: nothing would be compiled")
    from alp.policy import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    scalars = dict.fromkeys(kernels._SCALARS, "i32") | {"seed_high": "i64"}
    pointers = {"hidden": dtype, "result": dtype, "grad": dtype, "names": "i64", "valid": "i1", "words": "i32"}
    forms = [
        dict(zip(("RELATIVE", "NARROW"), form, strict=True)) for form in itertools.product([False, True], repeat=2)
    ]
    calls = [(kernels._add, 1536, form) for form in forms]
    for function, channels, form in [*calls, *((kernels._dot, 97, {"NARROW": narrow}) for narrow in (False, True))]:
        sizes = {"CHANNELS": channels, "PAIRS": kernels._pairs(channels)} | form
        types = {
            name: "constexpr" if name in sizes else scalars.get(name, "*" + pointers.get(name, "fp32"))
            for name in function.arg_names
        }
        places = {(function.arg_names.index(name),): size for name, size in sizes.items()}
        compiled = triton.compile(ASTSource(function, types, places), target=GPUTarget("cuda", 90, 32))
        text = compiled.asm["ptx"]
        assert ".approx" not in text
        if function is kernels._add and dtype == "bf16":
            assert "cvt.rn.bf16" in text


def test_torch_does_it_on_a_cpu_and_where_triton_does_not_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU without Triton: the slow way, said once, instead of a job that stops, or is slow without a word."""
    assert device_kernels(CPU) is None
    assert LayerwisePerturbation(qwen2(), std=0.1).kernel == "torch"
    monkeypatch.setitem(sys.modules, "alp.policy.kernels", None)
    monkeypatch.delattr(alp.policy, "kernels", raising=False)
    device_kernels.cache_clear()
    with caplog.at_level(logging.WARNING, logger="alp.policy.noise"):
        assert [device_kernels(torch.device("cuda", 5)) for _ in range(3)] == [None] * 3
    device_kernels.cache_clear()
    assert len(caplog.records) == 1
    assert "cuda:5 without Triton" in caplog.text


@both_scales
def test_a_step_with_kernels_is_the_step_without(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to the kernels, and what is made of their answers: rows in another order, a mask left out, σ
    twice."""
    model, batch = qwen2(), collate(range(5), side="left")
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)

    def figures() -> tuple[Tensor, ...]:
        sizes = (perturbation.realised_rms, perturbation.hidden_rms, perturbation.mean_std)
        return (*gradients(model, perturbation, [batch]), *sizes)

    figures()  # sizes are those of the forward before
    expected = figures()
    calls: list[str] = []

    def drawn(hidden: Tensor, names: Any) -> Tensor:
        return Normals(hidden.shape[1], hidden.shape[0], CPU).draw(names.keys()).clone()

    def add(
        hidden: Tensor, std: Tensor, names: Any, valid: Tensor, result: Tensor, sizes: Tensor | None, *, narrow: bool
    ) -> Tensor:
        calls.append("add")
        assert not narrow
        assert (sizes is not None) == (scale == "relative")
        if sizes is not None:
            torch.mul(hidden.square().mean(-1).sqrt(), std, out=sizes)
            std = sizes[:, None]
        torch.addcmul(hidden, drawn(hidden, names), std, out=result)
        return torch.stack([(result - hidden).square().sum(-1), hidden.square().sum(-1)]) * valid

    def dots(grad: Tensor, names: Any, *, narrow: bool) -> Tensor:
        calls.append("dots")
        assert not narrow
        return torch.linalg.vecdot(grad, drawn(grad, names))

    choose: Callable[[torch.device], Any] = lambda _: SimpleNamespace(add=add, dots=dots)  # noqa: E731
    monkeypatch.setattr(alp.policy.noise, "device_kernels", choose)
    got = figures()
    assert calls == ["add"] * 3 + ["dots"] * 3
    got = figures()
    for mine, plain in zip(got, expected, strict=True):
        assert relative_gap(mine, plain) <= 2e-6  # σ's gradients in float32, summed in another order
