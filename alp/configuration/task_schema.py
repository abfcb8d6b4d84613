"""The configurations of tasks (docs/tasks.md): ``Task`` is one of them, told apart by ``name``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from alp.configuration.fields import NAME_RULE, NonNegative, Positive, Share, Strict, is_name
from alp.configuration.tool_schema import Tools

SPLITS = ("train", "validation", "test")


class _Task(Strict):
    """What tasks share. ``data`` is a folder of prepared ``<set>.jsonl`` files; without it the problems are made or
    loaded on the spot."""

    teachable: ClassVar[bool] = False  # whether the task has worked solutions that a model can be taught
    multi_turn: ClassVar[bool] = False  # whether a tool answers between turns
    names_sets_late: ClassVar[bool] = False  # whether its sets are known only once its module is imported

    data: str | None
    """Folder of prepared ``<set>.jsonl`` files; null: problems are made or loaded on the spot."""

    @property
    def sets(self) -> list[str]:
        """Names of the sets that can be trained, validated or evaluated on."""
        return list(SPLITS)

    @property
    def parts(self) -> list[str]:
        """Names of the sets that ``test`` is made of, where it is more than one; their problems' ids begin with them
        and a colon."""
        return []

    def check_limit(self, max_new_tokens: int) -> None:
        """Refuse a limit on responses that no right answer fits into; most tasks cannot know one."""

    def longest_response(self, max_new_tokens: int) -> int:
        """Tokens that may follow a prompt: one response, or all turns and what is said between them."""
        tools: Tools | None = getattr(self, "tools", None)
        if tools is None:
            return max_new_tokens
        return min(tools.context, tools.turns * (max_new_tokens + tools.observation_tokens))

    def sources_of(self, sets: set[str]) -> dict[str, Source]:  # noqa: ARG002
        """Where the problems of these sets are loaded from, by configuration key; most tasks make theirs."""
        return {}


class ArithmeticTask(_Task):
    """Sums of two numbers of at most ``digits`` digits, generated from ``seed``."""

    teachable: ClassVar[bool] = True

    name: Literal["arithmetic"]
    """Chosen by its file, ``task=…``."""
    digits: Annotated[int, Field(ge=1, le=3)]
    """Digits of a number at most."""
    seed: NonNegative
    """Of the problems."""
    train: Positive
    """Problems to train on."""
    validation: Positive
    """Problems of the validation set."""
    test: Positive
    """Problems of the test set."""

    @model_validator(mode="after")
    def _fits(self) -> ArithmeticTask:
        numbers, wanted = 10**self.digits, self.train + self.validation + self.test
        available = numbers * (numbers + 1) // 2  # pairs whatever their order: 3+5 and 5+3 count as one
        if wanted > available:
            raise ValueError(
                f"train + validation + test = {wanted} problems, but {self.digits}-digit sums give only {available}"
            )
        return self

    @property
    def longest_solution(self) -> int:
        """Tokens of the longest worked sum, end token included: columns of 7 and 9 characters, #, the sum."""
        return 7 + 9 * (self.digits - 1) + 1 + (self.digits + 1) + 1

    def check_limit(self, max_new_tokens: int) -> None:
        """Refuse a limit that cuts worked solutions off: they would earn nothing, and nobody would be told."""
        if max_new_tokens < self.longest_solution:
            raise ValueError(
                f"max_new_tokens = {max_new_tokens} cuts worked {self.digits}-digit sums ({self.longest_solution}"
                " tokens)"
            )


