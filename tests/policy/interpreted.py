"""What the Triton kernels compute, on any device: the cases of ``test_kernels.py``, run and written to a file.

    TRITON_INTERPRET=1 python -m tests.policy.interpreted cpu FILE

A process of its own, because Triton reads that variable when kernels are defined.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from alp.policy import LayerwisePerturbation, kernels, noise
from alp.policy.streams import RowNames, channel_words

from .models import Batch, collate, gradients, qwen2


@dataclass(frozen=True)
class Case:
    """One call: its size, and the fields of the names that reach into every word of the counter."""

    rows: int
    channels: int
    dtype: torch.dtype = torch.float32
    seed: int = (7 << 32) + 0xFFFFFFF1
    update: int = 3
    layer: int = 2

    def names(self, device: torch.device) -> RowNames:
        """Sequence ids up to 48 bits, positions up to 32, a few of them alike."""
        generator = torch.Generator().manual_seed(self.rows)
        ids = torch.randint(1 << 48, (self.rows,), generator=generator)
        positions = torch.randint(1 << 32, (self.rows,), generator=generator)
        ids[: self.rows // 2] %= 3
        positions[: self.rows // 2] = torch.arange(self.rows // 2)
        return RowNames(self.seed, self.update, self.layer, torch.stack([ids, positions]).to(device))

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden state and gradient (rows, channels) of the dtype, log σ, and which rows count."""
        generator = torch.Generator().manual_seed(self.channels)
        hidden, grad = 3 * torch.randn(2, self.rows, self.channels, generator=generator)
        valid = torch.rand(self.rows, generator=generator) < 0.8
        log_std = torch.tensor(-1.7)
        return hidden.to(device, self.dtype), grad.to(device, self.dtype), log_std.to(device), valid.to(device)


CASES = [
    Case(5, 1),
    Case(6, 2, seed=1, update=1, layer=1),  # what Triton makes constants of, unless told not to
    Case(4, 7, torch.bfloat16, update=0, layer=0),
    Case(9, 96, seed=0, update=(1 << 32) - 1, layer=(1 << 16) - 1),
    Case(8, 97, torch.bfloat16, seed=(1 << 64) - 1),
    Case(3, 576, torch.float16),
    Case(3, 2500),  # five rounds of the loop over channels, the last partly filled
    Case(2, 4097, torch.bfloat16),
]


FORMS = [(False, True), (True, False), (True, True)]  # relative, narrow; the fourth form is a case's own sum
UPDATES = [(checkpointing, scale) for scale in ("absolute", "relative") for checkpointing in (False, True)]


@triton.jit(do_not_specialize=["seed_low", "seed_high", "update", "layer"])
def _words(names, words, found, count, seed_low, seed_high, update, layer, HALF: tl.constexpr, WIDTH: tl.constexpr):
    """The key of each row, and the words of its channels."""
    row = tl.cast(tl.program_id(0), tl.int64)
    sequence, position = tl.load(names + row), tl.load(names + count + row)
    a, b, c, d = kernels.row_key(position, sequence, layer, update, seed_low, seed_high)
    at = found + row * (4 + 2 * HALF)
    tl.store(at, a)
    tl.store(at + 1, b)
    tl.store(at + 2, c)
    tl.store(at + 3, d)
    column = tl.arange(0, WIDTH)
    inside = column < HALF
    for last in tl.static_range(2):
        word = tl.load(words + last * HALF + column, mask=inside, other=0)
        tl.store(at + 4 + last * HALF + column, kernels.hashed(word, a, b, d if last else c), mask=inside)


def run(case: Case, device: torch.device) -> dict[str, Tensor]:
    """Keys and words, normals, sum, squares and dot products of one case, on the CPU."""
    names = case.names(device)
    hidden, grad, log_std, valid = case.inputs(device)
    half = (case.channels + 1) // 2
    words = torch.empty(case.rows, 4 + 2 * half, dtype=torch.int32, device=device)
    table = channel_words(half, device)
    _words[(case.rows,)](
        names.rows, table, words, *kernels._scalars(names), HALF=half, WIDTH=triton.next_power_of_2(half)
    )
    drawn, result = torch.empty_like(hidden, dtype=torch.float32), torch.empty_like(hidden)
    kernels.add(torch.zeros_like(drawn), torch.ones_like(log_std), names, valid, drawn)
    squares = kernels.add(hidden, log_std.exp(), names, valid, result)
    found = {"words": words, "normals": drawn, "sum": result, "squares": squares, "dots": kernels.dots(grad, names)}
    found["narrow dots"] = kernels.dots(grad, names, narrow=True)
    for relative, narrow in FORMS:
        name = f"{'relative' if relative else 'absolute'} {'narrow' if narrow else 'wide'}"
        std = log_std.to(case.dtype).exp().float() if narrow else log_std.exp()
        result, sizes = torch.empty_like(hidden), torch.empty_like(drawn[:, 0]) if relative else None
        found[f"{name} squares"] = kernels.add(hidden, std, names, valid, result, sizes, narrow=narrow)
        found[f"{name} sum"] = result
        if sizes is not None:
            found[f"{name} sizes"] = sizes
    return {name: value.cpu() for name, value in found.items()}


def model_update(device: torch.device, checkpointing: bool, scale: str = "absolute") -> dict[str, Tensor]:
    """Gradients of weights and scales of a perturbed model, and what its layers got, on the CPU."""
    model, batch = qwen2(layers=2).to(device), collate(range(4), side="left")
    batch = Batch(*(value.to(device) for value in vars(batch).values()))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    perturbation = LayerwisePerturbation(model, scale=scale, std=0.2)
    weights, trained = gradients(model, perturbation, [batch])
    found = {"weights": weights, "scales": trained, "rms": perturbation.realised_rms, "there": perturbation.hidden_rms}
    found["sizes"] = perturbation.mean_std
    return {name: value.cpu() for name, value in found.items()}


def everything(device: torch.device) -> dict[str, list[dict[str, Tensor]]]:
    """All of it."""
    kernels.trial(device)
    return {
        "cases": [run(case, device) for case in CASES],
        "updates": [model_update(device, *form) for form in UPDATES],
    }


if __name__ == "__main__":
    noise.device_kernels = lambda _: kernels  # type: ignore[assignment]  # on a CPU too: interpreted
    torch.save(everything(torch.device(sys.argv[1])), sys.argv[2])
