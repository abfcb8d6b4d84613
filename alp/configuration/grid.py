"""Experiment grids: one YAML names a task, a model, seeds and arms; everything else follows from it.

The workflow, the tables and the figures all read a grid through this module, so they agree on arms and folders. No
torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alp.configuration import compose, grid_file
from alp.configuration.fields import NAME_RULE, is_name
from alp.configuration.tracking_uri import NAME, SQLITE, located
from alp.errors import UserError, nearest
from alp.foreign import read_yaml, reading, shortened

if TYPE_CHECKING:
    from alp.configuration.train_schema import TrainConfig

_SHOWN = 200  # characters of a user's text in a message
_UNSPEAKABLE = (
    "Cc",
    "Cs",
    "Zl",
    "Zp",
)  # control characters, bytes that are no text, separators of lines: Snakemake's files hold a path a line


@dataclass(frozen=True)
class Arm:
    """A method, perhaps a variant of it: a name in ``configs/variant`` or a label for explicit overrides."""

    method: str
    variant: str | None
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Folder and table name: ``<method>`` or ``<method>-<variant>``."""
        return f"{self.method}-{self.variant}" if self.variant else self.method

    def selection(self) -> list[str]:
        """Hydra overrides that make this arm out of the default training configuration."""
        chosen = [f"method={self.method}"]
        if self.variant in compose.choices("variant"):
            chosen.append(f"variant={self.variant}")
        return [*chosen, *self.overrides]


@dataclass(frozen=True)
class Grid:
    """A checked grid file; paths are relative to the results root's parent, as the workflow runs there."""

    name: str
    title: str
    description: str
    task: str
    model: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    published_label: str
    published: dict[str, float]
    own_model: str | None  # folder of weights the model's YAML names; None: the grid makes it
    fetched: bool  # it makes it by `alp fetch` instead of `alp pretrain`
    _overrides: dict[str, tuple[str, ...]]

    @property
    def sets(self) -> list[str]:
        """Sets of the task, one prepared file each."""
        return list(compose.load("prepare", self.overrides("prepare", "results")).task.sets)

    @property
    def parts(self) -> list[str]:
        """Names of the evaluation sets that ``test`` is made of, in their order; none where it is one set."""
        return list(compose.load("evaluate", self.overrides("evaluate", "results")).task.parts)

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything the file says that results may follow from."""
        plain = asdict(self)
        for said, key in [(arm, "overrides") for arm in plain["arms"]] + [(plain["_overrides"], "train")]:
            said |= {key: [word for word in said[key] if bears_on_results(word)]} if key in said else {}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def arm(self, name: str) -> Arm:
        """The arm of that folder name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def origin(self) -> dict[str, str]:
        """What tables, figures and pages of the grid follow from beside the runs (alp/ownership.py)."""
        return {"identity": self.content_hash, "grid_hash": self.content_hash}

    def folder(self, results: str | Path) -> Path:
        return Path(results) / self.name

    def data_dir(self, results: str | Path) -> Path:
        return self.folder(results) / self.task / "data"

    def base_dir(self, results: str | Path) -> Path:
        """The folder of the model that every job starts from."""
        return self.folder(results) / self.task / self.model / "base"

    def model_dir(self, results: str | Path) -> Path:
        """The weights that every job starts from."""
        return Path(self.own_model) if self.own_model else self.base_dir(results) / "model"

    def run_dir(self, results: str | Path, arm: str, seed: int) -> Path:
        return self.folder(results) / self.task / self.model / arm / f"seed{seed}"

    def tracking_uri(self, results: str | Path) -> str:
        """The MLflow database all grids of a results root share. Raises UserError for a root whose name a URI cannot
        hold."""
        uri = f"{SQLITE}{Path(results)}/{NAME}"
        located(uri)
        return uri

    def overrides(self, verb: str, results: str | Path, *, arm: str | None = None, seed: int = 0) -> list[str]:
        """The ``key=value`` words of one job; ``alp <verb>`` with them is that job.

        ``arm`` None in ``evaluate`` means the base model.
        """
        words = [] if verb == "fetch" else [f"task={self.task}", *self._overrides.get("task", ())]
        if verb not in ("prepare", "fetch"):
            words.append(f"task.data={quoted(self.data_dir(results))}")
        if verb != "prepare":
            words += [f"model={self.model}", *self._overrides.get("model", ())]
        words += self._overrides.get(verb, ())
        if verb == "prepare":
            folder = self.data_dir(results)
        else:
            folder = self.base_dir(results) if arm is None else self.run_dir(results, arm, seed)
        if verb == "train":
            assert arm is not None
            words += [
                *self.arm(arm).selection(),
                f"model.path={quoted(self.model_dir(results))}",
                f"trainer.seed={seed}",
            ]
        if verb == "evaluate":
            words.append(f"model.path={quoted(folder / 'model' if arm else self.model_dir(results))}")
        words += [f"run.dir={quoted(folder)}", "run.replace=true", f"run.grid={quoted(self.name)}"]
        if verb in ("train", "evaluate") and arm is not None:
            words.append(f"run.arm={arm}")
        if verb == "train":  # evaluations are logged by `alp track`, all at once: importing MLflow takes seconds
            words.append(f"run.tracking={quoted(self.tracking_uri(results))}")
        return words


