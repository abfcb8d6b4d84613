"""Problems from local JSONL files and from the Hugging Face hub, through one loader, with a count at every step."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from alp.configuration.task_schema import Length, Source
from alp.errors import UserError, nearest
from alp.foreign import is_file, is_folder, read_lines, reading
from alp.places import nearest_folder
from alp.tasks.rows import Reader, Row
from alp.tasks.task import Problem

_COMMIT = re.compile(r"[0-9a-f]{40}")
Step = dict[str, object]


def load(
    source: Source, name: str, length: Length | None, place: str, *, evaluated: bool = False
) -> tuple[list[Problem], Step]:
    """Problems of one source, named ``<name>:<id>``, and what was counted. ``place`` is where the configuration says
    it, for errors.

    Problems without an answer are left out and counted; where the source is ``evaluated``, they are refused.
    """
    rows, step = _local(source, place) if source.path is not None else _hub(source, place)
    if not rows and not evaluated:
        raise UserError(f"{place}: {source.place} holds no row: leave the source out")
    step |= {"rows": len(rows)}
    reader = Reader(source, place, name)
    if source.score_above is not None or source.score_below is not None:
        rows = [row for row in rows if reader.within(row)]
        step["within_score"] = len(rows)
    read = [reader.problem(row) for row in rows]
    problems = _unique(read)
    if renamed := sum(one.id != other.id for one, other in zip(read, problems, strict=True)):
        step["ids_made_different"] = renamed
    if evaluated:
        _check_answers(problems, rows, source, place)
    found = [problem for problem in problems if problem.answer]
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


def _check_answers(problems: list[Problem], rows: list[Row], source: Source, place: str) -> None:
    """Raise UserError where a problem of an evaluation set has no answer: leaving it out would move the accuracy."""
    lacking = [row.label for row, problem in zip(rows, problems, strict=True) if not problem.answer]
    if len(lacking) == len(problems):
        raise UserError(f"{place}: {source.place} has no problem with an answer: leave the set out")
    if lacking:
        named = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
        raise UserError(
            f"{place}: {source.place}: {len(lacking)} of {len(problems)} problems without an answer"
            f" ('{source.fields.answer}'): {named}; an evaluation set is scored whole: write the answer, or delete the"
            " row"
        )


def local_file(source: Source, place: str) -> Path:
    """The file of a local source, whose ``path`` is set. Raises UserError where there is none."""
    path = Path(str(source.path))
    if is_folder(path):
        hint = nearest(path.name, [other.name for other in path.glob("*.jsonl")])
        raise UserError(f"{place}.path: {path} is a folder, a JSONL file expected{hint}")
    if not is_file(path):
        standing = nearest_folder(path.parent)
        hint = nearest(path.name, [other.name for other in standing.glob("*.jsonl")])
        raise UserError(f"{place}.path: no file {path}; the nearest folder that exists is {standing}{hint}")
    return path


def _local(source: Source, place: str) -> tuple[list[Row], Step]:
    path = local_file(source, place)
    lines = read_lines(f"{place}.path", path)
    return [Row(number, f"line {line}", row) for number, (line, row) in enumerate(lines)], {"source": path.name}


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
    rows = [Row(number, f"row {number}", dict(row)) for number, row in enumerate(data)]
    return rows, step if folder else step | {"revision": revision}


def _unique(problems: list[Problem]) -> list[Problem]:
    """Ids that a source uses twice get the problem's number, as often as it takes."""
    seen: set[str] = set()
    found = []
    for number, problem in enumerate(problems):
        while problem.id in seen:
            problem = replace(problem, id=f"{problem.id}#{number}")
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
    """A prompt for comparison: one form of every character (NFC), one space where there are several. Characters that
    only look alike stay different: 3² is not 32."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def count_folded(pairs: Iterable[tuple[Problem, Problem]]) -> dict[str, int]:
    """Of pairs with the same normalised prompt, how many are the same only because ``spaces`` or the forms of
    ``characters`` are no difference."""
    kinds = Counter(
        "spaces" if one.problem.split() == other.problem.split() else "characters"
        for one, other in pairs
        if one.problem != other.problem
    )
    return {kind: kinds[kind] for kind in ("spaces", "characters")}


def merged(parts: Iterable[list[Problem]], keep: str) -> tuple[list[Problem], Step]:
    """All parts one after another, each prompt once: its first or its last problem."""
    problems = [problem for part in parts for problem in part]
    kept: dict[str, Problem] = {}
    pairs = [
        (problem, kept.setdefault(normalised(problem.problem), problem))
        for problem in (problems if keep == "first" else reversed(problems))
    ]
    stay = {id(problem) for problem in kept.values()}
    found = [problem for problem in problems if id(problem) in stay]
    return found, {
        "merged": len(problems),
        "different_prompts": len(found),
        "dropped_with_another_answer": sum(one.answer != other.answer for one, other in pairs),
        "folded": count_folded(pairs),
        "keep": keep,
    }
