"""Sampled tokens a second: our Hugging Face engine, ``transformers.generate`` with its logits, and vLLM, on the same
prompts.

    python -m benchmarks.rollout                             three sizes, three batch sizes, one thread each (30
    minutes) python -m benchmarks.rollout --sizes embedded --rounds 3

The ways take turns, round by round, in one run; a ratio is the median over rounds of two speeds of the same round:
machines are noisy, ratios less so. All ways hold the same random weights and give log-probs of what they sampled. With
the embedded model's 20 tokens one in twenty ends a response, so rows finish at different times as they do in training;
the larger ones run to the limit. vLLM is measured as training uses it, from the trainer's side of the socket, seeded
and unseeded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alp.configuration import compose
from alp.models import character_tokenizer
from alp.rollout import registry, vllm
from alp.rollout.engine import Engine, Host, Request, Sampling
from benchmarks.shapes import Shape, fixed_probe, random_qwen2

CPU = torch.device("cpu")
END = 1
SAMPLES = 8  # of each prompt


@dataclass(frozen=True)
class Size(Shape):
    """A random Qwen2 with heads that vLLM has kernels for, and what is sampled from it."""

    prompt: int
    response: int
    batches: tuple[int, ...]


SIZES = {
    "embedded": Size(3, 96, 256, 3, 3, 20, 6, 48, (32, 128, 512)),
    "15M": Size(6, 384, 1024, 6, 2, 8192, 32, 48, (32, 128, 512)),
    "135M": Size(30, 576, 1536, 9, 3, 49152, 32, 16, (8, 32, 128)),  # the shape of SmolLM2-135M
}


def random_model(size: Size) -> Any:
    """float32, tied embeddings, in evaluation mode."""
    more = {"max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": END, "bos_token_id": None}
    return random_qwen2(size, **more).eval()


def requests_of(size: Size, batch: int, round_: int) -> list[Request]:
    """``batch`` requests, SAMPLES to each random prompt."""
    generator = torch.Generator().manual_seed(round_)
    prompts = torch.randint(2, size.vocabulary, (batch // SAMPLES, size.prompt), generator=generator).tolist()
    return [
        Request(tuple(prompt), (0, 0, round_, place, sample))
        for place, prompt in enumerate(prompts)
        for sample in range(SAMPLES)
    ]


@torch.no_grad()
def by_generate(model: Any, requests: list[Request], sampling: Sampling) -> int:
    """transformers' own loop, and the log-probs of its samples from the logits it returns; tokens sampled."""
    ids = torch.tensor([request.prompt_ids for request in requests])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=sampling.pad_token_id,
        eos_token_id=sampling.eos_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = found.sequences[:, ids.shape[1] :]
    log_probs = (
        (torch.stack(found.logits, 1).float() / sampling.temperature).log_softmax(-1).gather(-1, tokens.unsqueeze(-1))
    )
    assert log_probs.shape[:2] == tokens.shape
    ended = (tokens == sampling.eos_token_id).cumsum(-1)
    return int((ended.roll(1, -1) * (torch.arange(tokens.shape[1]) > 0) == 0).sum())


def engines(model: Any, dtype: str, folder: Path) -> dict[str, Engine]:
    """Our engine and, where vLLM is installed and can, vLLM with and without seeds."""
    ways = {"hf": ["rollout=hf"]}
    if vllm.installed() is not None:
        ways |= {"vllm": ["rollout=vllm"], "vllm unseeded": ["rollout=vllm", "rollout.seeded=false"]}
    found = {}
    for name, words in ways.items():
        extra = ["rollout.max_sequences=512", "rollout.kv_cache_gib=2.0"] if name != "hf" else []
        rollout = compose.load("train", [*words, *extra, f"rollout.dtype={dtype}"]).rollout
        (folder / name).mkdir()
        fixed = fixed_probe(model, "float32")
        found[name] = registry.make(rollout, Host(model, folder, folder / name / "engine.log", CPU, 0, fixed))
        found[name].sync_weights(model.named_parameters(), version=0)
    return found


def measure(size: Size, dtype: str, rounds: int) -> list[dict[str, Any]]:
    """Tokens a second of every way and batch size, and ratios to ``generate``."""
    model = random_model(size)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder)
        character_tokenizer("abc").save_pretrained(folder)
        held = engines(model, dtype, folder)
        plain = model.to(getattr(torch, dtype))
        sampling = Sampling(1.0, size.response, END, 0)
        ways: dict[str, Callable[[list[Request]], int]] = {
            "generate": lambda asked: by_generate(plain, asked, sampling)
        }
        for name, engine in held.items():
            ways[name] = lambda asked, engine=engine: sum(
                len(item.token_ids) for item in engine.generate(asked, sampling)
            )
        for way in ways.values():
            way(requests_of(size, SAMPLES, 0))  # nobody pays for the first time
        for batch in size.batches:
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for round_ in range(1, rounds + 1):
                for name, way in ways.items():
                    clock = time.perf_counter()
                    tokens = way(requests_of(size, batch, round_))
                    speeds[name].append(tokens / (time.perf_counter() - clock))
            row: dict[str, Any] = {"batch": batch}
            for name, values in speeds.items():
                ratios = [value / base for value, base in zip(values, speeds["generate"], strict=True)]
                row |= {
                    name: round(statistics.median(values)),
                    f"{name} / generate": round(statistics.median(ratios), 2),
                }
            rows.append(row)
        for engine in held.values():
            engine.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {os.cpu_count()} CPUs, one thread each, {arguments.dtype}, {arguments.rounds}"
        " rounds",
        flush=True,
    )
    for name in arguments.sizes:
        for row in measure(SIZES[name], arguments.dtype, arguments.rounds):
            print(json.dumps({"size": name} | row), flush=True)


if __name__ == "__main__":
    main()
