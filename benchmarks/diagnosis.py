"""How long `alp diagnose` takes, and how much memory: one dump of N tokens in every form.

    python -m benchmarks.diagnosis [tokens=5000000] [forms=jsonl,parquet,npz,slime,prime] [folder=<kept>]

Sequences of 50 to 950 tokens over 10 steps, float32 log-probs of a policy and of an engine that rounds to bfloat16. The
files are written before the clock starts; each form is diagnosed in a process of its own: seconds from its start to its
end, processor seconds, and the largest memory that it held. One line a form, and the goal beside it: 60 s and 1.5 GB at
5 M tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

STEPS = 10
GOAL = {"tokens": 5_000_000, "seconds": 60.0, "gigabytes": 1.5}


def sequences(tokens: int) -> Iterator[dict[str, Any]]:
    """One after another until there are so many tokens."""
    import torch

    random, made, count = np.random.default_rng(0), 0, 0
    while made < tokens:
        length = int(min(random.integers(50, 951), tokens - made))
        old = -random.gamma(0.3, 1.0, size=length).astype(np.float32)
        noisy = torch.from_numpy(old + 0.01 * random.normal(size=length).astype(np.float32))
        rollout = noisy.to(torch.bfloat16).float().clamp(max=0).numpy()
        yield {
            "old_log_probs": old,
            "rollout_log_probs": rollout,
            "response_mask": np.ones(length, dtype=np.int8),
            "step": count % STEPS,
        }
        made, count = made + length, count + 1


def _jsonl(folder: Path, tokens: int) -> Path:
    with (folder / "dump.jsonl").open("w", encoding="utf-8") as stream:
        for one in sequences(tokens):
            lists = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in one.items()}
            stream.write(json.dumps(lists) + "\n")
    return folder / "dump.jsonl"


def _parquet(folder: Path, tokens: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(sequences(tokens))
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), folder / "dump.parquet")
    return folder / "dump.parquet"


def _npz(folder: Path, tokens: int) -> Path:
    """A file per step, padded to its widest sequence."""
    (folder / "npz").mkdir()
    rows = list(sequences(tokens))
    for step in range(STEPS):
        part = [row for row in rows if row["step"] == step]
        width = max(len(row["response_mask"]) for row in part)
        arrays = {
            name: np.stack([np.pad(row[name], (0, width - len(row[name]))) for row in part])
            for name in ("old_log_probs", "rollout_log_probs", "response_mask")
        }
        np.savez(folder / "npz" / f"dump-{step}.npz", **arrays)  # type: ignore[arg-type]
    return folder / "npz"


def _slime(folder: Path, tokens: int) -> Path:
    """Training data, a file per step."""
    import torch

    (folder / "slime").mkdir()
    rows = list(sequences(tokens))
    for step in range(STEPS):
        samples = [
            {
                "log_probs": torch.from_numpy(row["old_log_probs"]),
                "rollout_log_probs": torch.from_numpy(row["rollout_log_probs"]),
                "loss_masks": torch.from_numpy(row["response_mask"]),
            }
            for row in rows
            if row["step"] == step
        ]
        torch.save({"rollout_id": step, "samples": samples}, folder / "slime" / f"train_{step}.pt")
    return folder / "slime"


def _prime(folder: Path, tokens: int) -> Path:
    """A token export, a folder per step, with every column that it has."""
    streams: dict[int, Any] = {}
    for one in sequences(tokens):
        step, length = one["step"], len(one["response_mask"])
        if step not in streams:
            path = folder / "prime" / f"step_{step}" / "rank_0.jsonl"
            path.parent.mkdir(parents=True)
            streams[step] = path.open("w", encoding="utf-8")
        gap = one["old_log_probs"] - one["rollout_log_probs"]
        record = {
            "step": step,
            "token_ids": [1000] * length,
            "position_ids": list(range(length)),
            "loss_mask": [True] * length,
            "advantages": [0.5] * length,
            "inference_logprobs": one["rollout_log_probs"].tolist(),
            "trainer_logprobs": one["old_log_probs"].tolist(),
            "entropy": (-one["old_log_probs"]).tolist(),
            "log_importance_ratio": gap.tolist(),
            "rl_weights": [None] * length,
        }
        streams[step].write(json.dumps(record, separators=(",", ":")) + "\n")
    for stream in streams.values():
        stream.close()
    return folder / "prime"


FORMS: dict[str, Callable[[Path, int], Path]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    "npz": _npz,
    "slime": _slime,
    "prime": _prime,
}


def measured(source: Path, output: Path) -> dict[str, float]:
    """One diagnosis in a process of its own."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "alp.cli", "diagnose", f"input='{source}'", f"output='{output}'"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"alp diagnose of {source} ended with {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "gigabytes": round(used.ru_maxrss * 1024 / 1e9, 2),
    }


def main(words: list[str]) -> None:
    """Every form that is asked for, one after another."""
    given = dict(word.split("=", 1) for word in words)
    tokens = int(float(given.get("tokens", GOAL["tokens"])))
    forms = given.get("forms", ",".join(FORMS)).split(",")
    print(f"goal at {GOAL['tokens']} tokens: {GOAL['seconds']:g} s, {GOAL['gigabytes']:g} GB; here {tokens} tokens")
    with tempfile.TemporaryDirectory(dir=given.get("folder")) as folder:
        for form in forms:
            place = Path(folder) / form
            place.mkdir()
            found = measured(FORMS[form](place, tokens), place / "out")
            print(json.dumps({"form": form, "load": round(os.getloadavg()[0], 1), **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
