"""What stands in the marked blocks of README.md and docs/evidence.md, made from docs/evidence/*.json alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alp.evaluation.statistics import paired_difference
from alp.rendering.numbers import points, significant
from alp.reporting.arms import label
from benchmarks import regime
from benchmarks.matched import matched

Evidence = dict[str, Any]  # docs/evidence/<grid>.json by grid
WIDTH = 120  # columns of README.md
MISSING = "*Not built yet: {}.*\n"

POINTS, PLAIN = "points", "plain"
# A measure of evidence.py: its heading, and how a difference of it is written.
HEADINGS = {
    "accuracy": ("Accuracy, points", POINTS),
    "lost": ("Lost since best validation, points", POINTS),
    "grad_norm": ("Gradient norm, mean", PLAIN),
    "grad_norm_largest": ("Gradient norm, largest", PLAIN),
    "kl_largest": ("Largest mismatch KL", PLAIN),
    "entropy": ("Entropy", PLAIN),
    "own_token": ("Own ratio, token", PLAIN),
    "own_sequence": ("Own ratio, sequence", PLAIN),
    "clean_token": ("Clean ratio, token", PLAIN),
    "clean_sequence": ("Clean ratio, sequence", PLAIN),
    "perturbed_token": ("Clean ratio with the noise, token", PLAIN),
    "perturbed_sequence": ("Clean ratio with the noise, sequence", PLAIN),
    "drift_sequence": ("Drift, sequence", PLAIN),
    "pass1": ("pass@1, points", POINTS),
    "pass4": ("pass@4, points", POINTS),
    "pass16": ("pass@16, points", POINTS),
    "pass64": ("pass@64, points", POINTS),
}


def source(found: dict[str, Any]) -> str:
    """Where a block's numbers come from."""
    return (
        f"*{found['title']}: `{found['command']}`, {found['seeds']} seeds, {found['problems']} problems ×"
        f" {found['samples']} samples, commit {found['commit']}, {found['cpu']}.*"
    )


def values(found: dict[str, Any], arm: str, measure: str) -> list[float] | None:
    """Of every seed; None where any seed has none."""
    numbers = found["arms"].get(arm, {}).get(measure)
    return None if not numbers or any(number is None for number in numbers) else [float(n) for n in numbers]


def signed(value: float, kind: str) -> str:
    """A difference as people read it."""
    return points(value) if kind == POINTS else f"{'+' if value > 0 else ''}{significant(value)}"


def difference(found: dict[str, Any], arm: str, control: str, measure: str) -> str:
    """``arm`` minus ``control`` seed by seed with its 95 % interval (Student over seeds)."""
    first, second = values(found, arm, measure), values(found, control, measure)
    if first is None or second is None:
        return ""
    kind = HEADINGS[measure][1]
    interval = paired_difference(np.array(first)[:, None], np.array(second)[:, None])
    text = signed(interval.mean, kind)
    if interval.low is not None and interval.high is not None:
        text += f" [{signed(interval.low, kind)}, {signed(interval.high, kind)}]"
    return text


def paired_table(found: dict[str, Any], pairs: Sequence[tuple[str, str]], measures: Sequence[str]) -> str:
    """One row per pair that the grid has, one column per measure that any pair has."""
    known = [pair for pair in pairs if all(name in found["arms"] for name in pair)]
    cells = {measure: [difference(found, *pair, measure) for pair in known] for measure in measures}
    shown = [measure for measure in measures if any(cells[measure])]
    lines = [
        "| Arm | minus | " + " | ".join(HEADINGS[measure][0] for measure in shown) + " |",
        "| :--- | :--- |" + " ---: |" * len(shown),
    ]
    for row, (arm, control) in enumerate(known):
        words = [found["labels"][arm], found["labels"][control], *(cells[measure][row] for measure in shown)]
        lines.append("| " + " | ".join(words) + " |")
    return "\n".join(lines) + "\n"


def block(name: str, write: Callable[[dict[str, Any]], str]) -> Callable[[Evidence], str]:
    """A block of one grid; says so where that grid was not built."""

    def make(evidence: Evidence) -> str:
        if name not in evidence:
            return MISSING.format(f"`make grid GRID={name}`")
        return f"{write(evidence[name]).rstrip()}\n\n{source(evidence[name])}\n"

    return make


