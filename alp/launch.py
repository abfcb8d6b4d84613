"""The ranks of a job on several devices of this machine: started, watched, and ended together (docs/distributed.md).

``alp train trainer.devices=N`` starts N processes of the same words. Signals go on to all of them; the first that
fails is the one whose error is printed and whose exit code is this one's, and the others are ended. torchrun has one
patience for a rank that writes its checkpoint after a signal and for one that waits for a rank that is gone: it is
what starts them where a job takes several machines of an allocation. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alp.cluster import devices_per_node, machines, over_machines
from alp.errors import TRY_AGAIN
from alp.ranks import FOLDER, LAUNCHER, RENDEZVOUS, first_to_fail, started
from alp.reproducibility import ROOT

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
PER_MACHINE = "ALP_DEVICES_PER_NODE"  # what one machine has, where a job takes several (alp/cluster.py)
_GRACE = 10.0  # seconds for the others, once one has failed, to end by themselves
_LOOK = 0.05  # seconds between two looks at the ranks


def to_start(config: Any) -> int:
    """How many ranks a job is to be started as; 0 where this process does it itself."""
    devices = int(getattr(getattr(config, "trainer", None), "devices", 1))
    return devices if devices > 1 and not started() else 0


def run(words: list[str], size: int) -> int:
    """Run ``alp`` with these words as ``size`` ranks; returns the exit code of the job."""
    each = devices_per_node(os.environ.get(PER_MACHINE), PER_MACHINE)
    if each is not None and (count := machines(size, each)) > 1:
        return _over_machines(over_machines(words, count, each))
    with tempfile.TemporaryDirectory(prefix="alp-ranks-") as folder, _signals() as came:
        ranks = [_start(words, rank, size, folder) for rank in range(size)]
        return _watch(ranks, came, Path(folder))


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Those that come inside, in the place of what they would do."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in _FORWARDED
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _over_machines(command: list[str]) -> int:
    """Signals go on to what starts the ranks there; 75 where one came and it failed, as torchrun has one code for
    all."""
    away = ("ALP_PARENT", "ALP_SHELL", "ALP_WARM")  # of this machine's processes; those there would end with them
    environment = {key: value for key, value in os.environ.items() if key not in away} | _path()
    with _signals() as came, subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as started:
        asked = False
        while started.poll() is None:
            while came:
                asked = True
                started.send_signal(came.pop(0))
            time.sleep(_LOOK)
    return TRY_AGAIN if asked and started.returncode else abs(started.returncode)


def _path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def _start(words: list[str], rank: int, size: int, folder: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        RENDEZVOUS: f"file://{folder}/store",
        LAUNCHER: str(os.getpid()),
        FOLDER: folder,
        **_path(),
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
            if first_to_fail(folder, killed[0], 1):  # before the others learn of it, and say something else
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
