"""Does boxing a formula of the question earn reward? Every formula of every question, and the longest one, boxed.

A formula is what stands between dollar signs (or ``\\(``, ``\\[``), and each side of its relations. Questions whose
gold answer stands in them to the letter are counted apart: there a formula of the question is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from alp.tasks.grading import grade_all

_MATHS = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_RELATION = re.compile(r"=|<|>|\\leq?(?![a-z])|\\geq?(?![a-z])|\\equiv|\\approx")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|,|!|;|:)|[\s${}]|\\(?=[dt]frac)|(?<=\\)[dt](?=frac)")


@dataclass(frozen=True)
class Echo:
    """A question in which a boxed formula of its own counts as right."""

    id: str
    formula: str
    answer: str
    longest: bool
    stands: bool  # whether the gold answer stands in the question


def formulas(problem: str) -> list[str]:
    """What a policy could copy, the longest first."""
    problem = re.sub(r"\[asy\].*?\[/asy\]", " ", problem, flags=re.DOTALL)
    whole = [next(filter(None, match.groups())).strip() for match in _MATHS.finditer(problem)]
    sides = [side.strip(" ,.;") for text in whole for side in _RELATION.split(text)]
    return sorted(dict.fromkeys(text for text in (*whole, *sides) if text), key=len, reverse=True)


def stands(answer: str, problem: str) -> bool:
    """Whether the gold answer is written in the question, spacing and size of brackets aside."""
    return _SPACING.sub("", answer) in _SPACING.sub("", problem)


def echoes(rows: Sequence[dict[str, str]], style: str) -> list[Echo]:
    """Every question that gives itself away, with the first formula that does."""
    cases = [(row, text, place == 0) for row in rows for place, text in enumerate(formulas(row["problem"]))]
    verdicts = grade_all(
        [rf"\boxed{{{text}}}" for _, text, _ in cases],
        [row["answer"] for row, _, _ in cases],
        style=style,
        prompts=[row["problem"] for row, _, _ in cases],
    )
    found: dict[str, Echo] = {}
    for (row, text, longest), right in zip(cases, verdicts, strict=True):
        if right and (longest or row["id"] not in found):
            found.setdefault(
                row["id"], Echo(row["id"], text, row["answer"], longest, stands(row["answer"], row["problem"]))
            )
    return list(found.values())


def table(found: dict[str, tuple[int, list[Echo]]]) -> str:
    """Counts of every set, and each case."""
    lines = [
        "| set | problems | earned by any formula | by the longest | gold answer not in the question | share |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, (problems, cases) in found.items():
        rest = [case for case in cases if not case.stands]
        longest = sum(case.longest for case in cases)
        share = f"{100 * len(rest) / problems:.2f} %"
        lines.append(f"| {name} | {problems} | {len(cases)} | {longest} | {len(rest)} | {share} |")
    for name, (_, cases) in found.items():
        for standing in (False, True):
            listed = [case for case in cases if case.stands == standing]
            if listed:
                words = "the gold answer stands in the question" if standing else "it does not stand there"
                lines += ["", f"### {name}: {words} ({len(listed)})", ""]
                lines += [f"- {case.id}: boxed `{case.formula}`, gold `{case.answer}`" for case in listed]
    return "\n".join(lines) + "\n"
