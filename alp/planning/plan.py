"""``alp plan``: every job of a grid before it starts, what it does and what it takes. Reads alone, but for its JSON
file.

Hours come from what runs of this very grid took (``timings.jsonl`` below ``results/<grid>``), where there are any; else
from FLOPs and the part of a device's speed that configs/plan.yaml assumes.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alp.configuration import compose
from alp.configuration import grid as grids
from alp.configuration.grid import Grid, job_of
from alp.configuration.plan_schema import Device, PlanConfig
from alp.errors import UserError, nearest
from alp.planning import work
from alp.planning.size import FLOAT32, GIB, Size, size_of
from alp.planning.table import text
from alp.planning.work import Lengths, Work
from alp.reproducibility import write_json

EMBEDDED_PROMPT, PROMPT = 8, 256  # tokens
_USABLE = 0.95  # of a device's memory
_KINDS = {"sample": "seconds/rollout", "score": "seconds/score", "update": "seconds/update"}


@dataclass(frozen=True)
class Job:
    """One kind of job, ``count`` times: what each does and takes, ``seconds`` of all its devices together.
    ``measured``: its hours are of runs of this grid."""

    stage: str
    arm: str | None
    count: int
    work: Work
    seconds: float
    measured: bool
    fits: bool

    @property
    def name(self) -> str:
        return f"{self.stage} {self.arm}" if self.arm else self.stage


@dataclass(frozen=True)
class Plan:
    """The whole grid on one kind of device; ``critical`` is the longest chain of jobs that wait for one another."""

    grid: Grid
    device: str
    memory_gib: float
    size: Size
    lengths: Lengths
    jobs: list[Job]
    hours: dict[str, float]  # of all jobs by device, from the assumptions alone
    free: int  # bytes where the results go

    @property
    def critical(self) -> list[Job]:
        """The model, then the longest training and its evaluation."""
        first = [job for job in self.jobs if job.stage in ("fetch", "pretrain")]
        ends = {job.arm: job.seconds for job in self.jobs if job.stage == "evaluate"}
        trainings = [job for job in self.jobs if job.stage == "train"]
        last = max(trainings, key=lambda job: job.seconds + ends.get(job.arm, 0.0))
        return [*first, last, *(job for job in self.jobs if job.stage == "evaluate" and job.arm == last.arm)]

    @property
    def disk(self) -> float:
        """Bytes that stay, and the checkpoint of one running job."""
        return sum(job.count * job.work.disk for job in self.jobs) + max(job.work.checkpoint for job in self.jobs)

    def as_json(self) -> dict[str, Any]:
        """For machines: hours, GiB, and every job."""
        return {
            "grid": self.grid.name,
            "device": self.device,
            "parameters": self.size.parameters,
            "assumed": asdict(self.lengths),
            "jobs": [
                {
                    "stage": job.stage,
                    "arm": job.arm,
                    "jobs": job.count,
                    "fits": job.fits,
                    **{key: getattr(job.work, key) for key in ("devices", "samples", "tokens", "updates")},
                    "flops": dict(job.work.flops),
                    "hours": job.seconds / 3600,
                    "measured": job.measured,
                    **{f"{key}_gib": getattr(job.work, key) / GIB for key in ("memory", "disk", "checkpoint")},
                }
                for job in self.jobs
            ],
            "hours": sum(job.count * job.seconds for job in self.jobs) / 3600,
            "hours_by_device": self.hours,
            "critical_path": [job.name for job in self.critical],
            "critical_hours": sum(job.seconds / job.work.devices for job in self.critical) / 3600,
            "disk_gib": self.disk / GIB,
        }


def plan(config: PlanConfig) -> str:
    """The plan as text; as JSON in ``config.output``, if that is set. Raises UserError for what cannot be planned."""
    grids.check_results(config.results)
    made = make(config)
    if config.output is not None:
        _write(Path(config.output), made.as_json())
    return text(made)


def _write(path: Path, plain: dict[str, Any]) -> None:
    """The plan for machines; a file that is there gives way where it is a plan. Raises UserError for any other."""
    if path.exists():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = None
        if not isinstance(kept, dict) or kept.keys() != plain.keys():
            raise UserError(f"plan: output: {path} is there and is no plan: name another file")
    write_json(path, plain)


def make(config: PlanConfig) -> Plan:
    """Work and hours of every job of the grid."""
    grid, results = grids.load(config.grid), Path(config.results)
    first = job_of(grid, grid.arms[0])
    embedded = first.model.source is None and grid.own_model is None
    size = size_of(first.model, config.shapes, grid.model_dir(results), taught=embedded)
    lengths = Lengths(config.prompt_tokens or (EMBEDDED_PROMPT if embedded else PROMPT), config.fill)
    name = config.device or ("cpu_core" if embedded else "h100")
    if name not in config.devices:
        raise UserError(f"plan: device: no device '{name}'{nearest(name, config.devices)}")
    device = config.devices[name]
    works = _works(grid, results, config, size, lengths)
    jobs = [
        Job(stage, arm, count, done, *_seconds(grid, results, stage, arm, done, device), _fits(done, device))
        for stage, arm, count, done in works
    ]
    hours = {
        other: sum(count * assumed(done, speed) for _, _, count, done in works) / 3600
        for other, speed in config.devices.items()
    }
    return Plan(grid, name, device.memory_gib, size, lengths, jobs, hours, _free(results))


def _works(
    grid: Grid, results: Path, config: PlanConfig, size: Size, lengths: Lengths
) -> list[tuple[str, str | None, int, Work]]:
    """Stage, arm, number of jobs and work of each, in the order they run in."""
    words = grid.overrides("evaluate", config.results)
    base = compose.load("evaluate", words)
    problems = work.problems_of(base, config.problems, grid.data_dir(results))
    evaluated = work.evaluation(base, size, lengths, problems)
    found: list[tuple[str, str | None, int, Work]] = []
    if grid.own_model is None:
        found.append(_beginning(grid, config, size, lengths))
    found.append(("evaluate", "base", 1, evaluated))
    for arm in grid.arms:
        done = work.training(job_of(grid, arm), size, lengths)
        found.append(("train", arm.name, len(grid.seeds), done))
    for arm in grid.arms:
        found.append(("evaluate", arm.name, len(grid.seeds), evaluated))
    return found


def _beginning(grid: Grid, config: PlanConfig, size: Size, lengths: Lengths) -> tuple[str, str | None, int, Work]:
    """The job that brings the base model."""
    weights = FLOAT32 * size.parameters
    if grid.fetched:
        return "fetch", None, 1, Work(0, 0.0, memory=2.0 * weights, disk=weights)
    taught = compose.load("pretrain", grid.overrides("pretrain", config.results))
    length = lengths.prompt + lengths.fill * job_of(grid, grid.arms[0]).rollout.max_new_tokens
    flops = {"update": 3.0 * taught.pretrain.steps * taught.pretrain.batch * length * size.forward_flops(length)}
    return "pretrain", None, 1, Work(0, 0.0, taught.pretrain.steps, flops, 4.0 * weights, weights)


# ---- seconds ---------------------------------------------------------------------------------------------------------


def assumed(done: Work, device: Device) -> float:
    """Seconds by the device's speed and what part of it each kind of work is said to reach."""
    parts = {"sample": device.sample, "score": device.score, "update": device.update}
    return math.fsum(flops / (device.tflops * 1e12 * parts[kind]) for kind, flops in done.flops.items())


