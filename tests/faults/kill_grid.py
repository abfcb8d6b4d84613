"""A grid whose workflow is killed again and again, and then ends in the manifest of an undisturbed build.

``python -m tests.faults.kill_grid --grid smoke --kills 10 --seed 0`` builds it twice below ``build/kill_grid/``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.reproduce import ROOT, build, command
from tests.signals import heard

# SIGKILL of Snakemake alone leaves its jobs to end by themselves; of the group, everything at once; the others ask.
_WAYS = (("process", signal.SIGKILL), ("group", signal.SIGKILL), ("process", signal.SIGTERM), ("group", signal.SIGINT))


def attempt(words: list[str], cwd: Path, log: Path, seconds: float, way: tuple[str, signal.Signals]) -> int | None:
    """Start the workflow and end it after ``seconds``; its exit code, None when the signal met it at work."""
    with log.open("a", encoding="utf-8") as stream, heard():
        process = subprocess.Popen(words, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        whom, number = way
        if whom == "group":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        process.wait(600)  # one that was asked ends after the jobs that run
        return None


def kill_until_done(
    folder: Path, grid: str, cores: int, kills: int, dice: random.Random, longest: float
) -> tuple[Path, list[str]]:
    """Kill a build ``kills`` times, each within ``longest`` seconds (fewer, if it gets through before), then let it
    end.

    Returns the manifest and what was sent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sent: list[str] = []
    while len(sent) < kills:
        way = dice.choice(_WAYS)
        pause = dice.uniform(3.0, longest)
        code = attempt(command(folder, grid, cores), folder, folder / "workflow.log", pause, way)
        if code is not None:
            break
        sent.append(f"{way[1].name} of the {way[0]} after {pause:.1f} s")
    return build(folder, grid, cores), sent


def compare(manifest: Path, other: Path) -> tuple[list[str], list[str]]:
    """Names of the files of ``manifest`` that ``other`` lacks, and of those whose hashes differ."""
    there, here = (json.loads(path.read_text(encoding="utf-8"))["files"] for path in (manifest, other))
    lost = sorted(there.keys() - here.keys())
    changed: list[Any] = [name for name in there if name in here and there[name] != here[name]]
    return lost, changed


def main() -> int:
    """Exit code 0 when nothing is lost and nothing changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="smoke")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument(
        "--longest",
        type=float,
        help="seconds between a start and its end; a quarter of the undisturbed build without it",
    )
    options = parser.parse_args()
    root = ROOT / "build" / "kill_grid"
    shutil.rmtree(root, ignore_errors=True)
    started = time.monotonic()
    manifest = build(root / "whole", options.grid, options.cores)
    seconds = time.monotonic() - started
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    longest = options.longest or max(8.0, seconds / 4)
    other, sent = kill_until_done(
        root / "killed", options.grid, options.cores, options.kills, random.Random(options.seed), longest
    )
    print("\n".join(sent))
    lost, changed = compare(manifest, other)
    print(
        f"kills: {len(sent)}, results lost: {len(lost)}, "
        f"results changed: {len(changed)} {[*lost, *changed][:5] or ''}".rstrip()
    )
    return 1 if lost or changed else 0


if __name__ == "__main__":
    sys.exit(main())
