"""``<grid>.<kind of processor>.json``: what one build of a grid came to, small enough to be kept beside the source
(docs/faults.md): a hash for each job, the numbers that conclusions rest on, and the commit whose numbers they are.

``alp manifest … reference=docs/reference`` writes it, ``alp verify`` compares a build with it, the report says what
came of that, and :func:`stale` says without building anything whether the numbers may have moved since.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from alp.configuration import compose
from alp.configuration import grid as grids
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.foreign import shortened
from alp.reporting import records
from alp.reporting.arms import build_command
from alp.reporting.conclusions import Comparison, Numbers, compare
from alp.reporting.manifest import Described, Sha, described, identity, job_files, parse, validated
from alp.reporting.runs import Results
from alp.reproducibility import ROOT, sha256_file, write_json

FOLDER = ROOT / "docs" / "reference"
FORMAT = 1
SETTINGS = "the configuration"
CODE = "the code of"
_APART = ("config.yaml", "provenance.json")  # they say where numbers come from, and hold none
_NAMED = 4  # jobs that a line names
_PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)  # of a lock


class Reference(Described):
    """``jobs`` maps the folder of each job to one hash over the files it made; ``lock`` is the file that ``packages``
    were installed from."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    reference: Literal[1]
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    lock: Literal["locks/cpu.txt", "locks/cuda.txt"]
    jobs: Annotated[dict[str, Sha], Field(min_length=1)]

    @property
    def title(self) -> str:
        """For a line: whose numbers these are."""
        return f"of commit {self.commit[:7]} on {self.processor.kind}"


def read(key: str, path: Path) -> Reference:
    """A reference, whole and of the form it is written in. Raises UserError."""
    try:
        found: Reference = validated(Reference, parse(key, path))
    except (ValueError, RecursionError) as error:
        why = (
            "it is nested too deeply" if isinstance(error, RecursionError) else shortened(" ".join(str(error).split()))
        )
        raise UserError(f"{key}: {path} is no reference of format {FORMAT}: {why}") from error
    return found


def _read_named(key: str, path: Path) -> Reference:
    """One whose name says what it is of. Raises UserError."""
    found = read(key, path)
    if path.name != (expected := f"{found.grid}.{found.processor.kind}.json"):
        raise UserError(f"{key}: {path} holds the reference {expected}")
    return found


def chosen(key: str, folder: Path, grid: str, kind: str) -> tuple[Path, Reference] | None:
    """The reference of a grid in a folder of them: that of this kind of processor, else the first by name; None where
    the grid has none. Raises UserError for one that cannot be read."""
    own = {path.stem.rpartition(".")[2]: path for path in sorted(folder.glob("*.json")) if _is_of(path, grid)}
    if not own:
        return None
    path = own.get(kind) or next(iter(own.values()))
    return path, _read_named(key, path)


def _is_of(path: Path, grid: str) -> bool:
    return path.stem.rpartition(".")[0] == grid


# ---- writing ---------------------------------------------------------------------------------------------------------


def digests(files: Mapping[str, str]) -> dict[str, str]:
    """One hash for each job's folder, over names and hashes of what it made: ``files`` maps the paths of results below
    the grid's folder to their hashes. Tables, figures and pages are no job's, and follow from the rest."""
    lines: dict[str, list[str]] = {}
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        depth = 2 if parts[1:2] == ("data",) else 3 if parts[2:3] == ("base",) else 4
        if len(parts) > depth and parts[-1] not in _APART:
            lines.setdefault("/".join(parts[:depth]), []).append(f"{'/'.join(parts[depth:])}\0{digest}\n")
    return {folder: hashlib.sha256("".join(sorted(of_job)).encode()).hexdigest() for folder, of_job in lines.items()}


def place(grid: Grid, results: Path, content: Mapping[str, Any], folder: Path) -> Path:
    """Where the reference of a build goes that ``content`` of its manifest describes. Raises UserError where no commit
    has these numbers, and where something else stands there."""
    made_from = content["made_from"]
    if made_from["commit"] is None or made_from["dirty"] is not False:
        why = "nothing says which that is" if made_from["commit"] is None else "there are uncommitted changes"
        raise UserError(f"manifest: reference: it names the commit whose numbers it holds, and {why}")
    _check_current(grid, results)
    path = folder / f"{grid.name}.{content['processor']['kind']}.json"
    if path.exists():
        _read_named("manifest: reference", path)
    return path


def write_reference(path: Path, content: Mapping[str, Any]) -> Path:
    """Write what a reference keeps of a manifest; returns its path."""
    files = {name: entry["sha256"] for name, entry in content["files"].items()}
    made_from = {key: content["made_from"][key] for key in ("commit", "lock")}
    kept = {key: content[key] for key in Described.model_fields}
    write_json(path, kept | made_from | {"reference": FORMAT, "jobs": digests(files)})
    return path


