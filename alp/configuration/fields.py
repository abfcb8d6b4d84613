"""What every configuration model shares."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LONGEST = 100  # characters; names of two parts (method-variant) and an ending must fit into a file's name of 255 bytes
NAME_RULE = f"letters, digits, _ . and -, the first a letter or a digit, at most {_LONGEST} of them"


def is_name(text: str) -> bool:
    """Whether ``text`` can be part of a path and leads nowhere else. Whole: a line break at the end is no part of a
    name."""
    return len(text) <= _LONGEST and _NAME.fullmatch(text) is not None


def _check(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"is no name ({NAME_RULE})")
    return text


Name = Annotated[str, AfterValidator(_check)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors, and a loaded configuration cannot be changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    defaults_for_files: ClassVar[bool] = False  # whether a YAML file may leave out the fields that have a default

    @classmethod
    def filled(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """A composed configuration with the defaults that its files leave to the schema."""
        for name, member in cls.model_fields.items():
            kind, given = member.annotation, plain.get(name)
            if (
                isinstance(kind, type)
                and issubclass(kind, Strict)
                and kind.defaults_for_files
                and isinstance(given, dict)
            ):
                left = {key: part.default for key, part in kind.model_fields.items() if not part.is_required()}
                plain = plain | {name: given | {key: value for key, value in left.items() if key not in given}}
        return plain
