"""The configurations of tasks (docs/tasks.md): ``Task`` is one of them, told apart by ``name``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from alp.schema_base import NonNegative, Positive, Strict

SPLITS = ("train", "validation", "test")


class _Task(Strict):
    """What tasks share. ``data`` is a folder of prepared ``<set>.jsonl`` files; without it the problems are made or loaded on the spot."""

    data: str | None

    @property
    def sets(self) -> list[str]:
        """Names of the sets that can be trained, validated or evaluated on."""
        return list(SPLITS)

    def check_limit(self, max_new_tokens: int) -> None:
        """Refuse a limit on responses that no right answer fits into; most tasks cannot know one."""


class ArithmeticTask(_Task):
    """Sums of two numbers of at most ``digits`` digits, generated from ``seed``."""

    name: Literal["arithmetic"]
    digits: Annotated[int, Field(ge=1, le=3)]
    seed: NonNegative
    train: Positive
    validation: Positive
    test: Positive

    @model_validator(mode="after")
    def _fits(self) -> ArithmeticTask:
        numbers, wanted = 10**self.digits, self.train + self.validation + self.test
        available = numbers * (numbers + 1) // 2  # pairs whatever their order: 3+5 and 5+3 count as one
        if wanted > available:
            raise ValueError(f"train + validation + test = {wanted} problems, but {self.digits}-digit sums give only {available}")
        return self

    @property
    def longest_solution(self) -> int:
        """Tokens of the longest worked sum, end token included: columns of 7 and 9 characters, #, the sum."""
        return 7 + 9 * (self.digits - 1) + 1 + (self.digits + 1) + 1

    def check_limit(self, max_new_tokens: int) -> None:
        """Refuse a limit that cuts worked solutions off: they would earn nothing, and nobody would be told."""
        if max_new_tokens < self.longest_solution:
            raise ValueError(f"max_new_tokens = {max_new_tokens} cuts worked {self.digits}-digit sums ({self.longest_solution} tokens)")


class SumsInWordsTask(_Task):
    """Questions about two numbers below ten, written in words (alp/tasks/sums_in_words.py)."""

    name: Literal["sums_in_words"]
    operations: Annotated[list[Literal["plus", "minus", "larger", "smaller"]], Field(min_length=1)]
    seed: NonNegative
    train: Positive
    validation: Positive
    test: Positive

    @property
    def available(self) -> int:
        """Problems there are: pairs whatever their order, two equal numbers in sums and differences alone, less two pairs for examples."""
        return sum(55 - 2 if name in ("plus", "minus") else 45 - 2 for name in self.operations)

    @model_validator(mode="after")
    def _fits(self) -> SumsInWordsTask:
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations: {', '.join(self.operations)} names one twice")
        if (wanted := self.train + self.validation + self.test) > self.available:
            raise ValueError(f"train + validation + test = {wanted} problems, but {', '.join(self.operations)} give only {self.available}")
        return self


Task = Annotated[ArithmeticTask | SumsInWordsTask, Field(discriminator="name")]