def _check_current(grid: Grid, results: Path) -> None:
    """Refuse runs of other code or settings than this checkout's. Raises UserError."""
    for arm in grid.arms:
        for seed in grid.seeds:
            path = grid.run_dir(results, arm.name, seed) / "provenance.json"
            config = compose.load("train", grid.overrides("train", results, arm=arm.name, seed=seed))
            made_from = records.read_json(path, build_command(grid))
            now = {"config_hash": compose.identity(config), "code_hash": compose.code_of("train", config)}
            if any(made_from.get(key) != value for key, value in now.items()):
                raise UserError(
                    f"manifest: reference: {path.parent} was trained with other code or settings than this checkout's:"
                    f" build it: {build_command(grid)}"
                )


# ---- comparing -------------------------------------------------------------------------------------------------------


def moved(kept: Described, now: Mapping[str, Any]) -> list[str]:
    """Why numbers may have moved, as far as can be told without building: ``config_hash``, ``code`` and ``packages`` of
    two times compared."""
    reasons = [SETTINGS] if kept.config_hash != now["config_hash"] else []
    verbs = [
        verb for verb in sorted(kept.code.keys() | now["code"].keys()) if kept.code.get(verb) != now["code"].get(verb)
    ]
    reasons += [f"{CODE} {', '.join(verbs)}"] if verbs else []
    old, new = ({_key(name): _version(text) for name, text in of.items()} for of in (kept.packages, now["packages"]))
    return reasons + [
        f"{name} ({version} there, {new.get(name, 'none')} here)"
        for name, version in sorted(old.items())
        if new.get(name) != version
    ]


def stale(path: Path) -> list[str]:
    """Why a kept reference's numbers may not be this checkout's: its configuration, the code of the grid's jobs and
    their packages as the lock pins them, whatever is installed. Nothing is built. Raises UserError."""
    kept = _read_named("reference", path)
    pinned = dict(_PIN.findall((ROOT / kept.lock).read_text(encoding="utf-8")))
    return moved(kept, identity(grids.load(kept.grid)) | {"packages": pinned})


def _key(name: str) -> str:
    """A package's name as all of its spellings have it in common."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(version: str) -> str:
    """Without the build's label: 2.13.0+cpu is 2.13.0."""
    return version.partition("+")[0]


def differing_jobs(kept: Reference, jobs: Mapping[str, str]) -> list[str]:
    """Folders of jobs whose bytes are not those of the reference, or that one side alone has."""
    return [name for name in sorted(kept.jobs.keys() | jobs.keys()) if kept.jobs.get(name) != jobs.get(name)]


def named_jobs(folders: list[str]) -> str:
    """A few of them by their last parts."""
    shown = ["/".join(PurePosixPath(folder).parts[2:] or PurePosixPath(folder).parts) for folder in folders[:_NAMED]]
    return ", ".join(shown) + (", …" if len(folders) > _NAMED else "")


def sentences(loaded: Results, results: Path) -> list[str]:
    """What a report says of the grid's reference in :data:`FOLDER`; nothing where it has none."""
    grid = loaded.grid
    if not any(_is_of(path, grid.name) for path in FOLDER.glob("*.json")):
        return []
    here = described(loaded)
    found = chosen("report", FOLDER, grid.name, here["processor"]["kind"])
    assert found is not None
    path, kept = found
    root = grid.folder(results)
    files = {
        file.relative_to(root).as_posix(): sha256_file(file) for file in job_files(grid, results) if file.is_file()
    }
    compared = compare(kept.numbers, Numbers.model_validate(here["numbers"]))
    return [_sentence(path, kept, here, differing_jobs(kept, digests(files)), compared)]


def _sentence(path: Path, kept: Reference, here: Mapping[str, Any], differing: list[str], compared: Comparison) -> str:
    whose = f"the reference {path.name} ({kept.title})"
    if not differing:
        return f"This build reproduces {whose}: every byte of its {len(kept.jobs)} jobs."
    kind = here["processor"]["kind"]
    reasons = moved(kept, here)
    since = f" Changed since: {'; '.join(reasons)}." if reasons else ""
    told = [*compared.differing, *compared.alone, *compared.unmatched]
    said = f"Of the paired differences: {compared.summary}{''.join(f'; {line}' for line in told)}."
    if kind != kept.processor.kind:
        return f"Beside {whose}, from another kind of processor than this build's {kind}.{since} {said}"
    other = f"{len(differing)} of {len(kept.jobs)} jobs have other bytes ({named_jobs(differing)})"
    return f"This build does not reproduce {whose}: {other}.{since} {said}"
