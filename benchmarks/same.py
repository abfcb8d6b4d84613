"""Does a change move a number? A grid built at two commits and compared, name by name (``make same REF=<commit>``).

Both are built in clones below ``build/same/``, in this environment where the lock is the same and in one of its own
where it is not; what was built once is used again. The working tree is taken as it is, with what is not committed yet.
Compared is every number that both have: metrics, updates, weights, evaluations with their samples, tables. Provenance
(hashes, versions, places, clocks) is left out. What only one side has is listed with the reason that
``same_names.yaml`` gives.

Exit code 0: no number differs and every name of one side alone has its reason; 1: otherwise; 2: bad arguments.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import gzip
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from alp.nested import leaves

ROOT = Path(__file__).resolve().parents[1]
REASONS = Path(__file__).with_name("same_names.yaml")
FILES = (
    "**/metrics.jsonl",
    "**/updates.jsonl",
    "**/trajectories.jsonl",
    "**/*.safetensors",
    "**/evaluation/*.json",
    "**/evaluation/*.samples.jsonl.gz",
    "tables/*.csv",
)
_PROVENANCE = ("_hash", "sha256")  # endings of names that say what a result was made from
_SHOWN = 20  # differences that are listed
_TABLE_KEYS = ("method", "set", "engine", "reference", "control", "level", "k", "samples")  # columns that name a row

Numbers = dict[str, Any]


# ---- reading ---------------------------------------------------------------------------------------------------------


def numbers(folder: Path) -> Numbers:
    """Every value of a built grid by name, ``<file>: <entry>``; a tensor is one value."""
    values: Numbers = {}
    for pattern in FILES:
        for path in sorted(folder.glob(pattern)):
            if any(part.startswith(".") or part.endswith(".parts") for part in path.relative_to(folder).parts):
                continue
            name = path.relative_to(folder).as_posix()
            values |= {f"{name}: {entry}": value for entry, value in _entries(path) if not entry.endswith(_PROVENANCE)}
    return values


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".safetensors":
        yield from load_file(path).items()
    elif path.suffix == ".csv":
        yield from _rows(path)
    elif path.suffix == ".json":
        yield from leaves(json.loads(path.read_text(encoding="utf-8")))
    else:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        for number, line in enumerate(text.splitlines(), start=1):
            yield from ((f"line {number}, {key}", value) for key, value in leaves(json.loads(line)))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=1):
            named = " ".join(row[key] for key in _TABLE_KEYS if row.get(key))
            for column, cell in row.items():
                yield f"row {number} ({named}): {column}", cell


# ---- comparing -------------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """Names of both sides, how much the differing ones differ, and the names that only one side has."""

    compared: int = 0
    differing: dict[str, str] = field(default_factory=dict)
    only_there: list[str] = field(default_factory=list)
    only_here: list[str] = field(default_factory=list)


def compare(there: Numbers, here: Numbers) -> Comparison:
    """Bit by bit: equal are values of the same text, numbers and arrays of the same bits."""
    result = Comparison(only_there=sorted(there.keys() - here.keys()), only_here=sorted(here.keys() - there.keys()))
    for name in sorted(there.keys() & here.keys()):
        result.compared += 1
        if (difference := _difference(there[name], here[name])) is not None:
            result.differing[name] = difference
    return result


def _difference(old: Any, new: Any) -> str | None:
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"{old.dtype}{list(old.shape)} there, {new.dtype}{list(new.shape)} here"
        if old.tobytes() == new.tobytes():
            return None
        change = np.abs(new.astype("float64") - old.astype("float64"))
        return f"{int((change != 0).sum())} of {change.size} elements, the largest by {change.max():.3g}"
    if json.dumps(old) == json.dumps(new):  # 1 and 1.0 are two texts, NaN is itself
        return None
    change_of = [_number(old), _number(new)]
    size = f" ({change_of[1] - change_of[0]:+.3g})" if not any(map(math.isnan, change_of)) else ""
    return f"{_short(old)} there, {_short(new)} here{size}"


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def reason(name: str, reasons: dict[str, str]) -> str | None:
    """Why only one side has that name; None where nobody has said it."""
    return next((text for pattern, text in reasons.items() if fnmatch.fnmatchcase(name, pattern)), None)


def report(result: Comparison, reasons: dict[str, str], there: str) -> tuple[list[str], int]:
    """The lines to print, and the exit code."""
    lines = [f"differs  {name}: {text}" for name, text in list(result.differing.items())[:_SHOWN]]
    if len(result.differing) > _SHOWN:
        lines.append(f"differs  … and {len(result.differing) - _SHOWN} more")
    unexplained = 0
    for side, names in ((there, result.only_there), ("here", result.only_here)):
        for text, group in _by_reason(names, reasons).items():
            lines.append(
                f"only {side}  {len(group)} names, {group[0]} …: {text or 'NO REASON GIVEN (same_names.yaml)'}"
            )
            unexplained += 0 if text else len(group)
    alone = len(result.only_there) + len(result.only_here)
    lines.append(
        f"{result.compared} numbers that both have: {len(result.differing)} differ; names of one side alone: {alone},"
        f" {unexplained} of them without a reason"
    )
    return lines, 1 if result.differing or unexplained or not result.compared else 0


def _by_reason(names: list[str], reasons: dict[str, str]) -> dict[str | None, list[str]]:
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault(reason(name, reasons), []).append(name)
    return groups


# ---- building --------------------------------------------------------------------------------------------------------


def _git(*words: str, folder: Path = ROOT, **environment: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=os.environ | environment)
    if done.returncode:
        raise SystemExit(f"same: git {words[0]}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def checkout(commit: str, folder: Path) -> None:
    """A clone of ``commit`` in ``folder``, unless it stands there."""
    if (folder / ".git").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    _git("clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(folder))
    _git("checkout", "--quiet", "--detach", commit, folder=folder)


def python_of(folder: Path, lock: str = "locks/cpu.txt") -> Path:
    """The interpreter for a clone: this one where its lock is ours, else that of an environment of its own."""
    if (folder / lock).read_bytes() == (ROOT / lock).read_bytes():
        return Path(sys.executable)
    print(f"same: {folder.name} has another lock: installing its environment", file=sys.stderr, flush=True)
    subprocess.run(["make", "-C", str(folder), "install"], check=True, stdout=sys.stderr)
    return folder / ".venv" / "bin" / "python"


def build(folder: Path, grid: Path, cores: int) -> Path:
    """Build the grid of that file in a clone; returns the folder of its results."""
    results = folder / "results" / grid.stem
    log = folder / "same.log"
    print(f"same: building {grid.stem} at {folder.name} (log: {log})", file=sys.stderr, flush=True)
    python = python_of(folder)
    words = [str(python), "-m", "snakemake", "--cores", str(cores), "--config", f"grid={grid}"]
    environment = os.environ | {"PYTHONPATH": str(folder)}  # before the place that this environment was installed from
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(words, cwd=folder, env=environment, stdout=stream, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"same: the grid fails at {folder.name}, exit code {code}: {log}")
    return results


def _snapshot() -> str:
    """HEAD, or where the working tree differs from it a commit of the tree as it is: on no branch, through no index."""
    with tempfile.TemporaryDirectory() as name:
        index = str(Path(name) / "index")
        _git("read-tree", "HEAD", GIT_INDEX_FILE=index)
        _git("add", "--all", GIT_INDEX_FILE=index)
        tree = _git("write-tree", GIT_INDEX_FILE=index)
    if tree == _git("rev-parse", "HEAD^{tree}"):
        return _git("rev-parse", "HEAD")
    author = {"GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z"}
    people = {f"GIT_{role}_{part}": "same" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    return _git("commit-tree", tree, "-p", "HEAD", "-m", "working tree", **author, **people)


def main() -> int:
    """Build, compare, print; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="make same", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ref", required=True, help="the commit to compare with")
    parser.add_argument("--grid", default="smoke", help="a name in configs/grid, as the working tree has it, or a path")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "same")
    options = parser.parse_args()
    source = Path(options.grid) if options.grid.endswith(".yaml") else ROOT / f"configs/grid/{options.grid}.yaml"
    if not options.ref or not source.is_file():
        parser.error(f"no grid file at {source}" if options.ref else "--ref is empty: make same REF=<commit>")
    content = source.read_bytes()
    built: list[Path] = []
    for commit in (_git("rev-parse", "--verify", f"{options.ref}^{{commit}}"), _snapshot()):
        folder = options.folder.resolve() / f"{commit[:12]}-{hashlib.sha256(content).hexdigest()[:6]}"
        checkout(commit, folder)
        grid = folder / "build" / source.name
        grid.parent.mkdir(exist_ok=True)
        if not grid.exists():
            shutil.copyfile(source, grid)
        built.append(build(folder, grid, options.cores))
    reasons = yaml.safe_load(REASONS.read_text(encoding="utf-8")) or {}
    lines, code = report(compare(numbers(built[0]), numbers(built[1])), reasons, options.ref)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
