"""What seeds cannot guarantee: the same requests to vLLM once in one batch and once in parts, and what comes out
different.

    python -m benchmarks.composition          float32 and bfloat16, the embedded model's size (1 minute)

Prints per dtype the share of responses with other ids, and over the ids both have in common the share of log-probs that
differ and their largest difference; for comparison the same of two identical batches, which training relies on.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import torch

from alp.models import character_tokenizer
from alp.rollout.engine import Completion, Engine, Request, Sampling
from benchmarks.rollout import END, SIZES, engines, random_model, requests_of

ENDS = (0, 1, 4, 32, 150, 512)  # parts of 1, 3, 28, 118 and 362 requests: kernels are chosen by size


def compare(first: list[Completion], second: list[Completion]) -> dict[str, float]:
    """Shares of responses and of log-probs that differ, the latter up to and including the first id that does not
    agree."""
    other, moved, tokens, largest = 0, 0, 0, 0.0
    for one, two in zip(first, second, strict=True):
        other += one.token_ids != two.token_ids
        for a, b, p, q in zip(one.token_ids, two.token_ids, one.log_probs, two.log_probs, strict=False):
            if a != b:
                break
            tokens, moved, largest = tokens + 1, moved + (p != q), max(largest, abs(p - q))
    return {
        "other responses": round(other / len(first), 4),
        "other log-probs": round(moved / tokens, 4),
        "largest difference": float(f"{largest:.2g}"),
    }


def in_parts(engine: Engine, asked: list[Request], sampling: Sampling) -> list[Completion]:
    """The completions of all requests, a few at a time."""
    return [item for low, high in itertools.pairwise(ENDS) for item in engine.generate(asked[low:high], sampling)]


def main() -> None:
    torch.set_num_threads(1)
    size = SIZES["embedded"]
    model = random_model(size)
    asked, sampling = requests_of(size, ENDS[-1], 1), Sampling(1.0, size.response, END, 0)
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            character_tokenizer("abc").save_pretrained(place)
            held = engines(model, dtype, Path(place))
            whole = held["vllm"].generate(asked, sampling)
            again = held["vllm"].generate(asked, sampling)
            parts = in_parts(held["vllm"], asked, sampling)
            ours, smaller = held["hf"].generate(asked, sampling), in_parts(held["hf"], asked, sampling)
            for engine in held.values():
                engine.close()
        print(json.dumps({"dtype": dtype, "vllm": "the same batch twice"} | compare(whole, again)), flush=True)
        print(json.dumps({"dtype": dtype, "vllm": "one batch or parts"} | compare(whole, parts)), flush=True)
        print(json.dumps({"dtype": dtype, "hf": "one batch or parts"} | compare(ours, smaller)), flush=True)


if __name__ == "__main__":
    main()
