"""A plan as people read it: the jobs, the devices, and what does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alp.planning.size import GIB

if TYPE_CHECKING:
    from alp.planning.plan import Job, Plan

_NAMED = 3  # arms of a row that are named
_HEAD = ("Job", "Jobs", "Samples", "Tokens", "Updates", "FLOPs", "Time", "All", "Memory, GiB", "Disk, GiB")


def text(plan: Plan) -> str:
    """Head, jobs, devices, critical path, disk, what does not fit, and what was assumed."""
    total = sum(job.count * job.seconds for job in plan.jobs) / 3600
    jobs = sum(job.count for job in plan.jobs)
    lines = [
        f"{plan.grid.title}: {jobs} jobs, {short(plan.size.parameters)} parameters, {hours(total)} of one"
        f" {plan.device}",
        "",
        *table(_HEAD, _rows(plan.jobs)),
        "",
        *table(("Device", "All jobs, by assumption"), [(name, hours(one)) for name, one in plan.hours.items()]),
        "",
        _critical(plan),
        f"Disk: {plan.disk / GIB:.2f} GiB with the checkpoint of one running job; {plan.free / GIB:.0f} GiB are free."
        + (" That is not enough." if plan.disk > plan.free else ""),
        *_too_large(plan),
        _assumed(plan),
    ]
    return "\n".join(lines)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A pipe table, the first column left."""
    rule = ":---", *("---:" for _ in head[1:])
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def _rows(jobs: list[Job]) -> list[tuple[str, ...]]:
    """One for each kind of job; arms that do and take the same share a row."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        alike = (job.stage, job.arm == "base", job.count, job.work, job.seconds)
        groups.setdefault(repr(alike), []).append(job)
    return [_row(alike) for alike in groups.values()]


def _row(jobs: list[Job]) -> tuple[str, ...]:
    first, count = jobs[0], sum(job.count for job in jobs)
    done = first.work
    each = [count, done.samples, done.tokens, done.updates, done.all_flops]
    times = [hours(first.seconds / 3600) + ("" if first.measured else "*"), hours(count * first.seconds / 3600)]
    memory = f"{done.memory / GIB:.2f}" + ("" if first.fits else " !")
    return (_names(jobs), *map(short, each), *times, memory, f"{done.disk / GIB:.2f}")


def _names(jobs: list[Job]) -> str:
    arms = [job.arm for job in jobs if job.arm]
    shown = arms if len(arms) <= _NAMED else [*arms[: _NAMED - 1], f"{len(arms) - _NAMED + 1} more"]
    return " ".join([jobs[0].stage, ", ".join(shown)]).strip()


def _critical(plan: Plan) -> str:
    chain = " → ".join(job.name for job in plan.critical)
    whole = hours(sum(job.seconds / job.work.devices for job in plan.critical) / 3600)
    return f"Critical path, which no number of devices shortens: {chain}, {whole}."


def _too_large(plan: Plan) -> list[str]:
    """What does not fit, by name, once for jobs of equal needs."""
    lines = []
    for need in sorted({job.work.memory for job in plan.jobs if not job.fits}, reverse=True):
        large = [job for job in plan.jobs if job.work.memory == need and not job.fits]
        stages = dict.fromkeys(job.stage for job in large)
        names = "; ".join(_names([job for job in large if job.stage == stage]) for stage in stages)
        lines.append(
            f"! Does not fit on one {plan.device} ({plan.memory_gib:g} GiB): {names}: {need / GIB:.0f} GiB; an adapter"
            " (model.lora), weights in bfloat16 (trainer.precision), or several devices (trainer.devices) take less."
        )
    return lines


def _assumed(plan: Plan) -> str:
    known = any(job.measured for job in plan.jobs)
    text = (
        f"Assumed: prompts of {plan.lengths.prompt} tokens, responses of {100 * plan.lengths.fill:g} % of their limit,"
        " and of a device what configs/plan.yaml says of its speed"
    )
    if devices := max(job.work.devices for job in plan.jobs):
        text += f"; training on {devices} devices a job (memory is of each)" if devices > 1 else ""
    return f"{text}; hours without * are measured in this grid's runs." if known else f"{text} (*)."


def hours(value: float) -> str:
    """``35.1 h``, ``12 min``, ``3.4 s``: two digits or more."""
    for unit, size in (("h", 1.0), ("min", 1 / 60)):
        if value >= size:
            return (
                f"{value / size:.1f} {unit}" if value / size < 1000 else f"{value / size:,.0f} {unit}".replace(",", " ")
            )
    return f"{3600 * value:.2g} s"


def short(value: Any) -> str:
    """1.2 M, 3.4e18."""
    if value < 10_000:
        return f"{value:,.0f}".replace(",", " ")
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= value < 1000 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.2e}"
