"""``alp clean``: list and remove results that no grid asks for any more, and nothing that carries no mark of ours.

A result is out of date when its grid file has no such arm or seed, or composes its job to another configuration. Other
code is no reason: the same grid makes such results again in place. What another grid of the same results root still has
to compute is kept for it (alp/sharing.py). Results of no grid (``results/adhoc``, …) are nobody's to judge.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alp.configuration import compose, grid_file
from alp.configuration import grid as grids
from alp.configuration.clean_schema import CleanConfig
from alp.configuration.grid import Grid
from alp.errors import UserError, nearest
from alp.marks import MARKS, difference, marks, read_mark, remove_made
from alp.ownership import Claim, check
from alp.sharing import INDEX

_OF_THE_GRID = ("aggregate", "figures", "report", "manifest", "track")
_DEPENDENT = "evaluate"


@dataclass(frozen=True)
class Wanted:
    """One job as a grid composes it today: where, which job, and what its mark would say."""

    folder: Path
    job: str
    origin: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """What makes results of two folders the same."""
        return self.job, str(self.origin["config_hash"])


@dataclass(frozen=True)
class Stale:
    """Results that can go: the job's mark in ``folder``, and why."""

    folder: Path
    job: str
    made: tuple[str, ...]
    why: str

    @property
    def size(self) -> int:
        """Bytes of the files that the mark lists."""
        paths = [self.folder / name for name in self.made]
        files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
        return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())

    def line(self, results: Path) -> str:
        """``<folder below the results root>  <verb>  <size>  <why>``."""
        return f"{self.folder.relative_to(results)}  {self.job}  {_size(self.size)}  {self.why}"


def clean(config: CleanConfig, ask: Callable[[str], str] | None = None) -> str:
    """List what can go, ask, remove it; returns what became of it. ``ask`` None: there is nobody to ask.

    Raises UserError without a terminal unless ``yes=true``, and for a results root that is none.
    """
    results = Path(config.results)
    _check_root(results)
    if config.all:
        stale = [_stale(folder, job, mark, "all=true") for folder, job, mark in _marked(results)]
    else:
        stale, kept = find(results, missing=config.missing)
        for line in kept:
            print(line, file=sys.stderr)
    if not stale:
        return f"{results}: nothing to remove"
    sizes = {entry: entry.size for entry in stale}
    for entry in stale:
        print(entry.line(results), file=sys.stderr)
    size = _size(sum(sizes.values()))
    if not config.yes:
        if ask is None:
            raise UserError(f"clean: nothing was removed: no terminal to ask on; yes=true removes {len(stale)} results")
        if ask(f"remove {len(stale)} results, {size}? [y/N] ").strip().lower() not in ("y", "yes"):
            return "nothing was removed"
    running = {_top(results, folder) for folder, job, _ in _marked(results) if _runs(folder, job)}
    for folder in sorted(running):
        print(f"kept: a job is running in {folder}", file=sys.stderr)
    removed = [entry for entry in stale if _top(results, entry.folder) not in running and _remove(results, entry)]
    if config.all and len(removed) == len(stale):
        _remove_index(results)
    return f"removed {len(removed)} of {len(stale)} results, {_size(sum(sizes[entry] for entry in removed))}"


def _check_root(results: Path) -> None:
    """Refuse a folder that is not there, or that is one grid's own. Raises UserError."""
    check(results, "results", beside=True)
    if not results.is_dir():
        beside = [entry.name for entry in results.parent.iterdir()] if results.parent.is_dir() else []
        raise UserError(f"results: there is no folder {results}{nearest(results.name, beside)}")
    if read_mark(results, "grid") is not None:
        raise UserError(f"results: {results} is the folder of one grid; did you mean '{results.parent}'?")


def find(results: Path, *, missing: bool = False) -> tuple[list[Stale], list[str]]:
    """Results of the grids below ``results`` that no grid asks for, and lines about grids whose results are kept.

    ``missing``: everything of a grid whose file is gone counts as well.
    """
    stale: list[Stale] = []
    kept: list[str] = []
    asked: dict[Path, dict[tuple[Path, str], Wanted]] = {}
    for mark_file in sorted(results.glob(f"*/{MARKS}/grid/mark.json")):
        folder = mark_file.parents[2]
        if (mark := read_mark(folder, "grid")) is None:
            continue
        named = str(mark["origin"].get("grid", folder.name))
        if not _has_file(named):
            lost = [_stale(*result, f"grid file missing: {named}") for result in _marked(folder)]
            stale += lost if missing else []
            kept += [] if missing else [f"{entry.line(results)} (kept; missing=true removes it)" for entry in lost]
            continue
        try:
            asked[folder] = {(job.folder, job.job): job for job in _wanted(grids.load(named), results)}
        except UserError as error:
            kept.append(f"{folder}: kept, its grid cannot be read: {error}")
    open_jobs = {job.key for jobs in asked.values() for job in jobs.values() if not _finished(job)}
    for folder, jobs in asked.items():
        stale += _out_of_date(folder, jobs, open_jobs)
    return stale, kept


