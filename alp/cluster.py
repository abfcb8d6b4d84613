"""What is added to Snakemake's executor for Slurm: jobs under names of their own, a start that sees the jobs an earlier
one left, and training jobs on several machines.

The executor gives all its jobs one name, an identifier drawn at random, and asks for their states by it. ``adapt`` has
it ask for all jobs of the user instead (it looks its own up by number), which leaves the names to be chosen.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from alp.errors import UserError

_GONE = "PREEMPTED"  # of a job that was not put back into the queue: it will never run again
_FAILED = "CANCELLED"  # a state in which the executor takes a job for failed
_SQUEUE_SECONDS = 60.0
_PORTS = 20_000, 10_000  # of rendezvous, by the number of the job: the first, and how many
_WRITING = 3600  # seconds that ranks have for their checkpoint after a signal


def job_name(grid: str, rule: str, wildcards: Mapping[str, str]) -> str:
    """``train-seq_alp-seed1@smoke``: what tells most first, since squeue shows eight characters by itself. No grid has
    an @ in its name."""
    parts = [rule, *(f"seed{value}" if key == "seed" else value for key, value in wildcards.items())]
    return f"{'-'.join(parts)}@{grid}"


def adapt(executor: ModuleType, grid: str) -> None:
    """Have the Slurm executor (the module ``snakemake_executor_plugin_slurm``) name the jobs of ``grid``."""
    submit, ask = executor.get_submit_command, executor.query_job_status

    def named(job: Any, params: dict[str, Any], **options: Any) -> str:
        name = job_name(grid, job.name, dict(job.wildcards_dict))
        return str(submit(job, params | {"run_uuid": name}, **options))

    async def states(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        found, seconds = await ask(command, logger)
        return found and {number: plain_state(state) for number, state in found.items()}, seconds

    executor.get_submit_command = named  # type: ignore[attr-defined]
    executor.query_job_status = states  # type: ignore[attr-defined]
    for query in ("query_job_status_squeue", "query_job_status_sacct"):
        setattr(executor, query, _of_the_user(getattr(executor, query)))


def plain_state(state: str) -> str:
    """The state of a job in the words that the executor knows: it waits for ever for one that was preempted and not
    requeued, and for one of which sacct says by whom it was cancelled."""
    word = state.split()[0] if state.split() else state
    return _FAILED if word == _GONE else word


def _of_the_user(build: Callable[[str], str]) -> Callable[[str], str]:
    """The command that ``build`` makes, with a user's jobs in the place of those of a name."""

    def query(run: str) -> str:
        words = shlex.split(build(run))
        at = words.index("--name")
        return shlex.join([*words[:at], "--user", getpass.getuser(), *words[at + 2 :]])

    return query


def left_behind(grid: str, folder: Path) -> dict[str, str]:
    """Names by number of the jobs of ``grid`` that were submitted from ``folder`` and have not ended. Raises UserError
    where squeue does not answer."""
    said = _said("squeue", "--user", getpass.getuser(), "--noheader", "--format=%i|%j|%Z")
    rows = [line.split("|", 2) for line in said.splitlines() if line.count("|") >= 2]
    here = folder.resolve()
    return {number: name for number, name, place in rows if name.endswith(f"@{grid}") and Path(place).resolve() == here}


def check_nothing_runs(grid: str, folder: Path) -> None:
    """Refuse to submit jobs beside those of a Snakemake that is gone: they would write what those write. Raises
    UserError."""
    if jobs := left_behind(grid, folder):
        number, name = next(iter(jobs.items()))
        others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        raise UserError(
            f"Slurm still has jobs of grid {grid} from an earlier start: {number} ({name}){others}; wait for their end,"
            f" or stop them (training goes on from its checkpoints): scancel {' '.join(jobs)}"
        )


def devices_per_node(said: Any, key: str) -> int | None:
    """The devices of a machine as a user gives them; None where nothing is said. Raises UserError."""
    if said is None:
        return None
    if not str(said).isdecimal() or int(said) < 1:
        raise UserError(f"{key}: an integer above 0 expected, not '{said}'")
    return int(said)


def machines(devices: int, each: int | None) -> int:
    """How many machines of ``each`` devices (None: any number) a job of ``devices`` takes. Raises UserError where some
    of one would be left."""
    if each is None or devices <= each:
        return 1
    if devices % each:
        raise UserError(
            f"trainer.devices = {devices} is not divisible by the {each} devices of a machine (devices_per_node);"
            f" nearest that is: {max(round(devices / each), 1) * each}"
        )
    return devices // each


def over_machines(words: list[str], count: int, each: int) -> list[str]:
    """The command that runs ``alp`` with these words as ``each`` ranks on every one of the ``count`` machines of this
    allocation: torchrun on each, which meet on the first. Raises UserError outside of an allocation."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            f"trainer.devices = {count * each} takes {count} machines of {each} devices (devices_per_node): start it in"
            f" an allocation of Slurm, or with torchrun on each of them"
        )
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    first = _said("scontrol", "show", "hostnames", nodes).split()[0] if nodes else socket.gethostname()
    start, number = _PORTS
    return [
        *("srun", "--overlap", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"),
        *("--cpu-bind=none", "--kill-on-bad-exit=1"),
        *(sys.executable, "-P", "-m", "torch.distributed.run", f"--nnodes={count}", f"--nproc-per-node={each}"),
        *("--rdzv-backend=c10d", f"--rdzv-id={job}", f"--rdzv-endpoint={first}:{start + int(job) % number}"),
        *(f"--shutdown-timeout={_WRITING}", "--no-python", sys.executable, "-P", "-m", "alp.cli", *words),
    ]


def _said(*command: str) -> str:
    """Raises UserError where a client of Slurm does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SQUEUE_SECONDS, check=True).stdout
    except FileNotFoundError:
        raise UserError(f"Slurm: there is no {command[0]} here; start the workflow where jobs are submitted") from None
    except (subprocess.SubprocessError, OSError) as error:
        why = getattr(error, "stderr", None) or error
        raise UserError(f"Slurm: {command[0]} does not answer: {str(why).strip().splitlines()[-1]}") from None
