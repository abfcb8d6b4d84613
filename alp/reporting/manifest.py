"""``manifest.json`` of a grid: the hash of every result, what it was made from, and the few numbers that its
conclusions rest on; alp/reporting/verify.py compares a rebuild with it.

Beside it ``manifest_values.json`` keeps the text of every file of numbers, so that a difference can be told in numbers,
not in hashes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alp.code_identity import Closure, choices_of, job_closure
from alp.configuration import compose
from alp.configuration.fields import Name, Strict, is_name
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.foreign import once, read_text, reading, reason, shortened
from alp.ownership import claimed
from alp.rendering.artefact import ENDINGS
from alp.reporting import registry, runs
from alp.reporting.arms import build_command
from alp.reporting.conclusions import Numbers, numbers_of
from alp.reporting.processor import processor
from alp.reporting.runs import Results
from alp.reproducibility import json_line, machine, provenance, sha256_file, write_json

Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(max_length=100)]
FORMAT = 1
VALUES = "manifest_values.json"
NUMBERS = (".json", ".jsonl", ".csv")
_RUN = ("config.yaml", "active.json", "provenance.json", "metrics.jsonl", "updates.jsonl", "trajectories.jsonl")
_EVALUATION = ("evaluation/test.json", "evaluation/test.samples.jsonl.gz")
_HASH = re.compile(r"[0-9a-f]{64}")


class _Processor(BaseModel):
    """As :func:`alp.reporting.processor.processor` says it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    kind: Name
    vendor: Word
    capability: Word
    instructions: list[Word]


class Described(BaseModel):
    """What a manifest and a reference both say of a build: what its numbers follow from, the processor, and the numbers
    that its conclusions rest on."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    grid: Name
    config_hash: Sha
    code: dict[Name, Sha]
    packages: dict[Name, Word]
    processor: _Processor
    numbers: Numbers


def job_files(grid: Grid, results: Path) -> list[Path]:
    """What the grid's jobs made, as far as it is the same whenever they run: no clock, host or speed in it."""
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
    return listed


def outputs(grid: Grid, results: Path) -> list[Path]:
    """Every file of the grid that is. Raises UserError when one is missing."""
    root = grid.folder(results)
    listed = job_files(grid, results)
    listed += [root / path for kind in ENDINGS for path in registry.paths_of(kind, grid)]
    listed.append(root / "report.html")
    for path in listed:
        if not path.is_file():
            raise UserError(f"manifest: {path} is missing; build it: {build_command(grid)}")
    return sorted(listed)


