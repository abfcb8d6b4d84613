"""What the start of a job costs: cold, and forked from a warm parent (alp/warm.py), in turns.

    python -m benchmarks.starts --rounds 5

The job is an evaluation of an untaught embedded model on twelve problems, so nearly all of it is its start. Seconds of
wall clock and of processor time, medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alp import warm

ROOT = Path(__file__).resolve().parents[1]
TASK = ("task.digits=1", "task.train=30", "task.validation=8", "task.test=12")
ONE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")}


def _run(verb: str, words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and own processor seconds of one command; a warm parent's are not among the latter."""
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [str(Path(sys.executable).parent / "alp"), verb, *TASK, *words]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - clock, own


def _of_children(pid: int) -> float:
    """Processor seconds of the jobs that a parent has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    environment = dict(os.environ) | ONE | {"VECLIB_MAXIMUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(tempfile.mkdtemp()) / "jobs"
        parent = warm.start(place, environment)
        if parent is None:
            raise SystemExit("no warm parent on this machine: Linux without a GPU is needed")
        _run("pretrain", ["pretrain.steps=1", f"run.dir={folder}/base"], environment)
        words = [f"model.path={folder}/base/model", f"run.dir={folder}/run", "run.tracking=null", "run.replace=true"]
        words += ["evaluation.samples=1", "evaluation.greedy=false"]
        wall: dict[str, list[float]] = {"cold": [], "warm": []}
        used: dict[str, list[float]] = {"cold": [], "warm": []}
        for number in range(options.rounds + 1):  # the first is not counted: files come from the disk
            for kind, more in (("cold", {}), ("warm", {warm.VARIABLE: str(place)})):
                before = _of_children(parent.pid)
                seconds, own = _run("evaluate", words, environment | more)
                if number:
                    wall[kind].append(seconds)
                    used[kind].append(own + _of_children(parent.pid) - before)
        parent.terminate()
        parent.wait()
    print("| start | wall, s | processor, s |\n| --- | ---: | ---: |")
    for kind in wall:
        print(f"| {kind} | {statistics.median(wall[kind]):.2f} | {statistics.median(used[kind]):.2f} |")


if __name__ == "__main__":
    main()
