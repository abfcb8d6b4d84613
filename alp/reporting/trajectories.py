"""Trajectories of a grid for its page, from ``trajectories.jsonl`` (docs/results.md): turn by turn, every token of the
model's with its log-ratio under the method and what the loss made of it.

Nobody picks them: of every arm those of the first seed, at the first and the last probed step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from alp.configuration.method_schema import Method
from alp.policy.method import Level
from alp.rendering.numbers import number, significant
from alp.reporting.arms import label
from alp.reporting.records import Number, damaged, read_lines
from alp.reporting.runs import ArmRuns, Results, Run

Mark = Literal["loss", "clipped_low", "clipped_high", "dual_clipped", "masked", "left_out", "tool"]
Place = Annotated[int, Field(ge=0, lt=2**53)]
BOUNDS = (0.01, 0.03, 0.1, 0.3)  # of |log r|, in nats: where a token's shade begins, and where it deepens
WORDS: dict[str, str] = {
    "clipped_low": "clipped low",
    "clipped_high": "clipped high",
    "dual_clipped": "dual-clipped",
    "masked": "masked",
}
_CLASSES = {"clipped_low": "cl", "clipped_high": "ch", "dual_clipped": "cd", "masked": "ma"}
_PER_TOKEN = ("token_ids", "text", "turn_ids", "log_ratio", "marks")


class _Trajectory(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    step: Place
    update: Place
    problem: str
    sample: Place
    prompt: str
    prompt_tokens: Place
    response_tokens: Place
    reward: Number
    advantage: Number | None
    finished: bool
    left_out: bool
    log_ratio_sum: Number | None
    mismatch_log_ratio_sum: Number | None
    level_log_ratio: list[Number | None]
    gap: Place
    gap_at: Place
    token_ids: list[Place]
    text: list[str]
    turn_ids: list[Place]
    log_ratio: list[Number | None]
    marks: list[Mark]


TRAJECTORY: TypeAdapter[Any] = TypeAdapter(_Trajectory)  # a line of trajectories.jsonl


@dataclass(frozen=True)
class Part:
    """A stretch of a trajectory: what the model wrote in a turn, or what a tool said to it.

    ``pieces`` are (classes, text): tokens that look alike and plain stand together. ``skipped`` tokens are not kept
    before it. ``log_ratio`` is the loss's to the end of the turn, where it has one a turn.
    """

    turn: int
    tool: bool
    pieces: list[tuple[str, str]]
    skipped: int = 0
    log_ratio: str | None = None


@dataclass(frozen=True)
class Card:
    """One trajectory; ``facts`` are (name, value)."""

    title: str
    prompt: str
    facts: list[tuple[str, str]]
    parts: list[Part]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Shown:
    """An arm's trajectories, by step."""

    name: str
    label: str
    seed: int
    ratio: str
    steps: list[tuple[int, list[Card]]]


def shown(loaded: Results) -> list[Shown]:
    """Of every arm that has any. Raises UserError where a file is missing or damaged."""
    first = ((arm, arm.runs[0]) for arm in loaded.arms)
    read_in = ((arm, run, read(run.folder / "trajectories.jsonl", run.rebuild)) for arm, run in first)
    return [_arm(arm, run, lines) for arm, run, lines in read_in if lines]


def read(path: Path, command: str) -> list[dict[str, Any]]:
    """The lines of a file; ``command`` makes it. Raises UserError."""
    lines = read_lines(path, TRAJECTORY, command)
    for place, line in enumerate(lines, start=1):
        _check(path, place, line, command)
    return lines


def _check(path: Path, place: int, line: dict[str, Any], command: str) -> None:
    """Lists over the same tokens, turns that count up, as many tokens as it says. Raises UserError."""
    lengths = {len(line[name]) for name in _PER_TOKEN}
    if lengths != {line["response_tokens"] - line["gap"]} or line["gap_at"] > len(line["text"]):
        raise damaged(path, f"counts its tokens differently in different places at line {place}", command)
    turns, levels = line["turn_ids"], len(line["level_log_ratio"])
    if turns != sorted(turns) or (levels > 1 and levels <= max(turns, default=0)):
        raise damaged(path, f"counts its turns differently in different places at line {place}", command)


def _arm(arm: ArmRuns, run: Run, lines: list[dict[str, Any]]) -> Shown:
    by_step = {step: list(those) for step, those in groupby(lines, key=lambda line: line["step"])}
    steps = sorted({min(by_step), max(by_step)})
    return Shown(
        name=arm.name,
        label=label(arm.name),
        seed=run.seed,
        ratio=ratio_words(arm.method),
        steps=[(step, [_card(arm, line) for line in by_step[step]]) for step in steps],
    )


