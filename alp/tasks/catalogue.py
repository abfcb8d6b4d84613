"""Tasks by name, and their problems as files (``alp prepare``). A new task is a module beside this one and a line here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from alp.errors import UserError
from alp.reproducibility import json_line, sha256_file, write_json, write_text
from alp.schema_tasks import ArithmeticTask, CustomTask, MathematicsTask, ReasoningGymTask, SumsInWordsTask
from alp.tasks import custom
from alp.tasks.arithmetic import Arithmetic
from alp.tasks.leakage import leakage, markdown
from alp.tasks.mathematics import Mathematics
from alp.tasks.reasoning import ReasoningGym
from alp.tasks.sums_in_words import SumsInWords
from alp.tasks.task import SPLITS, Task, check_disjoint

TaskConfig = ArithmeticTask | SumsInWordsTask | MathematicsTask | ReasoningGymTask | CustomTask


def load_task(config: TaskConfig) -> Task:
    """The task of a configuration; its problems are read from ``config.data`` when that is set."""
    if isinstance(config, ArithmeticTask):
        return Arithmetic(config)
    if isinstance(config, SumsInWordsTask):
        return SumsInWords(config)
    if isinstance(config, MathematicsTask):
        return Mathematics(config)
    if isinstance(config, ReasoningGymTask):
        return ReasoningGym(config)
    return custom.load(config)


def prepare(config: TaskConfig, folder: Path) -> dict[str, dict[str, object]]:
    """Write every set as JSONL, ``summary.json`` with counts and content hashes, and what of the evaluation sets stands in training.

    Sets that share a problem's id are refused; a shared text is reported in ``leakage.json`` and ``leakage.md``.
    """
    task = load_task(config)
    sets = {name: task.problems(name) for name in task.sets}
    own = {name: problems for name, problems in sets.items() if name != "test" or len(sets) == len(SPLITS)}  # test: the others together
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