class CalculatorTask(_Task):
    """Chains of ``terms`` numbers of at most ``digits`` digits, with a tool to work them out
    (alp/tasks/calculator.py)."""

    teachable: ClassVar[bool] = True
    multi_turn: ClassVar[bool] = True

    name: Literal["calculator"]
    """Chosen by its file, ``task=…``."""
    digits: Annotated[int, Field(ge=1, le=6)]
    """Digits of a number at most."""
    terms: Annotated[int, Field(ge=2, le=8)]
    """Numbers of a chain."""
    seed: NonNegative
    """Of the problems."""
    train: Positive
    """Problems to train on."""
    validation: Positive
    """Problems of the validation set."""
    test: Positive
    """Problems of the test set."""
    tools: Tools
    """The tool and the rules of an episode."""

    @model_validator(mode="after")
    def _fits(self) -> CalculatorTask:
        wanted = self.train + self.validation + self.test
        available = (10**self.digits - 1) ** self.terms * 2 ** (self.terms - 1)
        if 2 * wanted > available:  # they are drawn until so many different ones are there
            raise ValueError(
                f"train + validation + test = {wanted} problems, more than half of the {available} that {self.terms}"
                f" numbers of {self.digits} digits give"
            )
        return self

    @property
    def longest_solution(self) -> int:
        """Tokens of the longest program, which is longer than any answer: the chain, its call and its two fences."""
        return self.terms * (self.digits + 1) - 1 + 4

    def check_limit(self, max_new_tokens: int) -> None:
        """Refuse a limit on a turn that cuts programs off."""
        if max_new_tokens < self.longest_solution:
            raise ValueError(
                f"max_new_tokens = {max_new_tokens} cuts programs for {self.terms} numbers of {self.digits} digits"
                f" ({self.longest_solution} tokens)"
            )


class SumsInWordsTask(_Task):
    """Questions about two numbers below ten, written in words (alp/tasks/sums_in_words.py)."""

    name: Literal["sums_in_words"]
    """Chosen by its file, ``task=…``."""
    operations: Annotated[list[Literal["plus", "minus", "larger", "smaller"]], Field(min_length=1)]
    """Kinds of question."""
    seed: NonNegative
    """Of the problems."""
    train: Positive
    """Problems to train on."""
    validation: Positive
    """Problems of the validation set."""
    test: Positive
    """Problems of the test set."""

    @property
    def available(self) -> int:
        """Problems there are: pairs whatever their order, two equal numbers in sums and differences alone, less two
        pairs for examples."""
        return sum(55 - 2 if name in ("plus", "minus") else 45 - 2 for name in self.operations)

    @model_validator(mode="after")
    def _fits(self) -> SumsInWordsTask:
        if len(set(self.operations)) < len(self.operations):
            raise ValueError(f"operations: {', '.join(self.operations)} names one twice")
        if (wanted := self.train + self.validation + self.test) > self.available:
            raise ValueError(
                f"train + validation + test = {wanted} problems, but {', '.join(self.operations)} give only"
                f" {self.available}"
            )
        return self


class Fields(Strict):
    """Where a row keeps what we need: names, or paths such as ``reward_model.ground_truth``, ``prompt.0.content``."""

    id: str | None = None
    """Field of a problem's id; null: the row's number."""
    problem: str = "problem"
    """Field of the problem."""
    answer: str = "answer"
    """Field of the answer."""
    score: str | None = None
    """Field of a number, or a list of numbers whose mean counts; null: none."""


class Source(Strict):
    """Problems from one place: a local JSONL file (``path``) or a dataset of the Hugging Face hub (``hub``,
    ``revision``)."""

    path: str | None = None
    """A local JSONL file; null: ``hub`` names the place."""
    hub: str | None = None
    """A dataset of the Hugging Face hub; null: ``path`` does."""
    revision: str | None = None
    """A commit makes the run repeatable; a branch is resolved to one, and the summary names it."""
    config: str | None = None
    """Configuration of the dataset; null: its only one."""
    files: str | None = None
    """Files of the dataset, where it keeps several in one split; null: all."""
    split: str = "train"
    """Split of the dataset."""
    fields: Fields = Fields()
    """Where a row keeps what is needed: names, or paths such as ``prompt.0.content``."""
    remove: str | None = None
    """A sentence that every prompt carries and no problem needs; null: none."""
    score_above: float | None = None
    """Only rows whose score is higher; null: no bound."""
    score_below: float | None = None
    """Only rows whose score is lower; null: no bound."""
    first: Positive | None = None
    """Only so many of the rows that are left; null: all."""
    style: Literal["math", "minerva", "exact"] = "math"
    """How answers are compared."""

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("name one of path (a local JSONL) and hub (a dataset of the Hugging Face hub)")
        if self.hub is not None and self.revision is None:
            raise ValueError(f"hub = {self.hub} needs a revision: a commit of the dataset (or main)")
        if (self.score_above is not None or self.score_below is not None) and self.fields.score is None:
            raise ValueError("score_above and score_below need fields.score")
        return self

    @property
    def place(self) -> str:
        """What people call it."""
        return str(self.path or self.hub)