LEVELS: dict[Level, str] = {
    "token": "one r a token",
    "sequence": "one r a sequence, the product of its tokens'",
    "sequence_geometric": "one r a sequence, the geometric mean of its tokens'",
    "prefix": "the r of a token is the product up to it",
    "turn": "the r of a token is the product up to the end of its turn",
    "turn_geometric": "one r a turn, the geometric mean of its tokens'",
}


def ratio_words(method: Method) -> str:
    """What r is, in words."""
    numerator = "π_θ,δ" if method.numerator == "perturbed" else "π_θ"
    denominator = "μ" if method.denominator == "rollout" else "π_old"
    return f"r = {numerator} / {denominator}, {LEVELS[method.level]}"


# ---- a trajectory ----------------------------------------------------------------------------------------------------


def _card(arm: ArmRuns, line: dict[str, Any]) -> Card:
    return Card(
        title=f"Problem {line['problem']}, sample {line['sample'] + 1}",
        prompt=line["prompt"],
        facts=_facts(arm, line),
        parts=list(_parts(arm, line)),
        notes=_notes(line),
    )


def _facts(arm: ArmRuns, line: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("reward", f"{line['reward']:g}"), ("advantage A", number(line["advantage"], 2, signed=True) or "–")]
    levels = line["level_log_ratio"]
    if arm.method.level in ("sequence", "sequence_geometric") and levels:
        facts.append(("log r of the sequence", significant(levels[0])))
    elif arm.method.level == "token" and line["log_ratio_sum"] is not None:
        facts.append(("sum of log r", significant(line["log_ratio_sum"])))
    if arm.method.corrections and line["mismatch_log_ratio_sum"] is not None:
        facts.append(("sum of log π_old/μ", significant(line["mismatch_log_ratio_sum"])))
    facts.append(("tokens", str(line["response_tokens"])))
    counts = {word: line["marks"].count(mark) for mark, word in WORDS.items()}
    facts += [(word, str(count)) for word, count in counts.items() if count]
    return [*facts, ("update", str(line["update"]))]


def _notes(line: dict[str, Any]) -> list[str]:
    notes = []
    if line["left_out"]:
        notes.append("Left out of the loss: it has a void turn. It counts in its group's mean and deviation.")
    elif line["advantage"] == 0:
        notes.append("A = 0: the rewards of its group are all equal.")
    if not line["finished"]:
        notes.append("Cut at the limit of tokens.")
    return notes


def _parts(arm: ArmRuns, line: dict[str, Any]) -> Iterator[Part]:
    """In the order of the tokens; what is not kept cuts a part in two."""
    gap_at = line["gap_at"] if line["gap"] else len(line["text"])
    by_turn = arm.method.level in ("prefix", "turn") and line["level_log_ratio"]
    tokens = list(zip(line["turn_ids"], line["text"], line["log_ratio"], line["marks"], strict=True))
    keys = [(place >= gap_at, turn, mark == "tool") for place, (turn, _, _, mark) in enumerate(tokens)]
    told = False
    for (behind, turn, tool), those in groupby(zip(keys, tokens, strict=True), key=lambda item: item[0]):
        skipped = line["gap"] if behind and not told else 0
        told = told or behind
        pieces = list(_pieces([token for _, token in those]))
        yield Part(
            turn=turn + 1,
            tool=tool,
            pieces=[("", pieces[0][1].strip("\n"))] if tool else pieces,
            skipped=skipped,
            log_ratio=significant(line["level_log_ratio"][turn]) if by_turn and not tool else None,
        )


def _pieces(tokens: list[tuple[int, str, float | None, str]]) -> Iterator[tuple[str, str]]:
    """Tokens with their classes; neighbours without any are one piece."""
    looks = ((classes(value, mark), visible(text, tool=mark == "tool")) for _, text, value, mark in tokens)
    for plain, group in groupby(looks, key=lambda look: not look[0]):
        those = list(group)
        yield from [("", "".join(text for _, text in those))] if plain else those


def classes(log_ratio: float | None, mark: str) -> str:
    """CSS classes of a token: ``u`` or ``d`` (r above or below 1) with the depth of its shade, and its mark; none of
    what a tool said, or of what is out of the loss with its whole trajectory."""
    if mark in ("tool", "left_out"):
        return ""
    depth = 0 if log_ratio is None else sum(abs(log_ratio) >= bound for bound in BOUNDS)
    shade = [f"{'u' if (log_ratio or 0) > 0 else 'd'}{depth}"] if depth else []
    return " ".join([*shade, *([_CLASSES[mark]] if mark in _CLASSES else [])])


def visible(text: str, *, tool: bool) -> str:
    """A token's text: control characters spelled out, and a line break of the model's to be seen."""
    shown = "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
    return shown if tool else shown.replace("\n", "↵\n")
