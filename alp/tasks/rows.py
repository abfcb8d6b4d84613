"""One row of a data set as a problem: what may stand in its fields, and one line for what may not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alp.configuration.task_schema import Source
from alp.errors import UserError, nearest
from alp.foreign import shown
from alp.tasks.task import Problem, is_blank


@dataclass(frozen=True)
class Row:
    """``number`` counts the rows of a source from 0; ``label`` is what its file calls it, as ``line 3``."""

    number: int
    label: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """Reads rows of one source, which the configuration names at ``place``; its problems are ``<name>:<id>``. Every
    method raises UserError naming the file, the row, the field, what stands there and what to do."""

    source: Source
    place: str
    name: str

    def problem(self, row: Row) -> Problem:
        """The problem of a row; its answer is empty where the row has none (null, nothing to see, an empty list)."""
        local = self.source.path is not None
        origin = row.content.get("source") if local else None
        label = origin if isinstance(origin, str) else (Path(self.source.place).name if local else self.source.place)
        return Problem(f"{self.name}:{self._identity(row)}", self._text(row), self._answer(row), label)

    def within(self, row: Row) -> bool:
        """Whether a row's score, or the mean of its scores, lies between the source's bounds; a row without one does
        not."""
        value = self._take(row, "score")
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        for number in numbers:
            if not isinstance(number, int | float) or not math.isfinite(number):
                raise self._wrong(
                    row, "score", f"must be a number or a list of numbers, this is {shown(number)}: write one, or null"
                )
        low, high = self.source.score_above, self.source.score_below
        score = sum(numbers) / len(numbers) if numbers else math.nan
        return (-math.inf if low is None else low) < score < (math.inf if high is None else high)

    def _text(self, row: Row) -> str:
        value = self._take(row, "problem")
        if not isinstance(value, str):
            mend = self._deeper("problem", value) or "write a text, or delete the row"
            raise self._wrong(row, "problem", f"must be a text, this is {shown(value)}: {mend}")
        text = value.replace(self.source.remove, "") if self.source.remove else value
        if is_blank(text):
            without = "" if is_blank(value) else f" without {self.place}.remove"
            raise self._wrong(row, "problem", f"is empty{without}: write one, or delete the row")
        return text.strip()

    def _answer(self, row: Row) -> str:
        value = self._take(row, "answer")
        if value is None:
            return ""
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if not isinstance(part, str) and not _is_number(part):
                found = f"this is {shown(part)}" if part is value else f"this is a list with {shown(part)} in it"
                mend = self._deeper("answer", value) or "write it as a text"
                raise self._wrong(row, "answer", f"must be a text, a number or a list of them, {found}: {mend}")
        texts = [str(part) for part in parts]
        if len(texts) > 1 and any(map(is_blank, texts)):
            raise self._wrong(row, "answer", "is a list with an empty part: write it, or take it out")
        answer = ", ".join(texts).strip()
        return "" if is_blank(answer) else answer

    def _identity(self, row: Row) -> str:
        field = self.source.fields.id
        value = row.content.get("id") if field is None else self._take(row, "id")
        if value is None or (isinstance(value, str) and is_blank(value)):
            if field is None:
                return str(row.number)
        elif isinstance(value, str) or _is_number(value):
            return str(value)
        raise self._wrong(
            row, "id", f"must be a text or a number, this is {shown(value)}: write one that no other row has"
        )

    def _take(self, row: Row, which: str) -> Any:
        """The value at a field's dotted path."""
        path = str(getattr(self.source.fields, which))
        value: Any = row.content
        for part in path.split("."):
            if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, dict) and part in value:
                value = value[part]
            else:
                known = list(value) if isinstance(value, dict) else []
                raise UserError(
                    f"{self.place}.fields: a row has no '{path}'{nearest(part, known)} ({self.source.place},"
                    f" {row.label}); set {self.place}.fields.{which}, or mend the row"
                )
        return value

    def _deeper(self, which: str, value: object) -> str:
        """Which paths to texts there are below a record or a chat that stands where a text should."""
        path = getattr(self.source.fields, which)
        found = [f"{path}.{inside}" for inside in _inside(value)][:4]
        return f"set {self.place}.fields.{which} to {' or '.join(found)}" if found else ""

    def _wrong(self, row: Row, which: str, what: str) -> UserError:
        key = "path" if self.source.path is not None else "hub"
        field = getattr(self.source.fields, which) or which
        return UserError(f"{self.place}.{key}: {self.source.place}, {row.label}: '{field}' {what}")


def _is_number(value: object) -> bool:
    """Whether a value is a number that can be written down: JSON of others has NaN and infinities too."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and str(value).lstrip("-") not in ("nan", "inf")


def _inside(value: object) -> list[str]:
    """Names of the texts and numbers of a record; of a chat the places of what the user says."""
    if isinstance(value, dict):
        return [name for name, part in value.items() if isinstance(part, str) or _is_number(part)]
    turns = {
        place: turn
        for place, turn in enumerate(value if isinstance(value, list) else [])
        if isinstance(turn, dict) and isinstance(turn.get("content"), str)
    }
    asked = [place for place, turn in turns.items() if turn.get("role") == "user"]
    return [f"{place}.content" for place in asked or turns]
