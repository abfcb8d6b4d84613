"""Every key of a configuration with its type, default and meaning, read from the schema: what ``alp <verb> --help``
and docs/configuration.md show.

A meaning is the docstring under a field. It is read from the source, since a hash of a job's code leaves docstrings out
(alp/code_identity.py) and an argument of the field would be part of it.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from alp.configuration.fields import Name, Strict
from alp.configuration.method_schema import schema_of

UNSET = MISSING  # a key that no file gives a value and the schema no default


@dataclass(frozen=True)
class Key:
    """``path`` is what stands before the = of an override, ``kind`` what may stand behind it, in words; ``default`` is
    plain data or :data:`UNSET`. ``inside`` is the beginning of the path that is given as a whole, where what the key
    belongs to is null, a list or a mapping of names."""

    path: str
    kind: str
    default: Any
    meaning: str
    inside: str = ""

    @property
    def shown(self) -> str:
        """The default as a YAML file or an override would have it."""
        return "" if self.default is UNSET else plain_text(self.default)


def plain_text(value: Any) -> str:
    """A value in the words of YAML; text without quotes where it needs none."""
    return value if isinstance(value, str) and value and value.isprintable() else json.dumps(value, ensure_ascii=False)


def keys_of(model: type[Any], values: dict[str, Any], prefix: str = "", inside: str = "") -> Iterator[Key]:
    """The keys of a schema class or dataclass of settings in their order, those of its parts behind each.

    ``values`` are the composed ones; what they lack has the schema's default. Of what may be null, or stand in a list
    or mapping, the parts' keys come too: with ``<n>`` for a place in a list, ``<name>`` for a name.
    """
    meanings = meanings_of(model)
    for name, member in _members(model).items():
        path = f"{prefix}{name}"
        value = values.get(name, _default(member))
        yield Key(path, _words(member.annotation, member.metadata), value, meanings.get(name, ""), inside)
        for part, kind in _parts(member.annotation):
            here = isinstance(value, dict) and part == ""
            inner = value if here else {}
            if (tag := _tag(kind)) and tag[1] != inner.get(tag[0], tag[1]):
                continue  # another kind than the one that is there
            yield from keys_of(kind, inner, f"{path}{part}.", inside if here or inside else f"{path}.")


def chosen(annotation: Any, value: Any) -> type[Any]:
    """Of a group's annotation the class whose keys ``value`` has: of several the one that a field of theirs names."""
    kinds = [kind for _, kind in _parts(annotation)]
    tags = {kind: _tag(kind) for kind in kinds}
    return next((kind for kind, tag in tags.items() if tag and value.get(tag[0]) == tag[1]), kinds[0])


def kinds_of(annotation: Any) -> list[type[Any]]:
    """All of them."""
    return [kind for _, kind in _parts(annotation)]


def meanings_of(model: type[Any]) -> dict[str, str]:
    """The docstring under each field, inherited ones too."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
            found |= _docstrings(kind.__module__).get(kind.__name__, {})
    return found


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """By class and field: the string that stands below the field."""
    path = importlib.import_module(module).__file__
    assert path is not None
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value) if isinstance(below.value, ast.Constant) else None
                if isinstance(text, str):
                    found.setdefault(node.name, {})[field.target.id] = " ".join(text.split())
    return found


def _members(model: type[Any]) -> dict[str, FieldInfo]:
    if is_dataclass(model):
        model = get_args(schema_of(model))[0]
    members: dict[str, FieldInfo] = model.model_fields
    return members


def _default(member: FieldInfo) -> Any:
    if member.is_required():
        return UNSET
    value = member.get_default(call_default_factory=True)
    return value.model_dump() if isinstance(value, Strict) else value


def _tag(kind: type[Any]) -> tuple[str, str] | None:
    """The field of one value that tells a class from the others of its group, and the value."""
    for name, member in _members(kind).items():
        if get_origin(member.annotation) is Literal and len(get_args(member.annotation)) == 1:
            return name, get_args(member.annotation)[0]
    return None


def _parts(annotation: Any) -> list[tuple[str, type[Any]]]:
    """Classes of settings that an annotation mentions, each with what stands in its key's path before its own keys."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kinds = [part for argument in arguments for part in _parts(argument)]
        return [part for part in kinds if not is_dataclass(part[1])] or kinds
    if origin in (Union, UnionType):
        return [part for argument in arguments for part in _parts(argument)]
    if origin is list:
        return [(f".<n>{part}", kind) for part, kind in _parts(arguments[0])]
    if origin is dict:
        return [(f".<name>{part}", kind) for part, kind in _parts(arguments[1])]
    is_settings = isinstance(annotation, type) and (issubclass(annotation, Strict) or is_dataclass(annotation))
    return [("", _dataclass_behind(annotation))] if is_settings else []


def _dataclass_behind(kind: type[Any]) -> type[Any]:
    """The dataclass of settings that a model was made of (``method_schema.schema_of``), where it was made of one."""
    from alp.policy import method

    source = getattr(method, kind.__name__, None)
    return source if isinstance(source, type) and is_dataclass(source) and fields(source) else kind


_PLAIN = {int: "integer", float: "number", str: "text", bool: "true | false", NoneType: "null", Any: "anything"}
_SIGNS = {Gt: ">", Ge: "≥", Lt: "<", Le: "≤"}


def _words(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """What may stand there: ``integer > 0``, ``float32 | bfloat16``, ``number | null``, ``list of text``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == Name or get_args(Name)[1] in metadata:
        return "name"
    if origin is Annotated:
        return _words(arguments[0], (*_flat(arguments[1:]), *metadata))
    if origin is Literal:
        return " | ".join(map(plain_text, arguments))
    if origin in (Union, UnionType):
        several = list(dict.fromkeys(_words(argument, metadata) for argument in arguments))
        return " | ".join(several)
    if origin is list:
        return f"list of {_words(arguments[0])}"
    if origin is dict:
        return f"mapping of {_words(arguments[1])}"
    if annotation in _PLAIN:
        bounds = [
            f"{sign} {getattr(item, word):g}"
            for item in metadata
            for kind, sign in _SIGNS.items()
            if isinstance(item, kind)
            for word in [kind.__name__.lower()]
        ]
        return " ".join(
            [_PLAIN[annotation], *([] if annotation in (NoneType, str) else [" and ".join(bounds)])]
        ).strip()
    return "mapping"


def _flat(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]
