"""Configuration: Hydra composes the YAML groups of ``configs/``, pydantic closes and types the result.

Each verb has a primary file (``configs/train.yaml`` …) that names the groups it reads, so a key that a verb would
ignore is unknown to it and refused. Imports neither torch nor transformers; Hydra and pydantic, most of a second, wait
until a choice of groups that is known as wrong has been refused.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from alp.configuration.automatic import settled
from alp.errors import UserError, nearest
from alp.foreign import is_file, read_yaml, reason, shortened
from alp.nested import entries
from alp.reproducibility import sha256_file

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig
    from pydantic import ValidationError

    from alp.configuration.fields import Strict

# Schema and code of the verbs that take a configuration; lazy registries of alp/code_identity.py.
SCHEMAS = {
    "prepare": "alp.configuration.prepare_schema:PrepareConfig",
    "fetch": "alp.configuration.fetch_schema:FetchConfig",
    "pretrain": "alp.configuration.pretrain_schema:PretrainConfig",
    "train": "alp.configuration.train_schema:TrainConfig",
    "evaluate": "alp.configuration.evaluate_schema:EvaluateConfig",
    "aggregate": "alp.configuration.grid_schema:GridConfig",
    "figures": "alp.configuration.grid_schema:GridConfig",
    "track": "alp.configuration.grid_schema:GridConfig",
    "report": "alp.configuration.grid_schema:GridConfig",
    "manifest": "alp.configuration.grid_schema:ManifestConfig",
    "diagnose": "alp.configuration.diagnose_schema:DiagnoseConfig",
    "clean": "alp.configuration.clean_schema:CleanConfig",
    "power": "alp.configuration.power_schema:PowerConfig",
    "noise": "alp.configuration.noise_schema:NoiseConfig",
    "plan": "alp.configuration.plan_schema:PlanConfig",
    "monitor": "alp.configuration.monitor_schema:MonitorConfig",
}
ENTRIES = {
    "prepare": "alp.tasks.prepare:prepare",
    "fetch": "alp.fetch:fetch",
    "pretrain": "alp.training.pretrain:pretrain",
    "train": "alp.training.loop:train",
    "evaluate": "alp.evaluation.evaluate:evaluate",
    "aggregate": "alp.reporting.aggregate:aggregate",
    "figures": "alp.reporting.draw:figures",
    "track": "alp.reporting.mirror:track",
    "report": "alp.reporting.report:report",
    "manifest": "alp.reporting.manifest:write_manifest",
    "diagnose": "alp.diagnosis.rescoring:diagnose",
    "clean": "alp.clean:clean",
    "power": "alp.reporting.power:power",
    "noise": "alp.diagnosis.noise:noise",
    "plan": "alp.planning.plan:plan",
    "monitor": "alp.reporting.monitor:monitor",
}
_OF_A_GRID = ("prepare", "fetch", "pretrain", "train", "evaluate")  # verbs whose jobs a grid composes

# Of a job's configuration, what its record holds and its identity does not.
_NO_RESULT: Any = {"run": True, "model": {"path"}, "task": {"data"}, "trainer": {"devices"}}

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_CHOICE = re.compile(r"[A-Za-z0-9_.-]+")  # a word that Hydra reads as it stands


def schema(verb: str) -> type[Strict]:
    """The model that a verb's configuration is validated by."""
    module, _, name = SCHEMAS[verb].partition(":")
    model: type[Strict] = getattr(importlib.import_module(module), name)
    return model