def write_manifest(grid: Grid, results: Path, *, replace: bool = False, reference: str | None = None) -> Path:
    """Hash every output and write ``manifest.json`` and its values below the grid's folder; returns the former's path,
    or that of the reference that is written into the folder ``reference`` (alp/reporting/reference.py)."""
    root = grid.folder(results)
    listed = outputs(grid, results)
    content = {
        "format": FORMAT,
        **described(runs.load(grid, results)),
        "made_from": provenance() | {"python": platform.python_version(), "machine": machine()},
    }
    path = None
    if reference is not None:
        from alp.reporting.reference import place, write_reference

        path = place(grid, results, content, Path(reference))
    texts, files = {}, {}
    for file in listed:
        name = file.relative_to(root).as_posix()
        files[name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        if file.suffix in NUMBERS:
            texts[name] = file.read_text(encoding="utf-8")
    content["files"] = files
    with claimed(
        root, "manifest", grid.origin, outputs=["manifest.json", VALUES], key="results", replace=replace, beside=True
    ):
        write_json(root / VALUES, texts)
        write_json(root / "manifest.json", content | {"values_sha256": sha256_file(root / VALUES)})
    return root / "manifest.json" if path is None else write_reference(path, content)


def described(loaded: Results) -> dict[str, Any]:
    """:class:`Described` of a build on this processor."""
    return {
        "grid": loaded.grid.name,
        **identity(loaded.grid),
        "processor": processor(),
        "numbers": numbers_of(loaded).model_dump(mode="json"),
    }


def identity(grid: Grid) -> dict[str, Any]:
    """What the numbers of the grid's jobs follow from in this checkout: ``config_hash`` over the resolved
    configurations of all of them (places of files left out), ``code`` by verb (comments and layout left out), versions
    of the ``packages`` that this code imports."""
    hashes: dict[str, str] = {}
    closures: dict[str, dict[Any, Closure]] = {}
    for name, verb, config in _jobs(grid):
        hashes[name] = compose.identity(config)
        plain = config.model_dump(mode="json") | {"verb": verb, "schema": [verb]}
        known = closures.setdefault(verb, {})
        if (choices := choices_of(plain)) not in known:
            known[choices] = job_closure(compose.ENTRIES[verb].partition(":")[0], plain)
    packages: dict[str, str] = {}
    for of_verb in closures.values():
        for closure in of_verb.values():
            packages |= closure.packages
    del packages["python"]
    return {
        "config_hash": hashlib.sha256(json_line(hashes).encode()).hexdigest(),
        "code": {verb: _code(of_verb.values()) for verb, of_verb in closures.items()},
        "packages": packages,
    }


def _code(closures: Iterable[Closure]) -> str:
    """SHA-256 over what several jobs run, the versions of packages left out."""
    digests = {Closure(digests=closure.digests, chosen=closure.chosen).sha256 for closure in closures}
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _jobs(grid: Grid) -> Iterator[tuple[str, str, Strict]]:
    """Every job of the grid: a name, its verb and its resolved configuration."""
    for verb in ("prepare", "fetch" if grid.fetched else "pretrain", "evaluate"):
        yield verb, verb, compose.load(verb, grid.overrides(verb, "results"))
    for verb in ("train", "evaluate"):
        for arm in grid.arms:
            for seed in grid.seeds:
                config = compose.load(verb, grid.overrides(verb, "results", arm=arm.name, seed=seed))
                yield f"{verb} {arm.name} {seed}", verb, config


# ---- reading ---------------------------------------------------------------------------------------------------------


def checked(key: str, path: Path, content: Any) -> tuple[dict[str, Any], Described | None]:
    """A manifest of the form it is written in, and what it describes; None where it was written before manifests held
    numbers. Raises UserError."""
    with reading(key, path):
        try:
            _check(key, path, content)
            holds = bool({"processor", "numbers"} & content.keys())
            return content, validated(Described, content) if holds else None
        except (ValueError, AttributeError) as error:
            raise not_one(key, path, error) from error


def not_one(key: str, path: Path, error: Exception) -> UserError:
    """What to say of a file that is no manifest."""
    return UserError(f"{key}: {path} is no manifest of format {FORMAT}: {reason(error)}")


def validated(model: Any, content: Any) -> Any:
    """Raises ValueError in one line."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = shortened(".".join(map(str, first["loc"])) or "its content")
        raise ValueError(f"'{where}': {shortened(first['msg'].removeprefix('Value error, '))}") from None


def parse(key: str, path: Path) -> Any:
    """Any value of a JSON file. Raises UserError, ValueError for what is no JSON or names a key twice."""
    return json.loads(read_text(key, path), object_pairs_hook=once, parse_constant=_no_number)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _check(key: str, path: Path, content: Any) -> None:
    """Raises UserError for names that lead elsewhere, ValueError for what no manifest says."""
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or type(content.get("format")) is not int or content["format"] != FORMAT:
        raise ValueError(f"'format' {FORMAT} and 'files' expected")
    if not files:
        raise ValueError("it names no file, so there is nothing to compare")
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if name.startswith("/") or ".." in pure.parts or not pure.parts:
            raise UserError(f"{key}: {path} names the file '{shortened(name)}', outside its folder")
        if pure.as_posix() != name:
            raise ValueError(f"'{shortened(name)}' is another way to write '{shortened(pure.as_posix())}'")
        known = isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and _HASH.fullmatch(entry["sha256"])
        if not known or type(entry.get("bytes")) is not int or entry["bytes"] < 0:
            raise ValueError(f"'{shortened(name)}' needs 'sha256', 64 hexadecimal digits, and 'bytes', a number")
    if not isinstance(content.get("grid"), str) or not is_name(content["grid"]):
        raise ValueError("'grid' must be the name of a grid")
    if not isinstance(content.get("made_from", {}), dict) or not isinstance(content.get("values_sha256", ""), str):
        raise ValueError("'made_from' must be a mapping and 'values_sha256' a hash")
