"""Configuration: Hydra composes the YAML groups of ``configs/``, pydantic closes and types the result.

Each verb has a primary file (``configs/train.yaml`` …) that names the groups it reads, so a key that a verb would
ignore is unknown to it and refused. Imports neither torch nor transformers: the workflow and the planning verbs need no
GPU stack.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from alp import own_code
from alp.configuration.schema import VERBS, Strict
from alp.errors import UserError, nearest
from alp.foreign import is_file, read_yaml, reason, shortened
from alp.reproducibility import sha256_file

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Config = TypeVar("Config", bound=Strict)


def choices(group: str) -> list[str]:
    """Names of the YAML files in a configuration group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@cache
def _groups() -> frozenset[str]:
    return frozenset(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "grid")


def _parse(text: str) -> Override:
    if "=" not in text:
        raise UserError(f"'{text}' is not an override: write key=value, for example trainer.steps=20")
    shown = shortened(text)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UserError(f"cannot read the override '{shown}': it is no UTF-8")
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
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        return compose(config_name=verb, overrides=overrides)


@cache
def _selected(verb: str, selections: tuple[str, ...]) -> DictConfig:
    """Compose with group choices alone: what the dotted overrides are then checked against and applied to."""
    for path in _files(verb, selections):
        _check_file(verb, path)
    try:
        return _compose(verb, list(selections))
    except (HydraException, OmegaConfBaseException) as error:
        culprit = selections[-1] if selections else f"configs/{verb}.yaml"
        raise UserError(f"{verb}: {culprit} does not fit the other choices: {str(error).splitlines()[0]}") from None
    except Exception as error:
        raise UserError(f"{verb}: a file under {CONFIGS} cannot be read: {reason(error)}") from error


def _files(verb: str, selections: tuple[str, ...]) -> list[Path]:
    """The YAML files that a verb's configuration is made of."""
    path = CONFIGS / f"{verb}.yaml"
    chosen = {group: choice for entry in _check_file(verb, path) for group, choice in entry.items()}
    chosen |= {parsed.key_or_group: str(parsed.value()) for parsed in map(_parse, selections)}
    paths = [CONFIGS / group / f"{choice}.yaml" for group, choice in chosen.items()]
    return [path for path in paths if is_file(path)]  # Hydra says what is missing


@cache
def _check_file(verb: str, path: Path) -> list[dict[str, str]]:
    """Refuse a file that is no plain mapping before Hydra reads it; returns the groups it names. Raises UserError."""
    plain = read_yaml(verb, path)
    if not isinstance(plain, dict):
        raise UserError(f"{verb}: {path} holds no mapping of keys")
    return [entry for entry in plain.get("defaults") or () if isinstance(entry, dict)]


def _leaves(node: Any, prefix: str = "") -> list[str]:
    """Dotted paths of every key, inner ones included."""
    if not isinstance(node, dict):
        return []
    found: list[str] = []
    for key, value in node.items():
        found += [f"{prefix}{key}", *_leaves(value, f"{prefix}{key}.")]
    return found


def _check_choice(verb: str, override: Override, groups: dict[Any, Any]) -> None:
    group, value = override.key_or_group, override.value()
    if group not in groups:
        raise UserError(f"{verb}: '{group}' is no part of this verb's configuration{nearest(group, groups)}")
    if value not in choices(group):
        raise UserError(f"{verb}: unknown {group} '{value}'{nearest(str(value), choices(group))}")


