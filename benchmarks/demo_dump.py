"""Make the dump that `alp demo` diagnoses (``python -m benchmarks.demo_dump model=<folder of the quick grid's base>``).

Three rollout batches of the embedded model in trouble: 16 updates each at three times the learning rate, samples of an
engine whose weights are rounded to int8 and off by 5 %. The file holds what `alp diagnose` reads of any trainer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from alp.configuration import compose
from alp.diagnosis.demo import DUMP
from alp.reproducibility import write_bytes
from alp.training.job import Job
from alp.training.loop import begin, step

STEPS = 3
WORDS = (
    *("method=grpo", "task.digits=3", "rollout.max_new_tokens=40", "rollout.dtype=int8", "rollout.weight_noise=0.05"),
    *(
        "trainer.updates_per_batch=16",
        "trainer.lr=3e-4",
        "trainer.prompts=32",
        "trainer.samples=4",
        "run.tracking=null",
    ),
    *("trainer.validate_every=0", "trainer.probe_every=0", "trainer.checkpoint_every=0", f"trainer.steps={STEPS}"),
)
FIELDS = ("rollout_log_probs", "old_log_probs", "response_mask", "advantages")


def batches(model: Path, folder: Path) -> list[dict[str, np.ndarray]]:
    """What each step's batch is before its updates: log-probs of the engine and of the training code, (sequences,
    tokens)."""
    job = Job(compose.load("train", [*WORDS, f"model.path='{model}'", f"run.dir='{folder}'"]), folder)
    found = []
    try:
        job.start()
        for number in range(1, STEPS + 1):
            job.pending = begin(job, number)
            batch = job.pending.batch
            found.append({name: getattr(batch, name).numpy() for name in FIELDS})
            step(job, number)
            job.done, job.pending = number, None
    finally:
        job.close()
    return found


def joined(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """All batches as one, without the columns that no response has."""
    width = max(one["response_mask"].shape[1] for one in found)
    padded = [
        {name: np.pad(value, ((0, 0), (0, width - value.shape[1]))) for name, value in one.items() if value.ndim == 2}
        for one in found
    ]
    whole = {name: np.concatenate([one[name] for one in padded]) for name in padded[0]}
    kept = whole["response_mask"].astype(bool).any(0)
    whole = {name: value[:, kept] for name, value in whole.items()}
    rows = len(found[0]["response_mask"])
    whole["response_mask"] = whole["response_mask"].astype(bool)
    whole |= {name: np.concatenate([one[name] for one in found]) for name in FIELDS if found[0][name].ndim == 1}
    return whole | {"step": np.repeat(np.arange(1, STEPS + 1), rows)}


def main(arguments: list[str]) -> None:
    model = Path(dict(word.split("=", 1) for word in arguments)["model"])
    with tempfile.TemporaryDirectory() as folder:
        whole = joined(batches(model.resolve(), Path(folder)))
    print({name: value.shape for name, value in whole.items()})
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / DUMP.name
        np.savez_compressed(made, **whole)
        write_bytes(DUMP, made.read_bytes())
    commit = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{DUMP}: {DUMP.stat().st_size} bytes, of commit {commit}")


if __name__ == "__main__":
    main(sys.argv[1:])
