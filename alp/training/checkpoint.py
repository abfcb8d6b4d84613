"""What an interrupted job continues from: whole or not at all, and only by the same code and configuration."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from alp.errors import UserError
from alp.reproducibility import sha256_file, write_json, write_text

logger = logging.getLogger(__name__)
RECORDS = ("metrics.jsonl", "updates.jsonl", "timings.jsonl")
_KEPT = 2


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. Raises UserError when another job holds it: two would write the same checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "checkpoints.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"run.dir: another job is running in {folder}; wait for it or choose another run.dir") from None
        yield


def save(run_dir: Path, step: int, identity: str, state: dict[str, Any]) -> None:
    """Write ``checkpoints/step_<n>/`` with the state and the run's records so far, then drop all but the last two."""
    root = run_dir / "checkpoints"
    final, partial = root / f"step_{step:06d}", root / f".step_{step:06d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.save(state, partial / "state.pt")
    for name in RECORDS:
        if (run_dir / name).is_file():
            write_text(partial / name, (run_dir / name).read_text())
    write_json(partial / "checkpoint.json", {"step": step, "identity": identity, "sha256": sha256_file(partial / "state.pt")})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in _all(root)[:-_KEPT]:
        shutil.rmtree(old)


def restore(run_dir: Path, identity: str) -> dict[str, Any] | None:
    """The newest usable state, its records put back into ``run_dir``; None when there is nothing to continue.

    A damaged checkpoint is passed over for the one before, one of other code, inputs or configuration is removed; both are said.
    """
    for folder in reversed(_all(run_dir / "checkpoints")):
        try:
            card = json.loads((folder / "checkpoint.json").read_text())
            if card["identity"] != identity:
                # Left in place, an old step 15 would outrank a new step 5 among the last two kept.
                logger.warning("%s belongs to another configuration, other code or inputs: removed", folder)
                shutil.rmtree(folder)
                continue
            if card["sha256"] != sha256_file(folder / "state.pt"):
                raise ValueError("hash mismatch")
            state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            logger.warning("%s is damaged (%s): not used", folder, error)
            continue
        for name in RECORDS:
            if (folder / name).is_file():
                write_text(run_dir / name, (folder / name).read_text())
        logger.info("continuing %s from step %d", run_dir, card["step"])
        return state
    return None


def prune(run_dir: Path) -> None:
    """Remove the checkpoints of a finished job."""
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


def _all(root: Path) -> list[Path]:
    return sorted(root.glob("step_*"))
