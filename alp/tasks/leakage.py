"""How much of an evaluation set stands in the training set: the same prompts, and runs of 13 words in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alp.tasks.sources import count_folded, normalised
from alp.tasks.task import Problem

WORDS = 13
_WORD = re.compile(r"\w+")


def leakage(training: Sequence[Problem], evaluation: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """Counts and ids for each evaluation set; problems under 13 words can only be found by the whole prompt.
    ``folded``: how many of each set's same prompts are not the same to the letter."""
    prompts: dict[str, Problem] = {}
    for problem in training:
        prompts.setdefault(normalised(problem.problem), problem)
    wanted = {
        name: {problem.id: _runs(problem.problem) for problem in problems} for name, problems in evaluation.items()
    }
    places: dict[str, str] = {}
    wanted_runs = {run for runs in wanted.values() for found in runs.values() for run in found}
    for problem in training:
        for run in wanted_runs & _runs(problem.problem):
            places.setdefault(run, problem.id)
    report: dict[str, Any] = {"training_problems": len(training), "words": WORDS, "sets": {}, "folded": {}}
    for name, problems in evaluation.items():
        same = [(problem, prompts[key]) for problem in problems if (key := normalised(problem.problem)) in prompts]
        shared = {key: places[min(hits)] for key, runs in wanted[name].items() if (hits := runs & places.keys())}
        short = sum(not wanted[name][problem.id] for problem in problems)
        report["sets"][name] = {
            "problems": len(problems),
            "shorter_than_13_words": short,
            "exact": {problem.id: other.id for problem, other in same},
            "shared_13_words": shared,
        }
        report["folded"][name] = count_folded(same)
    return report


def _runs(text: str) -> set[str]:
    """Every 13 words in a row, in lower case, without punctuation."""
    words = _WORD.findall(normalised(text).lower())
    return {" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)}


def markdown(report: Mapping[str, Any]) -> str:
    """The counts as a pipe table."""
    lines = ["| set | problems | same prompt in training | 13 words in a row in training | under 13 words |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, entry in report["sets"].items():
        numbers = [
            entry["problems"],
            len(entry["exact"]),
            len(entry["shared_13_words"]),
            entry["shorter_than_13_words"],
        ]
        lines.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines) + "\n"