def _seconds(grid: Grid, results: Path, stage: str, arm: str | None, done: Work, device: Device) -> tuple[float, bool]:
    """Of one job, and whether that is measured: steps of the arm's runs; of an evaluation its tokens by the speed of
    rollouts."""
    if stage == "train" and (lines := _timings(grid, results, arm)):
        steps = job_of(grid, grid.arm(str(arm))).trainer.steps
        return done.devices * steps * statistics.fmean(_whole(line) for line in lines), True
    if stage == "evaluate" and (lines := _timings(grid, results, None)):
        taken = sum(line.get(_KINDS["sample"], 0.0) for line in lines)
        tokens = sum(line.get("response_tokens", 0.0) for line in lines)
        if taken and tokens:
            return done.tokens * taken / tokens, True
    return assumed(done, device), False


def _whole(line: dict[str, Any]) -> float:
    return math.fsum(value for key, value in line.items() if key.startswith("seconds/"))


def _timings(grid: Grid, results: Path, arm: str | None) -> list[dict[str, Any]]:
    """Lines of the runs of an arm, or of all of them. Raises UserError for a file that holds something else."""
    lines = []
    for one in grid.arms if arm is None else [grid.arm(arm)]:
        for seed in grid.seeds:
            path = grid.run_dir(results, one.name, seed) / "timings.jsonl"
            if not path.is_file():
                continue
            try:
                found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                lines += [line for line in found if _whole(line) > 0]
            except (OSError, ValueError, AttributeError, TypeError) as error:
                raise UserError(f"plan: {path} holds no timings ({type(error).__name__})") from None
    return lines


def _fits(done: Work, device: Device) -> bool:
    return done.memory <= _USABLE * device.memory_gib * GIB


def _free(results: Path) -> int:
    """Bytes free where the results go: of the nearest folder that is there."""
    place = results.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
