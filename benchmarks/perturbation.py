"""Cost of the layerwise noise in an update: time and peak memory without it, with ours, and the textbook way.

    python -m benchmarks.perturbation                    three sizes on a CPU; at the shape of Qwen2.5-1.5B too where
    there is a GPU python -m benchmarks.perturbation --sizes embedded   one of them

An update is forward, log-probs, ratio, loss, backward and optimizer step. The three ways take turns, round by round, on
one model in one process, and a ratio is the median over rounds of two times from the same round: machines are noisy,
ratios less so. The textbook way is ``h + s.exp() * torch.randn_like(h)`` under autograd in the same place: noise that
is kept for the backward, and that changes when gradient checkpointing recomputes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the memory profiler is talkative

import torch
from torch import Tensor, nn

from alp.policy import LayerwisePerturbation, LossInputs, Method
from alp.policy.layers import decoder_layers
from benchmarks.memory import peak_bytes
from benchmarks.shapes import Shape, random_qwen2

WAYS = ("none", "ours", "textbook")


@dataclass(frozen=True)
class Size(Shape):
    """A random Qwen2 and a batch for it."""

    sequences: int
    tokens: int
    checkpointing: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


SIZES = {
    "embedded": Size(3, 96, 256, 4, 4, 20, 96, 32),  # the model of the quick grid (0.3 M) and one of its mini-batches
    "15M": Size(6, 384, 1024, 6, 2, 8192, 32, 64),
    "135M": Size(30, 576, 1536, 9, 3, 49152, 8, 128),  # the shape of SmolLM2-135M
    "1.5B": Size(28, 1536, 8960, 12, 2, 151936, 8, 2048, True, "cuda", torch.bfloat16),  # the shape of Qwen2.5-1.5B
}


class Bench:
    """One model, one batch, and an update in each of the three ways."""

    def __init__(self, size: Size) -> None:
        self.device = torch.device(size.device)
        self.model = random_qwen2(size).to(self.device, size.dtype).train()
        if size.checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        shape = (size.sequences, size.tokens)
        self.ids = torch.randint(size.vocabulary, shape, device=self.device)
        self.mask = torch.ones(shape, dtype=torch.long, device=self.device)
        self.advantages = torch.randn(size.sequences, device=self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        with torch.no_grad():
            self.rollout_log_probs = self.log_probs()

    def log_probs(self) -> Tensor:
        """(sequences, tokens - 1) of the batch's own tokens."""
        logits = self.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits[:, :-1].float()
        return logits.gather(-1, self.ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)

    def gradients(self) -> None:
        """Forward and backward of the policy loss."""
        mask = self.mask[:, 1:]
        inputs = LossInputs(
            log_probs=self.log_probs(),
            rollout_log_probs=self.rollout_log_probs,
            response_mask=mask,
            advantages=self.advantages,
        )
        Method(denominator="rollout", clip_low=0.5, clip_high=3.0).loss(inputs).loss.backward()

    def update(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients()
        self.optimizer.step()

    @contextmanager
    def way(self, name: str) -> Iterator[None]:
        """The model perturbed one way or not at all; nothing stays on it."""
        if name == "textbook":
            with textbook(self.model, self.device):
                yield
        elif name == "ours":
            noise = LayerwisePerturbation(self.model, std=0.02)
            ids = torch.arange(self.ids.shape[0], device=self.device)
            with noise.active(update=0, sequence_ids=ids, attention_mask=self.mask):
                yield
            noise.detach()
        else:
            yield

    def seconds(self, name: str) -> float:
        """Duration of one update."""
        with self.way(name):
            self.wait()
            start = time.perf_counter()
            self.update()
            self.wait()
            return time.perf_counter() - start

    def bytes(self, name: str) -> int:
        """Peak memory of forward and backward above weights and optimizer state."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.way(name):
            return peak_bytes(self.gradients, self.device)

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def textbook(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Noise by autograd alone, in the same place."""
    modules = decoder_layers(model)
    logs = nn.Parameter(torch.full((len(modules),), -4.0, device=device))

    def hook(layer: int) -> Callable[..., Any]:
        def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs.pop("hidden_states")
            noisy = hidden + (logs[layer].exp() * torch.randn_like(hidden, dtype=torch.float32)).to(hidden.dtype)
            return (noisy, *args[1:]), kwargs

        return add

    handles = [module.register_forward_pre_hook(hook(layer), with_kwargs=True) for layer, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure(size: Size, rounds: int) -> dict[str, float]:
    """Milliseconds, MB and ratios of one size."""
    bench = Bench(size)
    for name in WAYS:
        bench.seconds(name)  # warm
    times = [{name: bench.seconds(name) for name in (*WAYS[turn % 3 :], *WAYS[: turn % 3])} for turn in range(rounds)]
    peaks = {name: bench.bytes(name) for name in WAYS}
    found = {f"{name}_ms": 1e3 * statistics.median(row[name] for row in times) for name in WAYS}
    found |= {f"{name}_peak_mb": peaks[name] / 1e6 for name in WAYS}
    for above, below in (("ours", "none"), ("textbook", "none"), ("ours", "textbook")):
        found[f"time_{above}/{below}"] = statistics.median(row[above] / row[below] for row in times)
        found[f"memory_{above}/{below}"] = peaks[above] / peaks[below]
    return {name: round(value, 4) for name, value in found.items()}


def main() -> int:
    """Print a line of JSON for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="all that this machine can run, unless given")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a file for the same lines")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = {
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
    }
    lines = []
    for name in options.sizes or [
        name for name, size in SIZES.items() if size.device == "cpu" or torch.cuda.is_available()
    ]:
        size = SIZES[name]
        device = torch.cuda.get_device_name() if size.device == "cuda" else "cpu"
        print(f"{name}: {options.rounds} rounds", file=sys.stderr, flush=True)
        lines.append(
            json.dumps(
                {"size": name, "device": device, **where, "rounds": options.rounds, **measure(size, options.rounds)}
            )
        )
        print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
