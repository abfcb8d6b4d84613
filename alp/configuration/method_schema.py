"""The schema of a method: :class:`alp.policy.method.Method` itself, closed and typed by pydantic from its annotations.

Defaults, choices and bounds stand in that dataclass once; presets (``configs/method/*.yaml``) hold what differs from
them, and :func:`filled` adds the rest, so that every field can be overridden and is shown.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import pydantic
from pydantic import AfterValidator, BeforeValidator, TypeAdapter, create_model

from alp.configuration.fields import Name, Strict
from alp.policy.method import Correction, Method, Perturbation
from alp.policy.settings import type_hints

__all__ = ["Correction", "Method", "MethodField", "Perturbation", "filled"]


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _dataclass_in(annotation: Any) -> type[Any] | None:
    """The dataclass that an annotation mentions: ``X``, ``X | None`` or ``list[X]``."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if is_dataclass(kind)]
    return kinds[0] if kinds else None  # type: ignore[return-value]


def _closed(annotation: Any, bounds: Any) -> Any:
    """The annotation with pydantic's forms of the dataclasses and bounds in it."""
    if is_dataclass(annotation):
        return schema_of(annotation)  # type: ignore[arg-type]
    if annotation is float:
        return Annotated[float, pydantic.Field(allow_inf_nan=False, **bounds)]
    if get_origin(annotation) is UnionType:
        closed = [_closed(part, bounds) for part in get_args(annotation)]
        union = closed[0]
        for part in closed[1:]:
            union = union | part
        return union
    if get_origin(annotation) in (list, dict):
        return get_origin(annotation)[tuple(_closed(part, bounds) for part in get_args(annotation))]
    return annotation


def schema_of(kind: type[Any]) -> Any:
    """A strict pydantic type that takes a mapping, or the dataclass ``kind`` itself, and gives the dataclass."""
    hints = type_hints(kind) | ({"name": Name} if kind is Method else {})
    members = {
        setting.name: (_closed(hints[setting.name], setting.metadata), pydantic.Field(default_factory=_maker(setting)))
        for setting in fields(kind)
    }
    model = create_model(kind.__name__, __base__=Strict, **members)  # type: ignore[call-overload]
    return Annotated[model, AfterValidator(lambda closed: kind(**dict(closed)))]


def _maker(setting: Field[Any]) -> Any:
    return lambda: _default(setting)


_CLOSED: TypeAdapter[Method] = TypeAdapter(schema_of(Method))


def _method(value: Any) -> Method:
    return value if isinstance(value, Method) else _CLOSED.validate_python(value)


MethodField = Annotated[Method, BeforeValidator(_method)]


def filled(preset: dict[str, Any], kind: type[Any] = Method) -> dict[str, Any]:
    """A preset with the default of every field that it does not name; unknown keys stay, for validation to refuse."""
    complete: dict[str, Any] = {}
    for setting in fields(kind):
        value = preset.get(setting.name, _default(setting))
        inner = _dataclass_in(type_hints(kind)[setting.name])
        if inner is not None and isinstance(value, dict):
            value = filled(value, inner)
        elif inner is not None and isinstance(value, list):
            value = [filled(entry, inner) if isinstance(entry, dict) else entry for entry in value]
        complete[setting.name] = value
    return complete | {key: value for key, value in preset.items() if key not in complete}