def bears_on_results(word: str) -> bool:
    """Whether a ``key=value`` word may change what a job computes, not its speed and memory alone."""
    return word.partition("=")[0].lstrip("+") != "trainer.devices"


@cache
def _job(words: tuple[str, ...]) -> TrainConfig:
    job: TrainConfig = compose.load("train", words)
    return job


def job_of(grid: Grid, arm: Arm) -> TrainConfig:
    """The resolved training configuration of an arm's first seed, from the grid file alone."""
    return _job(tuple(grid.overrides("train", "results", arm=arm.name, seed=grid.seeds[0])))


def quoted(value: str | Path) -> str:
    """Hydra's grammar reads some characters of paths as syntax, OmegaConf those of an interpolation: quote and escape
    them."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text) + "'"


def plain_word(key: str, value: object) -> str:
    """A word of ``snakemake --config``, which reads values as numbers, truth values, lists and mappings where it can.

    Raises UserError for what is no text, and for characters that no path of a workflow can hold.
    """
    if value is None or value == "":
        raise UserError(f"--config: {key} is empty: write {key}=<name>, or leave it out")
    if not isinstance(value, str):
        kind = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "a mapping"}.get(
            type(value), "no text"
        )
        raise UserError(
            f"--config: {key}: Snakemake reads the value as {kind} ({str(value)[:100]}), not as text; write"
            f" {key}=./<name>"
        )
    for character in value:
        if unicodedata.category(character) in _UNSPEAKABLE:
            raise UserError(
                f"--config: {key}: {value[:100]!r} holds {character!a}, a character that no path of a workflow can hold"
            )
    return value


def results_root(value: object) -> str:
    """The folder of ``snakemake --config results=…``. Raises UserError for a path that Snakemake cannot carry."""
    text = plain_word("results", value)
    if braces := sorted(set("{}") & set(text)):
        raise UserError(
            f"--config: results: '{text[:100]}' holds '{braces[0]}', which Snakemake reads as a wildcard; choose"
            " another folder"
        )
    return text


def check_checkout(*folders: Path) -> None:
    """Refuse a checkout or environment whose place the search paths of a shell cannot hold. Raises UserError."""
    for folder in folders:
        if ":" in str(folder):
            raise UserError(
                f"{folder}: a colon parts folders in PATH and PYTHONPATH: move the checkout or its environment"
                " elsewhere"
            )


def check_results(results: str) -> None:
    """Refuse a results root that is no name of a folder. Raises UserError."""
    if not results.strip():
        raise UserError("results: empty (a shell variable that is not set?); name a folder: results=results")


def load(name: str) -> Grid:
    """Read and check a grid by its name in ``configs/grid`` or by path. Raises :class:`UserError` with one line."""
    path = grid_file.located(name)
    grid = _build(path.stem, grid_file.read(path))
    _check_arms(path, grid)
    return grid


def _build(name: str, plain: dict[str, Any]) -> Grid:
    published = _published(compose.CONFIGS / "published.yaml")
    setting = plain.get("published")
    if setting is not None and setting not in published:
        raise UserError(f"grid {name}: unknown published setting '{setting}'{nearest(setting, published)}")
    reference: dict[str, Any] = {"label": "", "accuracy": {}} if setting is None else published[setting]
    model = compose.load("evaluate", [f"task={plain['task']}", f"model={plain['model']}"]).model
    arms = [Arm(arm["method"], arm.get("variant"), tuple(arm.get("overrides", ()))) for arm in plain["arms"]]
    plain_presets = {arm.method for arm in arms if arm.variant is None}  # what was published is of no variant
    accuracy = {name: share for name, share in reference["accuracy"].items() if name in plain_presets}
    return Grid(
        name=name,
        title=plain["title"],
        description=plain["description"],
        task=plain["task"],
        model=plain["model"],
        seeds=tuple(map(int, plain["seeds"])),  # 1.0 is an integer to JSON
        arms=tuple(arms),
        published_label=reference["label"],
        published=accuracy,
        own_model=model.path,
        fetched=model.path is None and model.source is not None,
        _overrides={verb: tuple(words) for verb, words in plain.get("overrides", {}).items()},
    )


def _published(path: Path) -> dict[str, Any]:
    """Published accuracies by setting: a label each, and percentages by arm. Raises UserError."""
    plain = read_yaml("grid", path)
    with reading("grid", path):
        for entry in plain.values():
            if not isinstance(entry["label"], str) or not all(
                isinstance(share, int | float) for share in entry["accuracy"].values()
            ):
                raise ValueError("a label and numbers under accuracy expected in each entry")
    return dict(plain)


def _check_words(path: Path, field: str, words: Iterable[str], allowed: tuple[str, ...]) -> None:
    """Refuse words for what the grid decides itself: they would be overruled, or make an arm another than its name
    says."""
    decided = (
        "task",
        "model",
        "method",
        "variant",
        "run.",
        "task.data",
        "model.path",
        "trainer.seed",
        "evaluation.set",
    )
    for word in words:
        key = word.split("=")[0]
        if any(key == name or (name.endswith(".") and key.startswith(name)) for name in decided):
            raise UserError(
                f"{path.name}: {field}: '{word}': the grid decides {key} itself; use its own fields (task, model,"
                " seeds, arms)"
            )
        group = key.split(".")[0]
        if group in ("task", "model") and group not in allowed:
            raise UserError(f"{path.name}: {field}: '{word}' must hold for every job: put it under overrides.{group}")


def _check_arms(path: Path, grid: Grid) -> None:
    """Every job must compose: a fault in the last arm is found before the first one starts."""
    for verb, words in grid._overrides.items():
        _check_words(path, f"overrides.{verb}", words, allowed=(verb,))
    for position, arm in enumerate(grid.arms):
        _check_words(path, f"arms.{position}", arm.overrides, allowed=())
    first = "fetch" if grid.fetched else "pretrain"
    try:
        base = None if grid.own_model else compose.load(first, grid.overrides(first, "results")).model
    except UserError as error:
        raise UserError(f"{path.name}: overrides: {error}") from None
    seen: set[str] = set()
    for position, arm in enumerate(grid.arms):
        if arm.name in seen:
            raise UserError(
                f"{path.name}: arms.{position}: '{arm.name}' stands twice; give one a variant label of its own"
            )
        seen.add(arm.name)
        if not is_name(arm.name):
            raise UserError(
                f"{path.name}: arms.{position}: '{shortened(arm.name)}' is no name of an arm ({NAME_RULE}); shorten its"
                " parts"
            )
        if arm.variant and not arm.overrides and arm.variant not in compose.choices("variant"):
            hint = nearest(arm.variant, compose.choices("variant"))
            raise UserError(f"{path.name}: arms.{position}: unknown variant '{arm.variant}' without overrides{hint}")
        try:
            job = compose.load("train", grid.overrides("train", "results", arm=arm.name, seed=grid.seeds[0]))
            if job.method.perturbation is not None and base is not None:
                job.method.perturbation.check_depth(base.layers)
        except (UserError, ValueError) as error:
            raise UserError(f"{path.name}: arm {arm.name}: {error}") from None
    for verb in ("prepare", "evaluate"):
        try:
            compose.load(verb, grid.overrides(verb, "results"))
        except UserError as error:
            raise UserError(f"{path.name}: overrides: {error}") from None
