"""What a process knows of being one rank of a job on several devices (docs/distributed.md): its words, its end, and
which rank failed first. Standard library only; alp/launch.py starts ranks.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from alp.lifetime import end_with

LAUNCHER, FOLDER = "ALP_RANKS_OF", "ALP_RANKS_IN"  # the process that started this rank, and where ranks leave word
RENDEZVOUS = "ALP_RENDEZVOUS"  # where ranks of this machine meet; under torchrun it is env://
_OF_TORCHRUN = "TORCHELASTIC_ERROR_FILE"  # <folder of this machine's ranks>/<rank>/error.json
# What tells a process its place: names, and the beginnings and ends of the names that torchrun sets.
_PLACES = ("MASTER_ADDR", "MASTER_PORT", "ROLE_NAME", RENDEZVOUS, LAUNCHER, FOLDER)
_BEGINS, _ENDS = "TORCHELASTIC_", ("RANK", "WORLD_SIZE")
_WORD = 1.0  # seconds until a rank whose neighbour was killed knows it


def apart(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is no rank though one starts it: an engine that found a rank's place would look
    for the other ranks."""
    told = [key for key in environment if key in _PLACES or key.startswith(_BEGINS) or key.endswith(_ENDS)]
    return {key: value for key, value in environment.items() if key not in told}


def is_rank() -> bool:
    """Whether this process was started by :func:`alp.launch.run`."""
    return LAUNCHER in os.environ


def is_first() -> bool:
    """Whether this process speaks for its job: the first of its ranks, torchrun's too, or all of it."""
    return not started() or os.environ["RANK"] == "0"


def started() -> bool:
    """Whether this process is a rank, of ``alp train`` or of torchrun."""
    return RENDEZVOUS in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def as_rank(work: Callable[[list[str]], int], words: list[str]) -> int:
    """Do ``work`` as the rank that the environment says. The others than the first are silent but for warnings; of
    several on a machine that fail only the one that did so first is heard (:func:`say`)."""
    if is_rank():
        end_with(int(os.environ[LAUNCHER]), signal.SIGTERM)
    if rank := int(os.environ["RANK"]):
        logging.basicConfig(level=logging.WARNING, format=f"%(levelname)s rank {rank}: %(name)s: %(message)s")
        logging.getLogger("py.warnings").setLevel(logging.ERROR)  # the first rank's say the same
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
    try:
        return work(words)
    except Exception as error:
        time.sleep(_WORD)  # of a rank that was killed the others learn at once, the one who started it a moment later
        trace = traceback.format_exc()
        return say(f"{trace}alp: error: {type(error).__name__}: {error}", 1)


def say(text: str, code: int) -> int:
    """Print to standard error what ends this process, unless another rank has ended the job; returns ``code``."""
    folder, rank = _folder(), int(os.environ["RANK"]) if started() else 0
    if folder is None or first_to_fail(folder, rank, code):
        print(f"{text} (rank {rank})" if rank else text, file=sys.__stderr__ if rank else sys.stderr, flush=True)
    return code


def _folder() -> Path | None:
    """Where the ranks of this machine leave word; None of a process that is none, or was told of no such place."""
    if file := os.environ.get(_OF_TORCHRUN):
        return Path(file).parent.parent
    return Path(os.environ[FOLDER]) if is_rank() else None


def first_to_fail(folder: Path, rank: int, code: int) -> bool:
    """Note that a rank has failed; whether no other had."""
    whole = folder / f"failed_{rank}.json"
    whole.write_text(json.dumps({"rank": rank, "code": code}), encoding="utf-8")
    try:
        os.link(whole, folder / "first.json")  # at once, or not at all
    except OSError:
        return False
    return True