def _has_file(named: str) -> bool:
    return Path(named).is_file() if named.endswith((".yaml", ".yml")) else named in grid_file.names()


def _wanted(grid: Grid, results: Path) -> Iterator[Wanted]:
    """Every job of a grid, from the data to the report."""
    jobs: list[tuple[str, str | None, int]] = [("prepare", None, 0), ("evaluate", None, 0)]
    if not grid.own_model:
        jobs.append(("fetch" if grid.fetched else "pretrain", None, 0))
    jobs += [(verb, arm.name, seed) for arm in grid.arms for seed in grid.seeds for verb in ("train", "evaluate")]
    for verb, arm, seed in jobs:
        config = compose.load(verb, grid.overrides(verb, results, arm=arm, seed=seed))
        job = f"{verb}.{config.evaluation.set}" if verb == "evaluate" else verb
        origin = {"config_hash": compose.identity(config), "config": config.model_dump(mode="json")}
        yield Wanted(Path(config.run.dir), job, origin)
    for verb in _OF_THE_GRID:
        yield Wanted(grid.folder(results), verb, grid.origin | {"config_hash": grid.content_hash})


def _finished(wanted: Wanted) -> bool:
    mark = read_mark(wanted.folder, wanted.job)
    return mark is not None and mark["state"] == "finished" and _config_hash(mark) == wanted.origin["config_hash"]


def _config_hash(mark: dict[str, Any]) -> Any:
    origin = mark["origin"]
    return origin.get("config_hash", origin.get("grid_hash"))


def _out_of_date(
    grid_folder: Path, jobs: dict[tuple[Path, str], Wanted], open_jobs: set[tuple[str, str]]
) -> Iterator[Stale]:
    """The marked results below a grid's folder that are not those of ``jobs``, nor of use to one of ``open_jobs``."""
    models: set[Path] = set()  # folders whose model is out of date: what was evaluated there is too
    for folder, job, mark in sorted(_marked(grid_folder), key=lambda result: result[1].startswith(_DEPENDENT)):
        if job == "grid" or _by_hand(mark):
            continue
        wanted = jobs.get((folder, job))
        if wanted is None:
            reason = f"the grid has no {job.partition('.')[0]} of {folder.relative_to(grid_folder)}"
        elif _config_hash(mark) != wanted.origin["config_hash"]:
            reason = f"made with another configuration ({difference(mark['origin'], wanted.origin)})"
        elif job.startswith(_DEPENDENT) and folder in models:
            reason = "evaluates a model that is out of date"
        else:
            continue
        if (job, str(_config_hash(mark))) not in open_jobs:
            if not job.startswith(_DEPENDENT):
                models.add(folder)
            yield _stale(folder, job, mark, reason)


def _by_hand(mark: dict[str, Any]) -> bool:
    """Whether a user ran the job, of no grid, into the folder of one. Data and fetched models do not say."""
    run = (mark["origin"].get("config") or {}).get("run") or {}
    return mark["job"] not in ("prepare", "fetch") and "grid" in run and run["grid"] is None


def _stale(folder: Path, job: str, mark: dict[str, Any], why: str) -> Stale:
    return Stale(folder, job, tuple(mark["made"]), why)


def _marked(root: Path) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    """Every job's mark below a folder, innermost folders first; links are not followed."""
    folders = {path.parent for path in root.rglob(MARKS) if path.is_dir()}
    for folder in sorted(folders, reverse=True):
        for job, mark in marks(folder).items():
            yield folder, job, mark


def _top(results: Path, folder: Path) -> Path:
    """The folder right below the results root in which another lies: a grid's."""
    return results.joinpath(*folder.relative_to(results).parts[:1])


def _runs(folder: Path, job: str) -> bool:
    try:
        with FileLock(folder / MARKS / job / "lock", mode=0o644).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _remove(results: Path, stale: Stale) -> bool:
    """Remove what the mark lists, the mark, and the folders that are empty then; whether that could be done."""
    try:
        with Claim(stale.folder, stale.job, outputs=(), key="clean"):
            for name in stale.made:
                remove_made(stale.folder, name)
            (stale.folder / MARKS / stale.job / "mark.json").unlink()
    except UserError as error:
        print(f"kept: {error}", file=sys.stderr)
        return False
    home = stale.folder / MARKS / stale.job
    with suppress(OSError):  # what else stands there is somebody's
        home.rmdir()
        for above in (stale.folder / MARKS, stale.folder, *stale.folder.parents):
            if above == results:
                break
            above.rmdir()
    return True


def _remove_index(results: Path) -> None:
    """Remove the index of equal jobs, when nothing is left that it could name."""
    for path in [*(results / INDEX).glob("*.json"), *(results / INDEX).glob("*.lock")]:
        path.unlink()
    with suppress(OSError):
        (results / INDEX).rmdir()
        (results / INDEX).parent.rmdir()


def _size(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"
