"""A task's problems as files (``alp prepare``): the sets, what was counted on the way, and what of them stands in
training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from alp.configuration.compose import code_of, identity, origin_of
from alp.configuration.prepare_schema import PrepareConfig
from alp.configuration.run_schema import Run
from alp.configuration.task_schema import Task as TaskConfig
from alp.errors import UserError
from alp.foreign import read_json
from alp.ownership import claimed
from alp.reproducibility import json_line, sha256_file, write_json, write_text
from alp.sharing import Twins
from alp.tasks.catalogue import load_task
from alp.tasks.leakage import leakage, markdown
from alp.tasks.task import SPLITS, Task, check_disjoint


def prepare(
    config: TaskConfig, folder: Path, *, replace: bool = False, twins: Twins | None = None
) -> dict[str, dict[str, object]]:
    """Write every set as JSONL, ``summary.json`` with counts and content hashes, and what of the evaluation sets stands
    in training.

    Sets that share a problem's id are refused; a shared text is reported in ``leakage.json`` and ``leakage.md``.
    """
    task = load_task(config)
    whole = PrepareConfig(task=config, run=Run.of(folder))
    parts = {"config_hash": identity(whole), "code_hash": code_of("prepare", whole)}
    outputs = [*(f"{name}.jsonl" for name in task.sets), "summary.json", "leakage.json", "leakage.md"]
    with claimed(folder, "prepare", origin_of(parts, whole), outputs=outputs, replace=replace, twins=twins) as claim:
        return read_json("prepare", folder / "summary.json") if claim.taken_over else _prepare(task, folder)


def _prepare(task: Task, folder: Path) -> dict[str, dict[str, object]]:
    sets = {name: task.problems(name) for name in task.sets}
    own = {
        name: problems for name, problems in sets.items() if name != "test" or len(sets) == len(SPLITS)
    }  # test: the others together
    try:
        check_disjoint(own)
    except ValueError as error:
        raise UserError(f"prepare: {error}") from None
    summary: dict[str, dict[str, object]] = {}
    for name, problems in sets.items():
        path = folder / f"{name}.jsonl"
        write_text(path, "".join(json_line(asdict(problem)) for problem in problems))
        steps = task.steps(name)
        summary[name] = {"problems": len(problems), "sha256": sha256_file(path)} | ({"steps": steps} if steps else {})
    report = leakage(sets["train"], {name: problems for name, problems in own.items() if name != "train"})
    write_json(folder / "leakage.json", report)
    write_text(folder / "leakage.md", markdown(report))
    write_json(folder / "summary.json", summary)
    return summary
