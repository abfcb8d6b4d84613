"""A grid built twice from nothing, under other cores and in another order of jobs, and compared file by file (``make
reproduce``).

The two builds lie in ``build/reproduce/`` and stay there for a look.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from alp.configuration import grid as grids
from alp.configuration.grid import Grid

ROOT = Path(__file__).resolve().parents[1]


def command(folder: Path, grid: str, cores: int, *more: str) -> list[str]:
    """The workflow, with everything it writes below ``folder``."""
    place = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--cores", str(cores)]
    return [sys.executable, "-m", "snakemake", *place, *more, "--config", f"grid={grid}"]


def build(folder: Path, grid: str, cores: int, *more: str) -> Path:
    """Build a grid in ``folder``; returns its manifest. Raises RuntimeError with the log's end when that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "workflow.log").open("a", encoding="utf-8") as log:
        code = subprocess.run(command(folder, grid, cores, *more), stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise RuntimeError(
            "the workflow failed with exit code"
            f" {code}:\n{(folder / 'workflow.log').read_text(encoding='utf-8')[-3000:]}"
        )
    return folder / grids.load(grid).folder("results") / "manifest.json"


def runs(folder: Path, grid: Grid) -> list[Path]:
    """The training folders of a build, in the order of the grid."""
    return [folder / grid.run_dir("results", arm.name, seed) for arm in grid.arms for seed in grid.seeds]


def order(folder: Path, grid: Grid) -> list[str]:
    """Training jobs in the order in which they ended."""
    ended = {run: (run / "model" / "model.safetensors").stat().st_mtime_ns for run in runs(folder, grid)}
    return [f"{run.parent.name}/{run.name}" for run in sorted(ended, key=lambda run: ended[run])]


def main() -> int:
    """Exit code 0 when every file is the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="smoke", help="name or path")
    parser.add_argument("--cores", type=int, default=2, help="of the second build; the first has one")
    options = parser.parse_args()
    name = options.grid if not options.grid.endswith((".yaml", ".yml")) else str(Path(options.grid).resolve())
    grid = grids.load(name)
    root = ROOT / "build" / "reproduce"
    shutil.rmtree(root, ignore_errors=True)
    first, second = root / "first", root / "second"
    sooner = runs(Path(), grid)[0] / "model" / "model.safetensors"  # left alone, Snakemake takes it last
    manifest = build(first, name, 1)
    print(f"first build, 1 core: {', '.join(order(first, grid))}", flush=True)
    other = build(second, name, options.cores, "--prioritize", str(sooner))
    print(f"second build, {options.cores} cores: {', '.join(order(second, grid))}", flush=True)
    return subprocess.run([sys.executable, "-m", "alp.cli", "verify", str(manifest), str(other.parent)]).returncode


if __name__ == "__main__":
    sys.exit(main())
