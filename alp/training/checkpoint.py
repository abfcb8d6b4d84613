"""What an interrupted job continues from: whole or not at all, and only by the same code, inputs and configuration.

``checkpoints/step_<steps done>_update_<updates done of the next>_<identity>/`` holds ``state.pt`` and
``checkpoint.json``, its card.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alp.errors import UserError
from alp.marks import difference
from alp.places import nearest_folder
from alp.reproducibility import partial_folder, sha256_file, sync_folder, write_json

logger = logging.getLogger(__name__)
# Of the state; 1 had no rollout batch under way, 2 called it "current", 3 had no clean log-ratio in it, 4 no turns, 5
# none that wait for their step.
FORMAT = 6
_KEPT = 2
_NAME = re.compile(r"step_\d{6,}_update_\d{4,}_[0-9a-f]{8}")


def save(run_dir: Path, origin: dict[str, Any], state: dict[str, Any]) -> bool:
    """Write a checkpoint, then drop all but the last two of this job; whether that worked. A full disk costs a warning,
    not the job.

    ``origin`` is what may continue it: ``identity`` and its parts, and the resolved ``config``.
    """
    root = run_dir / "checkpoints"
    name = f"step_{state['step']:06d}_update_{_updates(state):04d}_{origin['identity'][:8]}"
    final = root / name
    try:
        with partial_folder(final) as near:
            _write(near / name, origin | {"format": FORMAT, "step": state["step"], "update": _updates(state)}, state)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(near / name, final)
        sync_folder(root)
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into a RuntimeError
        logger.warning("%s could not be written (%s): training goes on, an earlier one stays", final, error)
        return False
    for old in _own(root, origin["identity"])[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return True


def _updates(state: dict[str, Any]) -> int:
    return len(state["pending"]["results"]) if state["pending"] else 0


def _write(folder: Path, card: dict[str, Any], state: dict[str, Any]) -> None:
    folder.mkdir()
    with (folder / "state.pt").open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    write_json(folder / "checkpoint.json", card | {"sha256": sha256_file(folder / "state.pt")})


def usable(run_dir: Path, origin: dict[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The newest usable checkpoint and its state; None when there is nothing to continue.

    What is damaged, of an older format, or of another configuration, other code or inputs is passed over, and named
    with the reason.
    """
    root = run_dir / "checkpoints"
    for folder in sorted(root.glob("step_*"), reverse=True):
        try:
            if not all(
                (folder / name).is_file() for name in ("checkpoint.json", "state.pt")
            ):  # a pipe would be waited for
                raise ValueError("a file of it is missing")
            card = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
            if card.get("format") != FORMAT:
                logger.warning(
                    "%s has format %s, this version reads %d: not used", folder, card.get("format", 1), FORMAT
                )
                continue
            if card["identity"] != origin["identity"]:
                logger.warning("%s belongs to another job (%s): not used", folder, difference(card, origin))
                continue
            if card["sha256"] != sha256_file(folder / "state.pt"):
                raise ValueError("its hash is not the one it was saved with")
            state = read(folder)
        except Exception as error:  # whatever a damaged file makes of its readers
            reason = " ".join(str(error).split())[:200]
            logger.warning("%s is damaged (%s: %s): not used", folder, type(error).__name__, reason)
            aside = folder.with_name(
                f"damaged_{folder.name}"
            )  # by its old name it would outrank those written from now on
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
            continue
        logger.info("continuing %s after %d steps and %d updates of the next", run_dir, state["step"], _updates(state))
        return folder, state
    return None


def read(folder: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The state in a checkpoint that is known as whole. ``mapped``: what is large of it lies in the file until it is
    used, and ranks of one machine share that memory; it has to be copied while the file is there."""
    state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True, mmap=mapped)
    small = {key: deepcopy(value) for key, value in state.items() if mapped and key not in ("model", "updater")}
    return state | small


def prune(run_dir: Path) -> None:
    """Remove the checkpoints of a finished job, and nothing else that stands beside them."""
    root = run_dir / "checkpoints"
    for folder in [*root.glob("step_*"), *root.glob("damaged_step_*")]:
        if _NAME.fullmatch(folder.name.removeprefix("damaged_")) and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        root.rmdir()


def _own(root: Path, identity: str) -> list[Path]:
    return sorted(root.glob(f"step_*_{identity[:8]}"))


def check_room(run_dir: Path, *, trained: int, saved: int, tokens: int, every: int) -> None:
    """Refuse a job that the disk cannot hold: its checkpoints, one of them being written, and the final model. Raises
    UserError.

    ``trained`` are bytes of the trained parameters (AdamW keeps two more of each), ``saved`` of the final model,
    ``tokens`` the most a rollout batch has.
    """
    size = 3 * trained + 64 * tokens
    wanted = (_KEPT + 1 if every else 1) * size + saved
    held = sum(path.stat().st_size for path in (run_dir / "checkpoints").rglob("*") if path.is_file())
    free = shutil.disk_usage(nearest_folder(run_dir)).free
    if wanted - held > free:
        raise UserError(
            f"run.dir: the job needs about {_size(wanted - held)} in {run_dir} (checkpoints of {_size(size)} and the"
            f" final model), {_size(free)} are free there; make room or choose another run.dir"
        )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def random_state() -> dict[str, Any]:
    """State of every global generator. The loop draws from keyed streams instead, but what it calls need not."""
    numpy = dict(np.random.get_state(legacy=False))
    numpy["state"] = {"key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)), "pos": numpy["state"]["pos"]}
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": numpy,
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of ``random_state``."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy = state["numpy"]
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].numpy().astype(np.uint32)}})
    random.setstate(state["python"])


def seed_random_state(seed: int) -> None:
    """Begin every global generator anew."""
    torch.manual_seed(seed)  # CUDA's too
    np.random.seed(seed % 2**32)
    random.seed(seed)
