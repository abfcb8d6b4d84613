"""Problems from local JSONL files and from the Hugging Face hub, through one loader, with a count at every step."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from alp.configuration.task_schema import Length, Source
from alp.errors import UserError, nearest
from alp.foreign import is_file, read_lines, reading
from alp.places import nearest_folder
from alp.tasks.task import Problem

_COMMIT = re.compile(r"[0-9a-f]{40}")
Row = dict[str, Any]
Step = dict[str, object]


def load(source: Source, name: str, length: Length | None, place: str) -> tuple[list[Problem], Step]:
    """Problems of one source, named ``<name>:<id>``, and what was counted. ``place`` is where the configuration says
    it, for errors."""
    rows, step = _local(source, place) if source.path is not None else _hub(source, place)
    step |= {"rows": len(rows)}
    if source.score_above is not None or source.score_below is not None:
        rows = [row for row in rows if _within(_score(row, source, place), source)]
        step["within_score"] = len(rows)
    problems = _unique([_problem(row, number, source, name, place) for number, row in enumerate(rows)])
    found = [problem for problem in problems if problem.answer and problem.problem]
    if len(found) < len(problems):
        step["with_answer"] = len(found)
    if length is not None and (length.min or length.max):
        measure = _measure(length)
        found = [problem for problem in found if length.min <= measure(problem.problem) <= (length.max or float("inf"))]
        step["within_length"] = len(found)
    if source.first is not None:
        found = found[: source.first]
        step["first"] = len(found)
    return found, step


def local_file(source: Source, place: str) -> Path:
    """The file of a local source, whose ``path`` is set. Raises UserError where there is none."""
    path = Path(str(source.path))
    if not is_file(path):
        standing = nearest_folder(path.parent)
        hint = nearest(path.name, [other.name for other in standing.glob("*.jsonl")])
        raise UserError(f"{place}.path: no file {path}; the nearest folder that exists is {standing}{hint}")
    return path


def _local(source: Source, place: str) -> tuple[list[Row], Step]:
    path = local_file(source, place)
    return [row for _, row in read_lines(f"{place}.path", path)], {"source": path.name}


def _hub(source: Source, place: str) -> tuple[list[Row], Step]:
    """Rows of a dataset of the hub (or of a local folder of the same form) at one commit."""
    hub, revision = str(source.hub), str(source.revision)
    try:
        import datasets
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(
            f"{place}.hub: {hub} needs the package datasets: pip install '.[hub]', or name a local JSONL by path"
        ) from None
    folder = Path(hub).is_dir()
    try:
        if not folder and not _COMMIT.fullmatch(revision):
            revision = str(HfApi().dataset_info(hub, revision=revision, timeout=20).sha)
        data = datasets.load_dataset(
            hub, source.config, split=source.split, data_files=source.files, revision=None if folder else revision
        )
    except Exception as error:  # the libraries below raise whatever the network, the server or a file makes them
        first = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{place}.hub: cannot load {hub} at {revision} from the Hugging Face hub ({type(error).__name__}: {first});"
            " where there is no network name a local JSONL by path, or prepare elsewhere and set task.data"
        ) from None
    step: Step = {"source": Path(hub).name if folder else hub, "split": source.split}
    return [dict(row) for row in data], step if folder else step | {"revision": revision}


def _take(row: Any, path: str, place: str) -> Any:
    """The value at a dotted path. Raises UserError naming what the row has instead."""
    value = row
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            known = list(value) if isinstance(value, dict) else []
            raise UserError(f"{place}.fields: a row has no '{path}'{nearest(part, known)}")
    return value


def _score(row: Row, source: Source, place: str) -> float:
    value = _take(row, str(source.fields.score), place)
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(number, int | float) for number in numbers):
        return float("nan")  # lies in no range
    return sum(numbers) / len(numbers)


def _within(score: float, source: Source) -> bool:
    low = float("-inf") if source.score_above is None else source.score_above
    high = float("inf") if source.score_below is None else source.score_below
    return low < score < high


def _problem(row: Row, number: int, source: Source, name: str, place: str) -> Problem:
    fields = source.fields
    text = str(_take(row, fields.problem, place))
    if source.remove:
        text = text.replace(source.remove, "")
    answer = _take(row, fields.answer, place)
    if isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    own = fields.id or ("id" if "id" in row else None)
    identity = number if own is None else _take(row, own, place)
    origin = row.get("source") if source.path is not None else None
    label = origin if isinstance(origin, str) else (Path(source.place).name if source.path else source.place)
    return Problem(
        id=f"{name}:{identity}",
        problem=text.strip(),
        answer="" if answer is None else str(answer).strip(),
        source=label,
    )


def _unique(problems: list[Problem]) -> list[Problem]:
    """Ids that a source uses twice get the row's number."""
    seen: set[str] = set()
    found = []
    for number, problem in enumerate(problems):
        if problem.id in seen:
            problem = Problem(f"{problem.id}#{number}", problem.problem, problem.answer, problem.source)
        seen.add(problem.id)
        found.append(problem)
    return found


def _measure(length: Length) -> Callable[[str], int]:
    if length.tokenizer is None:
        return len
    from transformers import AutoTokenizer

    folder = Path(length.tokenizer)
    if not is_file(folder / "tokenizer_config.json"):
        raise UserError(f"task.length.tokenizer: no tokenizer in {folder} (no tokenizer_config.json)")
    with reading("task.length.tokenizer", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def normalised(text: str) -> str:
    """A prompt for comparison: one form of every character, one space where there are several."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def merged(parts: Iterable[list[Problem]], keep: str) -> tuple[list[Problem], Step]:
    """All parts one after another, each prompt once: its first or its last problem."""
    problems = [problem for part in parts for problem in part]
    kept: dict[str, Problem] = {}
    conflicts = 0
    for problem in problems if keep == "first" else reversed(problems):
        other = kept.setdefault(normalised(problem.problem), problem)
        conflicts += other.answer != problem.answer
    stay = {id(problem) for problem in kept.values()}
    found = [problem for problem in problems if id(problem) in stay]
    return found, {
        "merged": len(problems),
        "different_prompts": len(found),
        "dropped_with_another_answer": conflicts,
        "keep": keep,
    }