def choices(group: str) -> list[str]:
    """Names of the YAML files in a configuration group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def read_from(configs: Path) -> None:
    """Compose from the YAML files below another folder from now on."""
    global CONFIGS
    CONFIGS = configs
    for cached in (_groups, _selected, _check_file):
        cached.cache_clear()


@cache
def _groups() -> frozenset[str]:
    return frozenset(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "grid")


def _parse(text: str) -> Override:
    if "=" not in text:
        raise UserError(f"'{text}' is not an override: write key=value, for example trainer.steps=20")
    shown = shortened(text)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError(f"cannot read the override '{shown}': it is no UTF-8")
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        raise UserError(
            f"cannot read the override '{shown}': quote values that hold =, ~, spaces or colons: key='value'"
        ) from None
    except Exception as error:  # brackets nested thousands deep, numbers of thousands of digits
        raise UserError(f"cannot read the override '{shown}': {reason(error)}") from error
    if parsed.is_sweep_override():
        raise UserError(f"'{text}' names several values: one run takes one; quote a text with commas: key='a,b'")
    if parsed.type is not OverrideType.CHANGE:
        raise UserError(f"'{text}' adds or deletes a key: only key=value is accepted, every key exists already")
    return parsed


def _compose(verb: str, overrides: list[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose(config_name=verb, overrides=overrides)


@cache
def _selected(verb: str, selections: tuple[str, ...]) -> DictConfig:
    """Compose with group choices alone: what the dotted overrides are then checked against and applied to."""
    for path in _files(verb, selections):
        _check_file(verb, path)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return _with_defaults(verb, _compose(verb, list(selections)))
    except (HydraException, OmegaConfBaseException) as error:
        culprit = selections[-1] if selections else f"configs/{verb}.yaml"
        raise UserError(f"{verb}: {culprit} does not fit the other choices: {str(error).splitlines()[0]}") from None
    except Exception as error:
        raise UserError(f"{verb}: a file under {CONFIGS} cannot be read: {reason(error)}") from error


def _with_defaults(verb: str, config: DictConfig) -> DictConfig:
    """The configuration with the defaults that its files leave to the schema."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    for key, value in schema(verb).filled({str(key): value for key, value in plain.items()}).items():
        if value != plain.get(key):
            OmegaConf.update(config, key, value, merge=False)
    return config


def _files(verb: str, selections: tuple[str, ...]) -> list[Path]:
    """The YAML files that a verb's configuration is made of."""
    path = CONFIGS / f"{verb}.yaml"
    chosen = {group: choice for entry in _defaults(_check_file(verb, path)) for group, choice in entry.items()}
    chosen |= {parsed.key_or_group: str(parsed.value()) for parsed in map(_parse, selections)}
    paths = [CONFIGS / group / f"{choice}.yaml" for group, choice in chosen.items()]
    return [path for path in paths if is_file(path)]  # Hydra says what is missing


@cache
def _check_file(verb: str, path: Path) -> dict[str, Any]:
    """Refuse a file that is no plain mapping before Hydra reads it; returns what it says. Raises UserError."""
    plain = read_yaml(verb, path)
    if not isinstance(plain, dict):
        raise UserError(f"{verb}: {path} holds no mapping of keys")
    return plain


def _defaults(plain: dict[str, Any]) -> list[dict[str, str]]:
    """The groups that a primary file names, each with its choice."""
    return [entry for entry in plain.get("defaults") or () if isinstance(entry, dict)]


def _parts(verb: str) -> list[str]:
    """Top-level keys of a verb's configuration."""
    plain = _check_file(verb, CONFIGS / f"{verb}.yaml")
    return [*(group for entry in _defaults(plain) for group in entry), *(key for key in plain if key != "defaults")]


def _check_choice(verb: str, group: str, value: Any) -> None:
    if group not in (parts := _parts(verb)):
        raise UserError(f"{verb}: '{group}' is no part of this verb's configuration{nearest(group, parts)}")
    if value not in choices(group):
        raise UserError(f"{verb}: unknown {group} '{value}'{nearest(str(value), choices(group))}")


def _check_words(verb: str, words: list[str] | tuple[str, ...]) -> None:
    """Refuse what needs no Hydra to be known as wrong: a plain word that chooses from no group, or what a group has
    not."""
    for word in words:
        group, _, choice = word.partition("=")
        if group in _groups() and _CHOICE.fullmatch(choice):
            _check_choice(verb, group, choice)


