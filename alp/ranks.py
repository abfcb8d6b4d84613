"""The ranks of a job on several devices of this machine: started, watched, and ended together (docs/distributed.md).

``alp train trainer.devices=N`` starts N processes of the same words. Signals go on to all of them; the first that
fails is the one whose error is printed and whose exit code is this one's, and the others are ended. torchrun does the
same over several machines (alp/training/distributed.py knows its environment), but has one patience for a rank that
writes its checkpoint after a signal and for one that waits for a rank that is gone. Standard library only.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alp.errors import TRY_AGAIN
from alp.lifetime import end_with
from alp.reproducibility import ROOT

LAUNCHER, FOLDER = "ALP_RANKS_OF", "ALP_RANKS_IN"  # the process that started this rank, and where ranks leave word
RENDEZVOUS = "ALP_RENDEZVOUS"  # where ranks of this machine meet; under torchrun it is env://
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_GRACE = 10.0  # seconds for the others, once one has failed, to end by themselves
_LOOK = 0.05  # seconds between two looks at the ranks
_WORD = 1.0  # seconds until a rank whose neighbour was killed knows it


# ---- the side that starts them ---------------------------------------------------------------------------------------


def to_start(config: Any) -> int:
    """How many ranks a job is to be started as; 0 where this process does it itself."""
    devices = int(getattr(getattr(config, "trainer", None), "devices", 1))
    return devices if devices > 1 and not started() else 0


def run(words: list[str], size: int) -> int:
    """Run ``alp`` with these words as ``size`` ranks; returns the exit code of the job."""
    with tempfile.TemporaryDirectory(prefix="alp-ranks-") as folder:
        came: list[int] = []
        before = {
            number: signal.signal(number, lambda number, _: came.append(number))
            for number in _FORWARDED
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            ranks = [_start(words, rank, size, folder) for rank in range(size)]
            return _watch(ranks, came, Path(folder))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _start(words: list[str], rank: int, size: int, folder: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        RENDEZVOUS: f"file://{folder}/store",
        LAUNCHER: str(os.getpid()),
        FOLDER: folder,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine
    # A session of its own: what a terminal sends comes here alone, and goes on to each rank once.
    command = [sys.executable, "-P", "-m", "alp.cli", *words]
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _watch(ranks: list[subprocess.Popen[bytes]], came: list[int], folder: Path) -> int:
    """Until all have ended: signals go on to them, and after a failure they are given a while."""
    failed_at: float | None = None
    while any(rank.poll() is None for rank in ranks):
        while came:
            number = came.pop(0)
            for rank in ranks:
                rank.send_signal(number)
        killed = [place for place, rank in enumerate(ranks) if rank.poll() is not None and rank.returncode < 0]
        if killed and failed_at is None:
            name = signal.Signals(-ranks[killed[0]].returncode).name
            if _first(folder, killed[0], 1):  # before the others learn of it, and say something else
                print(f"alp: error: rank {killed[0]} of {len(ranks)} was killed by {name}", file=sys.stderr)
        if failed_at is None and any(rank.returncode not in (None, 0, TRY_AGAIN) for rank in ranks):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > _GRACE:
            for rank in ranks:
                rank.kill()
        time.sleep(_LOOK)
    return _code(ranks, folder)


def _code(ranks: list[subprocess.Popen[bytes]], folder: Path) -> int:
    word = folder / "first.json"
    if word.is_file():
        return int(json.loads(word.read_text(encoding="utf-8"))["code"])
    return max((1 if rank.returncode < 0 else rank.returncode for rank in ranks), default=0)


def _first(folder: Path, rank: int, code: int) -> bool:
    """Note that a rank has failed; whether no other had."""
    whole = folder / f"failed_{rank}.json"
    whole.write_text(json.dumps({"rank": rank, "code": code}), encoding="utf-8")
    try:
        os.link(whole, folder / "first.json")  # at once, or not at all
    except OSError:
        return False
    return True


# ---- a rank's side ---------------------------------------------------------------------------------------------------


def is_rank() -> bool:
    """Whether this process was started by :func:`run`."""
    return LAUNCHER in os.environ


def is_first() -> bool:
    """Whether this process speaks for its job: the first of its ranks, torchrun's too, or all of it."""
    return not started() or os.environ["RANK"] == "0"


def started() -> bool:
    """Whether this process is a rank, of ``alp train`` or of torchrun."""
    return RENDEZVOUS in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def as_rank(work: Callable[[list[str]], int], words: list[str]) -> int:
    """Do ``work`` as the rank that the environment says. The others than the first are silent but for warnings; of
    several that fail only the one that did so first is heard (:func:`say`)."""
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
    if not is_rank():
        print(text, file=sys.stderr)
    elif _first(Path(os.environ[FOLDER]), rank := int(os.environ["RANK"]), code):
        print(f"{text} (rank {rank})" if rank else text, file=sys.__stderr__, flush=True)
    return code
