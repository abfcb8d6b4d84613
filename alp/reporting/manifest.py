"""``manifest.json`` of a grid: the hash of every result with what it was made from; alp/reporting/verify.py compares a
rebuild with it.

Beside it ``manifest_values.json`` keeps the text of every file of numbers, so that a difference can be told in numbers,
not in hashes.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

from alp.configuration import compose
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.ownership import claimed
from alp.rendering.artefact import ENDINGS
from alp.reporting import registry
from alp.reporting.arms import build_command
from alp.reproducibility import json_line, machine, provenance, sha256_file, write_json

FORMAT = 1
VALUES = "manifest_values.json"
NUMBERS = (".json", ".jsonl", ".csv")
_RUN = ("config.yaml", "active.json", "provenance.json", "metrics.jsonl", "updates.jsonl")
_EVALUATION = ("evaluation/test.json", "evaluation/test.samples.jsonl.gz")


def outputs(grid: Grid, results: Path) -> list[Path]:
    """Every file that is the same whenever the grid is built: no clock, host or speed in it. Raises UserError when one
    is missing."""
    base, data = grid.base_dir(results), grid.data_dir(results)
    listed = [
        data / name for name in (*(f"{name}.jsonl" for name in grid.sets), "summary.json", "leakage.json", "leakage.md")
    ]
    listed += [base / name for name in _EVALUATION]
    folders = [] if grid.own_model else [base]
    if not grid.own_model:
        listed += [base / name for name in (["source.json"] if grid.fetched else ["config.yaml", "metrics.jsonl"])]
    for arm in grid.arms:
        for seed in grid.seeds:
            folder = grid.run_dir(results, arm.name, seed)
            folders.append(folder)
            listed += [folder / name for name in (*_RUN, *_EVALUATION)]
    for folder in folders:
        listed += [path for path in sorted((folder / "model").glob("*")) if path.is_file()] or [
            folder / "model" / "model.safetensors"
        ]
    root = grid.folder(results)
    listed += [root / path for kind in ENDINGS for path in registry.paths_of(kind, grid)]
    listed.append(root / "report.html")
    for path in listed:
        if not path.is_file():
            raise UserError(f"manifest: {path} is missing; build it: {build_command(grid)}")
    return sorted(listed)


def write_manifest(grid: Grid, results: Path, *, replace: bool = False) -> Path:
    """Hash every output and write ``manifest.json`` and its values below the grid's folder; returns the former's
    path."""
    root = grid.folder(results)
    texts, files = {}, {}
    for path in outputs(grid, results):
        name = path.relative_to(root).as_posix()
        files[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        if path.suffix in NUMBERS:
            texts[name] = path.read_text(encoding="utf-8")
    made_from = provenance() | {"python": platform.python_version(), "machine": machine()}
    content = {
        "format": FORMAT,
        "grid": grid.name,
        "config_hash": _config_hash(grid),
        "made_from": made_from,
        "files": files,
    }
    with claimed(
        root, "manifest", grid.origin, outputs=["manifest.json", VALUES], key="results", replace=replace, beside=True
    ):
        write_json(root / VALUES, texts)
        write_json(root / "manifest.json", content | {"values_sha256": sha256_file(root / VALUES)})
    return root / "manifest.json"


def _config_hash(grid: Grid) -> str:
    """SHA-256 over the resolved configuration of every job, places of files left out."""
    jobs: dict[str, Any] = {
        verb: (verb, None, 0) for verb in ("prepare", "fetch" if grid.fetched else "pretrain", "evaluate")
    }
    jobs |= {
        f"{verb} {arm.name} {seed}": (verb, arm.name, seed)
        for verb in ("train", "evaluate")
        for arm in grid.arms
        for seed in grid.seeds
    }
    hashes = {
        name: compose.identity(compose.load(verb, grid.overrides(verb, "results", arm=arm, seed=seed)))
        for name, (verb, arm, seed) in jobs.items()
    }
    return hashlib.sha256(json_line(hashes).encode()).hexdigest()
