"""What the workflow adds to Snakemake's executor for Slurm: jobs under names of their own, and a start that sees the
jobs an earlier one left.

The executor gives all its jobs one name, an identifier drawn at random, and asks for their states by it. ``adapt`` has
it ask for all jobs of the user instead (it looks its own up by number), which leaves the names to be chosen.
"""

from __future__ import annotations

import getpass
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from alp.errors import UserError

_GONE = "PREEMPTED"  # of a job that was not put back into the queue: it will never run again
_FAILED = "CANCELLED"  # a state in which the executor takes a job for failed
_SQUEUE_SECONDS = 60.0


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
    command = ["squeue", "--user", getpass.getuser(), "--noheader", "--format=%i|%j|%Z"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_SQUEUE_SECONDS, check=True).stdout
    except FileNotFoundError:
        raise UserError("Slurm: there is no squeue here; start the workflow where jobs are submitted") from None
    except (subprocess.SubprocessError, OSError) as error:
        why = getattr(error, "stderr", None) or error
        raise UserError(f"Slurm: squeue does not answer: {str(why).strip().splitlines()[-1]}") from None
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
