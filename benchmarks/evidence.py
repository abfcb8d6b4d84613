"""The numbers of README.md and docs/evidence.md: read from built grids, kept in docs/evidence/, written between marks.

    python -m benchmarks.evidence collect quick noise …    built grids (results/) -> docs/evidence/<grid>.json;
                                                           ``regime``, ``matched``: what those two pilots found
    python -m benchmarks.evidence write                    docs/evidence/*.json -> every marked block
    python -m benchmarks.evidence check                    exit code 1 where a block is not what its files make

A block lies between ``<!-- evidence: NAME -->`` and ``<!-- end of evidence -->``; ``evidence_blocks.BLOCKS`` says what
stands in it. Nothing there is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alp.configuration import grid as grids
from alp.evaluation.passk import pass_at_k
from alp.rendering.tables import to_markdown
from alp.reporting import arms, runs
from alp.reporting.aggregate import build
from alp.reporting.findings import headline, verdict
from alp.reporting.processor import processor
from alp.reporting.runs import Results, Run
from alp.reproducibility import write_bytes, write_json, write_text
from benchmarks.evidence_blocks import BLOCKS, Evidence
from benchmarks.regime import commit_of

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "docs" / "evidence"
RESULTS = Path("results")
PILOTS = {name: RESULTS / name / f"{name}.json" for name in ("regime", "matched")}  # what modules beside this one find
DOCUMENTS = ("README.md", "docs/evidence.md")
PICTURES = {
    "quick": {"accuracy": "quick_accuracy"},
    "noise": {"accuracy": "noise_accuracy"},
    "corrections": {"drift": "corrections_drift"},
}
BLOCK = re.compile(r"(<!-- evidence: ([a-z0-9_]+) -->\n).*?(<!-- end of evidence -->)", re.DOTALL)
DIGITS = 6
Floats = NDArray[np.float64]
Measure = Callable[[Run, Results], float | None]  # of one seed


def collect(name: str, results: Path) -> dict[str, Any]:
    """What docs keep of a built grid."""
    loaded = runs.load(grids.load(name), results)
    tables = build(loaded)
    rows = {key: table.rounded() for key, table in tables.items()}
    alone = [(row["method"], row["control"]) for row in rows["controls"] if row["changed"] == "noise"]
    return {
        "grid": loaded.grid.name,
        "title": loaded.grid.title,
        "command": f"make grid GRID={name}",
        "commit": commit_of(loaded.arms[0].runs[0].folder),
        "cpu": processor()["kind"],
        "seeds": len(loaded.grid.seeds),
        "problems": loaded.base.problems,
        "samples": loaded.base.samples,
        "findings": headline(loaded, rows),
        "verdict": verdict(loaded, rows),
        "tables": {key: to_markdown(table) for key, table in tables.items()},
        "noise_alone": [[method, control] for method, control in {pair[0]: pair for pair in reversed(alone)}.values()],
        "labels": {arm.name: arms.label(arm.name) for arm in loaded.arms},
        "base": round(float(loaded.mean(loaded.base.per_problem)), DIGITS),
        "arms": {
            arm.name: {key: [_number(measure(run, loaded)) for run in arm.runs] for key, measure in MEASURES.items()}
            for arm in loaded.arms
        },
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.{DIGITS}g}")


def _series(run: Run, key: str) -> Floats:
    return runs.series([run], key)[1][0]


def _mean(key: str) -> Measure:
    def measure(run: Run, _: Results) -> float | None:
        values = _series(run, key)
        return float(values.mean()) if values.size else None

    return measure


def _largest(key: str) -> Measure:
    return lambda run, _: max(_series(run, key).tolist(), default=None)


def _width(of: str, level: str) -> Measure:
    """Distance between the mean 0.1 % and 99.9 % quantiles of one seed, as the tails table has it of an arm."""

    def measure(run: Run, loaded: Results) -> float | None:
        arm = loaded.find(run.arm)
        assert arm is not None
        return replace(arm, runs=(run,)).tail_width(level, of)

    return measure


def _lost(run: Run, _: Results) -> float | None:
    """Validation accuracy lost since its best."""
    values = _series(run, "validation/accuracy")
    return float(values.max() - values[-1]) if values.size else None


def _pass(k: int) -> Measure:
    def measure(run: Run, loaded: Results) -> float | None:
        found = run.evaluation
        return loaded.mean(pass_at_k(found.samples, found.correct, k)) if k <= found.samples else None

    return measure


MEASURES: dict[str, Measure] = {
    "accuracy": lambda run, loaded: loaded.mean(run.evaluation.per_problem),
    "lost": _lost,
    "grad_norm": _mean("policy/grad_norm"),
    "grad_norm_largest": _largest("policy/grad_norm"),
    "kl_largest": _largest("rollout_corr/k3_kl"),
    "entropy": _mean("policy/entropy"),
    "mismatch_token": _mean("rollout_corr/token/log_std"),
    "own_token": _width("ratio", "token"),
    "own_sequence": _width("ratio", "sequence"),
    "clean_token": _width("clean", "token"),
    "clean_sequence": _width("clean", "sequence"),
    "perturbed_token": _width("perturbed", "token"),
    "perturbed_sequence": _width("perturbed", "sequence"),
    "drift_sequence": _mean("clean_batch/sequence/log_std"),
    **{f"pass{k}": _pass(k) for k in (1, 4, 16, 64)},
}


def load_all() -> Evidence:
    """Every kept file, by grid."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FILES.glob("*.json"))}


def rendered(text: str, evidence: Evidence) -> str:
    """``text`` with every block made anew. Raises KeyError for a block that nobody makes."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]](evidence).strip()}\n{found[3]}", text)


def main(arguments: list[str]) -> int:
    verb, *names = arguments or ["check"]
    if verb == "collect":
        for name in names:
            pilot = PILOTS.get(name)
            found = json.loads(pilot.read_text(encoding="utf-8")) if pilot else collect(name, RESULTS)
            write_json(FILES / f"{name}.json", found)
            for figure, kept in PICTURES.get(name, {}).items():
                drawn = RESULTS / name / "figures" / f"{figure}.png"
                write_bytes(FILES.parent / f"{kept}.png", drawn.read_bytes())
        return 0
    evidence, stale = load_all(), []
    for document in DOCUMENTS:
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
        made = rendered(text, evidence)
        stale += [document] if made != text else []
        if verb == "write":
            write_text(path, made)
    if verb == "check" and stale:
        print(f"not what docs/evidence/ makes of them: {', '.join(stale)}; python -m benchmarks.evidence write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