def resolve(verb: str, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """Compose the configuration of ``verb`` as plain data, refusing unknown groups, choices and keys in one line."""
    if verb not in VERBS:
        raise UserError(f"unknown verb '{verb}'{nearest(verb, VERBS)}")
    parsed = [_parse(text) for text in overrides]
    groups = OmegaConf.to_container(_selected(verb, ()), resolve=False)
    assert isinstance(groups, dict)
    is_choice = [item.key_or_group in _groups() for item in parsed]
    for item, chosen in zip(parsed, is_choice, strict=True):
        if chosen:
            _check_choice(verb, item, groups)
    selected = _selected(verb, tuple(item.input_line or "" for item, c in zip(parsed, is_choice, strict=True) if c))
    known = _leaves(OmegaConf.to_container(selected, resolve=False))
    config = selected.copy()
    for item, chosen in zip(parsed, is_choice, strict=True):
        if chosen:
            continue
        if item.key_or_group in (
            "rollout.engine",
            "task.name",
        ):  # each has keys of its own, and they come with its file
            group, _, kind = item.key_or_group.partition(".")
            kind = "task" if kind == "name" else kind
            raise UserError(f"{verb}: choose the {kind} by its file, not by its key: {group}={item.value()}")
        if item.key_or_group not in known:
            raise UserError(f"{verb}: unknown key '{item.key_or_group}'{nearest(item.key_or_group, known)}")
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


def _one_line(verb: str, error: ValidationError) -> str:
    """The first validation fault, as: verb: key: what is wrong, got value; nearest choice."""
    first = error.errors()[0]
    path = _without_tags(VERBS[verb], [str(part) for part in first["loc"]])
    where = ".".join(path) or "configuration"
    if first["type"] == "extra_forbidden":
        known = _siblings(VERBS[verb], [str(part) for part in first["loc"][:-1]])
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
    models = [model]
    for part in path:
        below = [
            found
            for each in models
            if part in each.model_fields
            for found in _models(each.model_fields[part].annotation)
        ]
        tagged = [
            each
            for each in models
            if any(get_args(field.annotation) == (part,) for field in each.model_fields.values())
        ]
        models = below or tagged or models
    return [name for each in models for name in each.model_fields]


def _models(annotation: Any) -> list[type[Strict]]:
    """The models an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models(argument)]


def load(verb: str, overrides: list[str] | tuple[str, ...] = ()) -> Any:
    """Compose and validate; returns the verb's model of :mod:`alp.configuration.schema`. Raises :class:`UserError`."""
    plain = resolve(verb, overrides)
    return validate(verb, plain)


def validate(verb: str, plain: dict[str, Any]) -> Any:
    """Type and close a composed configuration."""
    try:
        return VERBS[verb].model_validate(plain)
    except ValidationError as error:
        raise UserError(_one_line(verb, error)) from None


def identity(config: Strict) -> str:
    """SHA-256 of the resolved, sorted configuration without the places of files: where things lie does not change
    results.

    What the files hold does; a run's ``provenance.json`` has their hashes beside this one. A task's own JSONL files and
    the user's own modules stand in it with the hash of their content.
    """
    plain = config.model_dump(mode="json", exclude={"run": True, "model": {"path"}, "task": {"data"}})
    if isinstance(plain.get("task"), dict):
        plain["task"] = _with_content(plain["task"])
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def origin_of(parts: dict[str, str], config: Strict) -> dict[str, Any]:
    """What a job's results follow from (alp/ownership.py): hashes, ``identity`` over all of them, and the configuration
    for words."""
    whole = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return parts | {"identity": whole, "config": config.model_dump(mode="json")}


def _with_content(node: Any) -> Any:
    """Local files and modules that a task names, each by what it holds."""
    if isinstance(node, list):
        return [_with_content(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: value if key == "options" else _with_content(value) for key, value in node.items()}
    for key, file in (("path", Path), ("tokenizer", _tokenizer)):
        place = file(node[key]) if isinstance(node.get(key), str) else None
        if place is not None and place.is_file():
            found[f"{key}_sha256"] = sha256_file(place)
            found[key] = None
    for key in ("module", "grader"):
        if isinstance(node.get(key), str) and (digest := own_code.sha256(node[key])) is not None:
            found[f"{key}_sha256"] = digest
    return found


def _tokenizer(folder: str) -> Path:
    return Path(folder) / "tokenizer.json"


def to_yaml(config: Strict) -> str:
    """The resolved configuration as sorted YAML (``config.yaml`` of a run, ``--cfg job``)."""
    return str(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")), sort_keys=True))