def claim(*measures: str) -> Callable[[dict[str, Any]], str]:
    return lambda found: paired_table(found, found["noise_alone"], measures)


def results(found: dict[str, Any]) -> str:
    """The main table, and the findings as the report has them."""
    return f"{found['tables']['main']}\n" + "".join(f"- {sentence}\n" for sentence in found["findings"])


def summary(found: dict[str, Any]) -> str:
    """What a newcomer wants of the main table, and the verdict."""
    wanted = ("Method", "avg@", "Difference", "Published")
    lines = [line.strip("|").split("|") for line in found["tables"]["main"].splitlines()]
    kept = [place for place, heading in enumerate(lines[0]) if heading.strip().startswith(wanted)]
    table = "\n".join("|" + "|".join(cells[place] for place in kept) + "|" for cells in lines)
    return f"{table}\n\n" + "".join(map(_sentence, found["verdict"]))


def answer(found: dict[str, Any]) -> str:
    """Of the verdict, who differs from the reference."""
    return _sentence(found["verdict"][0])


def _sentence(text: str) -> str:
    return textwrap.fill(f"- {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False) + "\n"


def rates(found: dict[str, Any]) -> str:
    """What benchmarks/matched.py found: how far each method goes at the grid's own rate, and at which it goes as far as
    the reference."""
    settings, target = found["settings"], found["target"]
    (own,) = found["tried"][settings["reference"]]
    lines = ["| Method | k3 at that rate, of GRPO's | Rate for GRPO's k3, of that rate |", "| :--- | ---: | ---: |"]
    for method, tried in found["tried"].items():
        rate = matched({float(one): value for one, value in tried.items()}, target, settings["tolerance"])
        cells = [f"{significant(tried[own] / target)}", "not found" if rate is None else significant(rate / float(own))]
        lines += [f"| {label(method)} | " + " | ".join(cells) + " |"] if method != settings["reference"] else []
    return (
        "\n".join(lines) + f"\n\n*`python -m benchmarks.matched`, the first {settings['steps']} steps of seeds"
        f" {', '.join(map(str, settings['seeds']))}, at most {settings['rounds']} rounds, commit {found['commit']}.*\n"
    )


def against_preset(found: dict[str, Any]) -> str:
    """Every other arm of an ALP method against the preset as it is."""
    methods = {name: name.partition("-")[0] for name in found["arms"]}
    pairs = [(name, method) for name, method in methods.items() if name != method and method.endswith("_alp")]
    return paired_table(found, pairs, ("accuracy", "own_token", "own_sequence"))


def pilot(found: dict[str, Any]) -> str:
    """What benchmarks/regime.py found."""
    seeds = f"seeds {found['seeds'][0]} to {found['seeds'][-1]}"
    return (
        f"{regime.table(found['candidates'])}\n*`python -m benchmarks.regime`, {seeds}, {found['problems']} problems ×"
        f" {found['samples']} samples, commit {found['commit']}; seconds are of the machine as it was.*\n"
    )


CLAIMS = {
    "stability": ("accuracy", "lost", "grad_norm", "kl_largest"),
    "tails": ("own_token", "own_sequence", "clean_token", "clean_sequence", "drift_sequence"),
    "exploration": ("pass1", "pass4", "pass16", "pass64", "entropy"),
    "accuracy": ("accuracy",),
}
BLOCKS: dict[str, Callable[[Evidence], str]] = {
    "quick_summary": block("quick", summary),
    **{
        f"{grid}_results": block(grid, results)
        for grid in (
            *("quick", "stress", "noise", "smol", "quick_tools", "corrections_subset"),
            *(f"quick_{paper}" for paper in ("single_turn", "multi_turn", "controls", "staleness", "mismatch")),
        )
    },
    **{
        f"{grid}_{name}": block(grid, claim(*measures))
        for grid in ("quick", "stress", "noise")
        for name, measures in CLAIMS.items()
    },
    "layers": block("quick_ablation_layers", against_preset),
    "sigma": block("quick_ablation_sigma", against_preset),
    "corrections_summary": block("corrections", summary),
    "corrections_answer": block("corrections", answer),
    "phase_summary": block("phase", summary),
    "regime": lambda evidence: pilot(evidence["regime"]),
    "matched": lambda evidence: rates(evidence["matched"]) if "matched" in evidence else MISSING.format("`matched`"),
}