def resolve(verb: str, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """Compose the configuration of ``verb`` as plain data, refusing unknown groups, choices and keys in one line."""
    if verb not in SCHEMAS:
        raise UserError(f"unknown verb '{verb}'{nearest(verb, SCHEMAS)}")
    overrides = settled(overrides, verb)
    _check_words(verb, overrides)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    parsed = [_parse(text) for text in overrides]
    is_choice = [item.key_or_group in _groups() for item in parsed]
    for item, chosen in zip(parsed, is_choice, strict=True):
        if chosen:
            _check_choice(verb, item.key_or_group, item.value())
    selected = _selected(verb, tuple(item.input_line or "" for item, c in zip(parsed, is_choice, strict=True) if c))
    known = [key for key, _ in entries(OmegaConf.to_container(selected, resolve=False), numbered=True)]
    config = selected.copy()
    for item, chosen in zip(parsed, is_choice, strict=True):
        if chosen:
            continue
        if item.key_or_group in ("rollout.engine", "validation.engine", "task.name"):  # each file has keys of its own
            group, _, kind = item.key_or_group.partition(".")
            kind = group if group != "rollout" else kind
            raise UserError(f"{verb}: choose the {kind} by its file, not by its key: {group}={item.value()}")
        if item.key_or_group not in known:
            _refuse_key(verb, item.key_or_group, config, known)
        try:
            OmegaConf.update(config, item.key_or_group, item.value(), merge=False)
        except (OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{verb}: {item.key_or_group}: {str(error).splitlines()[0]}") from None
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{verb}: {str(error).splitlines()[0]}") from None
    assert isinstance(plain, dict)
    for item, chosen in zip(parsed, is_choice, strict=True):
        named = plain.get(item.key_or_group)
        if item.key_or_group == "task":  # whose name says the kind; several files may be of one kind
            continue
        if chosen and isinstance(named, dict) and "name" in named and named["name"] != item.value():
            raise UserError(
                f"{verb}: configs/{item.key_or_group}/{item.value()}.yaml says name: {named['name']}; it must be"
                f" {item.value()}"
            )
    return {str(key): value for key, value in plain.items()}


def _refuse_key(verb: str, key: str, config: DictConfig, known: list[str]) -> NoReturn:
    """Say what is wrong with a key that the configuration has not; inside what is null, all that it needs."""
    from omegaconf import OmegaConf

    parts = key.split(".")
    for end in range(1, len(parts)):
        whole = ".".join(parts[:end])
        members = _siblings(schema(verb), parts[:end])
        if OmegaConf.select(config, whole, default="") is None and parts[end] in members:
            shown = ", ".join(f"{name}: …" for name in members)
            raise UserError(f"{verb}: {whole} is null here: to set {key}, give all of it: {whole}={{{shown}}}")
    moved = [name for name in known if name.endswith("." + parts[-1])]  # a key that stands in another group now
    raise UserError(f"{verb}: unknown key '{key}'{nearest(key, moved or known)}")


def _one_line(verb: str, error: ValidationError) -> str:
    """The first validation fault, as: verb: key: what is wrong, got value; nearest choice."""
    first, model = error.errors()[0], schema(verb)
    path = _without_tags(model, [str(part) for part in first["loc"]])
    where = ".".join(path) or "configuration"
    if first["type"] == "extra_forbidden":
        known = _siblings(model, [str(part) for part in first["loc"][:-1]])
        return f"{verb}: unknown key '{shortened(where)}'{nearest(path[-1], known)}"
    if first["type"] == "union_tag_invalid":
        tag, known = str(first["ctx"]["tag"]), str(first["ctx"]["expected_tags"]).replace("'", "").split(", ")
        return f"{verb}: {where}: '{shortened(tag)}' is no valid choice{nearest(tag, known)}"
    if first["type"] == "literal_error":
        allowed = [part.strip(" '") for part in str(first["ctx"]["expected"]).replace(" or ", ", ").split(",")]
        return (
            f"{verb}: {where}: '{shortened(str(first['input']))}' is no valid"
            f" choice{nearest(str(first['input']), allowed)}"
        )
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(first["input"], dict) else f", got {shortened(repr(first['input']))}"
    return f"{verb}: {where}: {message}{shown}"


def _without_tags(model: Any, path: list[str]) -> list[str]:
    """A fault's place as users write it: pydantic puts the tag of a union chosen by a field (rollout.engine) into the
    path."""
    if len(path) > 1 and path[0] in model.model_fields and model.model_fields[path[0]].discriminator:
        return [path[0], *path[2:]]
    return path


def _siblings(model: type[Strict], path: list[str]) -> list[str]:
    """Names of the fields at a fault's place, through lists, mappings and the tags of unions."""
    kinds: list[type] = [model]
    for part in path:
        below = [inner for kind in kinds if part in _members(kind) for inner in _kinds(_members(kind)[part])]
        tagged = [kind for kind in kinds if any(get_args(hint) == (part,) for hint in _members(kind).values())]
        kinds = below or tagged or kinds
    return [name for kind in kinds for name in _members(kind)]


def _members(kind: type) -> dict[str, Any]:
    """Field names and annotations of a model, or of a dataclass that stands for one."""
    if not is_dataclass(kind):
        return {name: member.annotation for name, member in kind.model_fields.items()}  # type: ignore[attr-defined]
    return get_type_hints(kind)


def _kinds(annotation: Any) -> list[type]:
    """The models and dataclasses an annotation mentions."""
    if isinstance(annotation, type) and (hasattr(annotation, "model_fields") or is_dataclass(annotation)):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in _kinds(argument)]


def load(verb: str, overrides: list[str] | tuple[str, ...] = ()) -> Any:
    """Compose and validate; returns the verb's model (:data:`SCHEMAS`). Raises :class:`UserError`."""
    plain = resolve(verb, overrides)
    return validate(verb, plain)


def validate(verb: str, plain: dict[str, Any]) -> Any:
    """Type and close a composed configuration."""
    from pydantic import ValidationError

    try:
        return schema(verb).model_validate(plain)
    except ValidationError as error:
        raise UserError(_one_line(verb, error)) from None


def identity(config: Strict) -> str:
    """SHA-256 of the resolved, sorted configuration without what changes no result: the places of files, the number of
    devices, a lag of none. What the files hold does; a run's ``provenance.json`` has their hashes beside this one. A
    task's own JSONL files and the user's own modules stand in it with the hash of their content."""
    plain = config.model_dump(mode="json", exclude=_NO_RESULT)
    if plain.get("trainer", {}).get("lag") == 0:  # the key came after builds that are kept
        del plain["trainer"]["lag"]
    for group in ("task", "rollout", "validation"):
        if isinstance(plain.get(group), dict):
            plain[group] = _with_content(plain[group])
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def code_of(verb: str, config: Strict | None = None, *assets: Path) -> str:
    """Hash of the code that one job of ``verb`` runs under its configuration; without one, of a verb that works on a
    whole grid."""
    from alp.code_identity import code_hash

    plain = {} if config is None else config.model_dump(mode="json")
    schemas = [verb] if config is not None else [verb, *_OF_A_GRID]
    return code_hash(ENTRIES[verb].partition(":")[0], plain | {"verb": verb, "schema": schemas}, *assets)


def origin_of(parts: dict[str, str], config: Strict) -> dict[str, Any]:
    """What a job's results follow from (alp/ownership.py): hashes, ``identity`` over all of them, and the configuration
    for words."""
    whole = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return parts | {"identity": whole, "config": config.model_dump(mode="json")}


def _with_content(node: Any) -> Any:
    """Local files and modules that a task names, each by what it holds."""
    from alp import own_code

    if isinstance(node, list):
        return [_with_content(item) for item in node]
    if not isinstance(node, dict):
        return node
    hashed = {key: value if key == "options" else _with_content(value) for key, value in node.items()}
    for key, file in (("path", Path), ("tokenizer", _tokenizer)):
        path = file(node[key]) if isinstance(node.get(key), str) else None
        if path is not None and path.is_file():
            hashed[f"{key}_sha256"] = sha256_file(path)
            hashed[key] = None
    for key in ("module", "grader"):
        if isinstance(node.get(key), str) and (digest := own_code.sha256(node[key])) is not None:
            hashed[f"{key}_sha256"] = digest
    return hashed


def _tokenizer(folder: str) -> Path:
    return Path(folder) / "tokenizer.json"


def to_yaml(config: Strict) -> str:
    """The resolved configuration as sorted YAML (``config.yaml`` of a run, ``--cfg job``)."""
    from omegaconf import OmegaConf

    return str(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")), sort_keys=True))