class Length(Strict):
    """Bounds of a problem's length: tokens of ``tokenizer`` (a local folder), characters without one."""

    tokenizer: str | None
    """A local folder whose tokenizer counts; null: lengths are in characters."""
    min: NonNegative
    """Shortest problem."""
    max: Positive | None
    """Longest problem; null: no bound."""


class MathematicsTask(_Task):
    """Problems of mathematics. Training sources are merged in order; of the same prompt twice ``keep`` says which
    stays."""

    name: Literal["mathematics"]
    """Chosen by its file, ``task=…``."""
    system: str | None
    """What a chat model is told before the problem; null: nothing."""
    train: list[Source]
    """Sources of training problems, merged in order."""
    keep: Literal["first", "last"]
    """Of the same prompt in two sources, which stays."""
    length: Length
    """Bounds of a problem's length."""
    validation: NonNegative
    """Problems held out of the training sources."""
    test: dict[str, Source]
    """Evaluation sets by name, a source each."""
    grader: str | None
    """A function (response, answer) -> reward in [0, 1] by dotted path, in place of the built-in grading; null:
    none."""
    seed: NonNegative
    """Of what is held out."""

    @property
    def sets(self) -> list[str]:
        """The splits, ``test`` being all evaluation sets together, and each evaluation set."""
        return list(dict.fromkeys([*SPLITS, *self.test]))

    @property
    def parts(self) -> list[str]:
        """Every evaluation set."""
        return list(self.test) if len(self.test) > 1 else []

    def sources_of(self, sets: set[str]) -> dict[str, Source]:
        """Training sources serve validation too; ``test`` is every evaluation set."""
        sources: dict[str, Source] = {}
        if sets & {"train", "validation"}:
            sources |= {f"task.train.{number}": source for number, source in enumerate(self.train)}
        if tested := sets - {"train", "validation"}:
            sources |= {f"task.test.{name}": self.test[name] for name in (tested & self.test.keys() or self.test)}
        return sources

    @model_validator(mode="after")
    def _names(self) -> MathematicsTask:
        for name in self.test:
            if name in ("train", "validation", "all") or not is_name(name):
                raise ValueError(
                    f"test: '{name}' is no name for an evaluation set: {NAME_RULE}; not train, validation or all"
                )
        if "test" in self.test and len(self.test) > 1:
            raise ValueError("test: 'test' is all evaluation sets together: give the one of that name another")
        return self


class MathematicsToolsTask(MathematicsTask):
    """The same problems, with turns and a tool between them."""

    multi_turn: ClassVar[bool] = True

    name: Literal["mathematics_tools"]  # type: ignore[assignment]
    """Chosen by its file, ``task=…``."""
    tools: Tools
    """The tool and the rules of an episode."""


class ReasoningGymTask(_Task):
    """Problems of one generator of reasoning-gym; a response counts when its score reaches ``threshold``."""

    name: Literal["reasoning_gym"]
    """Chosen by its file, ``task=…``."""
    generator: str
    """Name of the generator of reasoning-gym."""
    options: dict[str, Any]
    """What the generator is made with."""
    seed: NonNegative
    """Of the problems."""
    train: Positive
    """Problems to train on."""
    validation: Positive
    """Problems of the validation set."""
    test: Positive
    """Problems of the test set."""
    threshold: Share
    """A response counts when its score reaches this."""
    system: str | None
    """What a chat model is told before the problem; null: nothing."""


class CustomTask(_Task):
    """A task of the user's own: ``module`` defines a class ``Task``, made with ``options``."""

    names_sets_late: ClassVar[bool] = True

    name: Literal["custom"]
    """Chosen by its file, ``task=…``."""
    module: str | None
    """Dotted name of the module that defines your class ``Task`` (docs/tasks.md)."""
    options: dict[str, Any]
    """What that class is made with."""


Task = Annotated[
    ArithmeticTask
    | CalculatorTask
    | SumsInWordsTask
    | MathematicsTask
    | MathematicsToolsTask
    | ReasoningGymTask
    | CustomTask,
    Field(discriminator="name"),
]
