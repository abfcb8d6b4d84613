"""At which learning rate does each method go as far in a step as GRPO does? (``python -m benchmarks.matched``, under an
hour on two cores; a stopped one continues).

    python -m benchmarks.matched [out=results/matched] [cores=2]

A method's bounds say little about the size of its steps, and at one rate a method that steps less may only look tame.
Each round trains the arms of a grid for a few steps on pilot seeds and moves every rate by what its divergence of the
clean policy from π_old (mean k3 after a step's last update) is off the reference's: settings in matched.yaml. Writes
matched.json, and arms for a grid file with the rates found; a method that cannot be matched is named, not guessed.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alp.configuration import compose, grid_file
from alp.configuration import grid as grids
from alp.reporting.records import STEP, read_lines
from alp.reproducibility import write_json, write_text
from benchmarks.regime import commit_of

Settings = Mapping[str, Any]
_SAME = 5e-3  # relative, of two rates


def proposal(tried: Mapping[float, float], target: float, *, first: float, widest: float) -> float:
    """The next rate to try after ``tried`` (rate → divergence): on the line through the two nearest points in
    logarithms, with a slope of 2 where there is one; within ``widest`` times the ``first`` rate."""
    near = sorted(tried, key=lambda rate: abs(math.log(tried[rate] / target)))
    slope = 2.0
    if len(near) > 1:
        rise = math.log(tried[near[0]] / tried[near[1]]) / math.log(near[0] / near[1])
        slope = rise if rise > 0.25 else 2.0  # a flat or falling line points nowhere
    rate = near[0] * (target / tried[near[0]]) ** (1 / slope)
    for _ in tried:  # where the noise of a few steps hides the slope this may be a rate tried before: on from there
        for one in tried:
            if math.isclose(rate, one, rel_tol=_SAME):
                rate = one * math.sqrt(target / tried[one])
    return min(max(rate, first / widest), first * widest)


def matched(tried: Mapping[float, float], target: float, tolerance: float) -> float | None:
    """The tried rate whose divergence is within ``tolerance`` of the target, the closest; None without any."""
    closest = min(tried, key=lambda rate: abs(tried[rate] / target - 1))
    return closest if abs(tried[closest] / target - 1) <= tolerance else None


def round_file(rates: Mapping[str, float], number: int, settings: Settings, out: Path) -> Path:
    """One round as a grid: every method at its rate, for a few steps."""
    plain = grid_file.read(grid_file.located(settings["arms_of"]))
    overrides = dict(plain.get("overrides", {}))
    dropped = ("trainer.steps=", "trainer.probe_every=", "trainer.lr=", "trainer.validate_every=")
    kept = [word for word in overrides.get("train", []) if not word.startswith(dropped)]
    few = [f"trainer.steps={settings['steps']}", "trainer.probe_every=1", f"trainer.validate_every={settings['steps']}"]
    arms = [
        {"method": name, "variant": f"round{number}", "overrides": [f"trainer.lr={rate:.6g}"]}
        for name, rate in rates.items()
    ]
    content = {
        **plain,
        "title": f"Matching round {number}",
        "description": "Learning rates of benchmarks/matched.py.",
        "seeds": settings["seeds"],
        "overrides": {**overrides, "train": [*kept, *few]},
        "arms": arms,
    }
    path = out / "grids" / f"round{number}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def measured(path: Path, settings: Settings, out: Path) -> dict[str, float]:
    """The figure of each method, mean over steps and seeds; nan where a job has none."""
    grid = grids.load(str(path))
    found = {}
    for arm in grid.arms:
        files = [grid.run_dir(out, arm.name, seed) / "metrics.jsonl" for seed in grid.seeds]
        lines = [line for file in files for line in read_lines(file, STEP, "python -m benchmarks.matched")]
        values = [line[settings["figure"]] for line in lines if line.get(settings["figure"]) is not None]
        found[arm.method] = math.fsum(values) / len(values) if values else math.nan
    return found


def search(settings: Settings, out: Path, cores: str) -> tuple[dict[str, dict[float, float]], float]:
    """The rates tried of each method with what they gave, and the reference's figure at its own rate."""
    grid = grids.load(settings["arms_of"])
    first = compose.load("train", grid.overrides("train", out, arm=grid.arms[0].name)).trainer.lr
    methods = [arm.method for arm in grid.arms if arm.variant is None]
    tried: dict[str, dict[float, float]] = {name: {} for name in methods}
    rates, target = dict.fromkeys(methods, first), math.nan
    for number in range(1, settings["rounds"] + 1):
        path = round_file(rates, number, settings, out)
        command = [str(Path(sys.executable).with_name("snakemake")), "--cores", cores, "--until", "train"]
        subprocess.run([*command, "--config", f"grid={path}", f"results={out}"], check=True)
        for name, value in measured(path, settings, out).items():
            if math.isfinite(value) and value > 0:
                tried[name][rates[name]] = value
        target = tried[settings["reference"]][first] if number == 1 else target
        open_ones = [
            name for name in rates if tried[name] and matched(tried[name], target, settings["tolerance"]) is None
        ]
        bounds = {"first": first, "widest": settings["widest"]}
        rates = {name: proposal(tried[name], target, **bounds) for name in open_ones}
        if not rates:
            break
    return tried, target


def arms_text(tried: Mapping[str, Mapping[float, float]], target: float, settings: Settings) -> str:
    """Lines for a grid file, and a comment for each method without a rate."""
    lines = []
    for name, points in tried.items():
        if name == settings["reference"]:
            continue
        rate = matched(points, target, settings["tolerance"]) if points else None
        if rate is None:
            nearest = ", ".join(f"{value:.2e} at {one:.2e}" for one, value in points.items()) or "no figure"
            lines.append(f"  # {name}: not matched ({nearest}; wanted {target:.2e})")
        elif rate == next(iter(points)):  # the grid's own: the arm that it has already
            lines.append(f"  # {name}: at the grid's own rate")
        else:
            lines.append(f"  - {{method: {name}, variant: lr_matched, overrides: [trainer.lr={rate:.3g}]}}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments)
    settings = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    out = Path(options.get("out", "results/matched"))
    tried, target = search(settings, out, options.get("cores", "2"))
    grid = grids.load(str(out / "grids" / "round1.yaml"))
    commit = commit_of(grid.run_dir(out, grid.arms[0].name, grid.seeds[0]))
    write_json(out / "matched.json", {"target": target, "settings": settings, "tried": tried, "commit": commit})
    text = arms_text(tried, target, settings)
    write_text(out / "arms.yaml", text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
