"""Programs a second and how long one takes: by warm workers of the sandbox, as a bare ``python -c``, in a new sandbox.

    python -m benchmarks.sandbox [rounds=7] [programs=400] [workers=2]

The three sides run the same small program, such as a model writes to work out a sum, from as many threads as there are
workers, in turns. Rates are medians over rounds; latencies are of all programs of all rounds. ``python -c`` is the same
interpreter in its fastest start (``-I -S``), and contains nothing. A new sandbox is started for one program and closed.
Processor time is that of all processes of a side but this one; cores over it is the most that a pool can do.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from alp.errors import UserError
from alp.tasks.sandbox import Sandbox

GOAL = 500.0  # programs a second, on two cores
PROGRAM = "total = 0\nfor n in range(1, 11):\n    total += n * n\nprint(total)\n"
ANSWER = "385\n"
DEFAULTS = {"rounds": 7, "programs": 400, "workers": 2}
FEWER = {"python -c": 4, "new sandbox": 20}  # so many times fewer programs a round
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Side:
    """One way to run the program; ``used`` returns the processor seconds of its processes so far."""

    run: Callable[[], str]
    used: Callable[[], float] | None
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor: float = 0.0

    def round(self, programs: int, threads: int, *, counts: bool) -> None:
        """So many programs from so many threads at once. Raises RuntimeError for a wrong answer."""

        def one(_: int) -> float:
            started = time.perf_counter()
            if (said := self.run()) != ANSWER:
                raise RuntimeError(f"the program printed {said!r}")
            return time.perf_counter() - started

        before = self.used() if self.used else 0.0
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            seconds = list(pool.map(one, range(programs)))
            rate = programs / (time.perf_counter() - started)
        if counts:
            self.rates.append(rate)
            self.seconds += seconds
            self.processor += (self.used() if self.used else 0.0) - before

    def row(self, name: str, reference: Side) -> str:
        """Of the table."""
        cuts = statistics.quantiles(self.seconds, n=100)
        ratio = statistics.median(ours / theirs for ours, theirs in zip(self.rates, reference.rates, strict=True))
        processor = f"{1e3 * self.processor / len(self.seconds):.1f}" if self.used else "–"
        spread = f"{min(self.rates):.0f} to {max(self.rates):.0f}"
        rate = statistics.median(self.rates)
        latency = f"{1e3 * cuts[49]:.1f} | {1e3 * cuts[98]:.1f}"
        return f"| {name} | {rate:.0f} ({spread}) | {ratio:.2f} | {latency} | {processor} |"


def bare() -> str:
    """What the program prints under ``python -c``."""
    command = [sys.executable, "-I", "-S", "-c", PROGRAM]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def anew() -> str:
    """What it prints in a sandbox of its own."""
    with Sandbox(workers=1) as box:
        return box.run(PROGRAM).stdout


def of_waited_for() -> float:
    """Processor seconds of the processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def of_workers(box: Sandbox) -> float:
    """Processor seconds of the pool's processes, and of those that they have waited for."""
    parents, used = {}, {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                fields = (place / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it ended
                continue
            parents[int(place.name)] = int(fields[1])
            used[int(place.name)] = sum(map(int, fields[11:15])) / _TICKS
    members = {worker.pid for worker in box.workers}
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return sum(used.get(pid or 0, 0.0) for pid in members)


def measured(rounds: int, programs: int, workers: int) -> dict[str, Side]:
    """Every side after so many rounds in turns, and one before them that is not counted."""
    with Sandbox(workers=workers) as box:
        sides = {
            "warm workers": Side(lambda: box.run(PROGRAM).stdout, lambda: of_workers(box)),
            "python -c": Side(bare, of_waited_for),
            "new sandbox": Side(anew, None),  # its processes are not all waited for by those above them
        }
        for number in range(rounds + 1):
            for name, side in sides.items():
                side.round(max(workers, programs // FEWER.get(name, 1)), workers, counts=number > 0)
    return sides


def main(words: list[str]) -> None:
    """Print the table, and the goal beside what was reached."""
    options = dict(DEFAULTS)
    for word in words:
        name, _, value = word.partition("=")
        if name not in DEFAULTS or not value.isdigit() or int(value) < 1:
            raise UserError(f"benchmarks.sandbox: '{word}': give a whole number to one of {', '.join(DEFAULTS)}")
        options[name] = int(value)
    cores = len(os.sched_getaffinity(0))
    print(f"{options}; {cores} cores, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    sides = measured(**options)
    print(
        "| | programs a second (rounds) | ratio | p50, ms | p99, ms | processor, ms |\n|---|---:|---:|---:|---:|---:|"
    )
    for name, side in sides.items():
        print(side.row(name, sides["python -c"]))
    warm = sides["warm workers"]
    rate, each = statistics.median(warm.rates), warm.processor / len(warm.seconds)
    verdict = "reached" if rate >= GOAL else "not reached"
    print(
        f"goal: {GOAL:.0f} a second on 2 cores, {verdict}: {rate:.0f} on {cores}; {cores / each:.0f} by processor time"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
