"""Which settings of the embedded task tell methods apart? The quick grid's arms under each candidate of regime.yaml, on
pilot seeds that no grid uses (``python -m benchmarks.regime``, hours on two cores; a stopped one continues).

    python -m benchmarks.regime [out=results/regime] [cores=2] [only=<candidate>[,<candidate>…]]

Each candidate is built as a grid of its own under ``out``. Judged is what does not know which arm is which: how far the
arms' means lie apart against how far seeds do (never the arms' order), how many arms end where there is room above and
below, whether one collapses, and CPU seconds. Writes report.md and regime.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from alp.configuration import grid as grids
from alp.evaluation.power import difference_components, pooled, smallest_difference
from alp.rendering.numbers import number, percent
from alp.reporting import runs
from alp.reproducibility import write_json, write_text

Floats = NDArray[np.float64]
GRID_SEEDS = 5  # what a grid of this size is to have


def grid_file(name: str, settings: dict[str, Any], out: Path) -> Path:
    """The candidate as a grid file."""
    candidate = settings["candidates"][name]
    overrides = {**candidate, "evaluate": [f"evaluation.samples={settings['samples']}", *candidate.get("evaluate", [])]}
    path = out / "grids" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "extends": settings["arms_of"],
        "title": f"Pilot {name}",
        "description": f"Candidate {name} of benchmarks/regime.yaml.",
        "seeds": settings["seeds"],
        "overrides": overrides,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def judge(accuracies: Floats, base: float, settings: dict[str, Any]) -> dict[str, float]:
    """What ``accuracies`` (arms, seeds) say of a regime, whatever the order of the arms. Fractions, but ``*_points``.

    ``signal`` is the variance between arms (what their means' variance has beyond that of seeds) over the variance of
    a seed of an arm, each seed's common part taken off: arms by seeds is what paired differences are made of.
    """
    arms, seeds = accuracies.shape
    means = accuracies.mean(1)
    rest = accuracies - means[:, None] - accuracies.mean(0) + accuracies.mean()
    within = float((rest**2).sum()) / ((arms - 1) * (seeds - 1))
    between = float(means.var(ddof=1)) - within / seeds
    low, high = settings["wanted"]
    return {
        "lowest": float(means.min()),
        "highest": float(means.max()),
        "arms_with_room": float(((means >= low) & (means <= high)).sum()),
        "collapsed": float((means < base - settings["collapsed"]).sum()),
        "between_points": 100 * max(between, 0.0) ** 0.5,
        "within_points": 100 * within**0.5,
        "signal": between / within if within else float("inf"),
    }


def measure(loaded: runs.Results, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The built candidate's figures."""
    fractions = [arm.accuracy for arm in loaded.arms]
    base = float(loaded.base.per_problem.mean())
    found: dict[str, Any] = {"base": base, **judge(np.stack([part.mean(1) for part in fractions]), base, settings)}
    parts = [
        difference_components(part, fractions[0], samples=settings["samples"], sizes=None) for part in fractions[1:]
    ]
    found["resolved_points"] = 100 * pooled(parts).deviation() * smallest_difference(GRID_SEEDS, power=0.8)
    found["job_seconds"] = _seconds(folder)
    found["arms"] = {
        arm.name: [round(float(v), 4) for v in part.mean(1)] for arm, part in zip(loaded.arms, fractions, strict=True)
    }
    return found


def _seconds(folder: Path) -> float:
    """Wall seconds of a training job, their median: a busy machine stretches them all alike."""
    totals = [
        sum(
            sum(v for k, v in json.loads(line).items() if k.startswith("seconds/"))
            for line in path.read_text().splitlines()
        )
        for path in folder.glob("*/*/*/seed*/timings.jsonl")
    ]
    return float(np.median(totals)) if totals else float("nan")


def main(arguments: list[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments)
    settings = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    out, cores = Path(options.get("out", "results/regime")), options.get("cores", "2")
    chosen = options["only"].split(",") if "only" in options else list(settings["candidates"])
    found: dict[str, Any] = {"seeds": settings["seeds"], "samples": settings["samples"], "candidates": {}}
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    for name in settings["candidates"]:
        path = grid_file(name, settings, out)
        if name in chosen:
            command = [snakemake, "--cores", cores, "--config", f"grid={path}", f"results={out}"]
            subprocess.run(command, check=True)
        if (out / name / "report.html").is_file():
            loaded = runs.load(grids.load(str(path)), out)
            found["candidates"][name] = measure(loaded, settings, out / name)
            found |= {"problems": loaded.base.problems, "commit": commit_of(loaded.arms[0].runs[0].folder)}
    write_json(out / "regime.json", found)
    text = table(found["candidates"])
    write_text(out / "report.md", text)
    print(text)


def commit_of(run: Path) -> str:
    """Of the code that trained a run."""
    return str(json.loads((run / "provenance.json").read_text(encoding="utf-8"))["commit"])[:7]


def table(candidates: dict[str, Any]) -> str:
    """One row a candidate."""
    heads = ("Base, %", "Arms, %", "With room", "Collapsed", "Between arms", "Between seeds", "Signal")
    heads += ("5 seeds resolve", "Job, s")
    rows = [" | ".join(["| Candidate", *heads]) + " |", "| :--- |" + " ---: |" * len(heads)]
    for name, found in candidates.items():
        cells = [
            percent(found["base"]),
            f"{percent(found['lowest'])} to {percent(found['highest'])}",
            f"{number(found['arms_with_room'], 0)} of {len(found['arms'])}",
            number(found["collapsed"], 0),
            number(found["between_points"], 1),
            number(found["within_points"], 1),
            number(found["signal"], 2),
            number(found["resolved_points"], 1),
            number(found["job_seconds"], 0),
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
