"""Result files of a grid read from disk, checked: what is missing or damaged is named with the command that builds it
again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from alp import foreign
from alp.errors import UserError

Floats = NDArray[np.float64]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = int | FiniteFloat
STEP: TypeAdapter[dict[str, Any]] = TypeAdapter(
    dict[str, Number | None], config=ConfigDict(strict=True)
)  # a line of metrics.jsonl


class _Update(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    step: int
    log_ratio: list[Number]
    clean_log_ratio: list[Number]
    mean_probability: list[Number]


UPDATE: TypeAdapter[Any] = TypeAdapter(_Update)  # a line of updates.jsonl


class _EvaluationFile(BaseModel):
    """What tables and figures need of ``evaluation/<set>.json``."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    set: str
    problems: Count
    samples: Annotated[Count, Field(ge=1)]
    accuracy: float
    greedy: float | None = None
    correct: list[Count]
    greedy_correct: list[Count] | None = None
    response_length: float | None = None
    truncated: float | None = None
    tools: dict[str, FiniteFloat | None] | None = None
    problem_ids: list[str]
    config_hash: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """One model on one set. ``correct`` and ``greedy_correct`` are (problems,) in the order of ``problem_ids``."""

    set: str
    problems: int
    samples: int
    accuracy: float
    greedy: float | None
    correct: NDArray[np.int64]
    greedy_correct: NDArray[np.int64] | None
    response_length: float | None
    truncated: float | None
    problem_ids: tuple[str, ...]
    config_hash: str | None
    tools: dict[str, float | None] | None = None

    @property
    def per_problem(self) -> Floats:
        """Fraction of right samples (problems,)."""
        fractions: Floats = self.correct / self.samples
        return fractions


def read_text(path: Path, command: str) -> str:
    """A result file's text; without the file a :class:`UserError` that names the command which builds it."""
    if not path.exists():
        raise UserError(f"no {path}: build it with '{command}'")
    try:
        return foreign.read_text("results", path)
    except UserError as error:
        raise UserError(f"{error}; delete it and build it again with '{command}'") from error.__cause__


def damaged(path: Path, what: str, command: str) -> UserError:
    """What to say of a result file that is there and not what it should be."""
    return UserError(f"{path} {what}: delete it and build it again with '{command}'")


def read_json(path: Path, command: str) -> dict[str, Any]:
    """A JSON object from a result file."""
    try:
        value = foreign.parse_json(read_text(path, command))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is no valid JSON ({foreign.reason(error)})", command) from error
    if not isinstance(value, dict):
        raise damaged(path, "holds no JSON object", command)
    return value


def read_lines(path: Path, kind: TypeAdapter[Any], command: str) -> list[dict[str, Any]]:
    """Records of a JSONL file, each of ``kind``. Raises UserError."""
    lines = []
    for number, text in enumerate(read_text(path, command).splitlines(), start=1):
        try:
            lines.append(kind.validate_python(foreign.parse_json(text)))
        except ValidationError as error:
            raise damaged(path, f"has {_fault(error)} at line {number}", command) from None
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"is no valid JSON at line {number} ({foreign.reason(error)})", command) from error
    return lines


def _fault(error: ValidationError) -> str:
    """The first fault that pydantic found, in a few words."""
    first = error.errors(include_input=False, include_url=False)[0]
    return foreign.shortened(f"'{'.'.join(map(str, first['loc'])) or 'its content'}': {first['msg']}")


def read_evaluation(path: Path, command: str) -> Evaluation:
    """One ``evaluation/<set>.json``, whose counts agree with each other. Raises UserError."""
    plain = read_json(path, command)
    try:
        file = _EvaluationFile.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"lacks '{first['loc'][0]}'" if first["type"] == "missing" else f"has {_fault(error)}"
        raise damaged(path, what, command) from None
    marked = file.greedy_correct
    record = Evaluation(
        **file.model_dump(exclude={"correct", "greedy_correct", "problem_ids"}),
        correct=np.asarray(file.correct, dtype=np.int64),
        greedy_correct=None if marked is None else np.asarray(marked, dtype=np.int64),
        problem_ids=tuple(file.problem_ids),
    )
    marks = record.problems if record.greedy_correct is None else len(record.greedy_correct) or record.problems
    if not record.problems == len(record.correct) == len(record.problem_ids) == marks > 0:
        raise damaged(path, "counts its problems differently in different places", command)
    if record.correct.min() < 0 or record.correct.max() > record.samples:
        raise damaged(path, f"has counts of right samples outside 0 ... {record.samples}", command)
    return record
