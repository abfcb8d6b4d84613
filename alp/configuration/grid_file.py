"""What a grid file says, whole: found by name or path, with what it extends, and held to its schema. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from alp.configuration import compose
from alp.configuration.fields import NAME_RULE, is_name
from alp.errors import UserError, nearest
from alp.foreign import is_file, read_json, read_yaml, reading, shortened

SCHEMA = Path(__file__).resolve().parents[2] / "workflow" / "schemas" / "grid.schema.json"
_SHOWN = 200  # characters of a user's text in a message


def names() -> list[str]:
    """Grids that come with the package."""
    return compose.choices("grid")


def read(path: Path) -> dict[str, Any]:
    """The checked content of a grid file. Raises UserError."""
    plain = _whole(path)
    with reading("grid", path):
        _check_schema(path, plain)
    return dict(plain)


def located(name: str) -> Path:
    """The file of a grid by its name or path. Raises UserError."""
    if name.endswith((".yaml", ".yml")):
        path, missing = Path(name), f"no grid file at {shortened(name)}"
    else:
        path, missing = (
            compose.CONFIGS / "grid" / f"{name}.yaml",
            f"unknown grid '{shortened(name)}'{nearest(name[:_SHOWN], names())}",
        )
        if not is_name(name):
            raise UserError(missing)
    if not is_file(path):
        raise UserError(missing)
    if not is_name(path.stem):
        raise UserError(
            f"grid: {shortened(name)}: a grid is called as its file, and '{shortened(path.stem)}' is no name"
            f" ({NAME_RULE})"
        )
    return path


def _whole(path: Path, extended: tuple[Path, ...] = ()) -> Any:
    """What a grid file says, and of the grid that it extends every field that it does not say itself.

    ``extends`` is a grid that comes with the package, or a path beside this file. Raises UserError.
    """
    plain = read_yaml("grid", path)
    if not isinstance(plain, dict) or "extends" not in plain:
        return plain
    own = dict(plain)
    name = own.pop("extends")
    if not isinstance(name, str):
        raise UserError(f"{path.name}: extends: {shortened(repr(name))} is no name of a grid")
    try:
        other = located(str(path.parent / name) if name.endswith((".yaml", ".yml")) else name)
    except UserError as error:
        raise UserError(f"{path.name}: extends: {error}") from None
    if other.resolve() in (seen := (*extended, path.resolve())):
        raise UserError(f"{path.name}: extends: {shortened(name)} extends this grid itself")
    whole = _whole(other, seen)
    return {**whole, **own} if isinstance(whole, dict) else whole


def _check_schema(path: Path, plain: Any) -> None:
    schema = read_json("grid", SCHEMA)
    errors = sorted(Draft202012Validator(schema).iter_errors(plain), key=lambda error: list(map(str, error.path)))
    if not errors:
        return
    error = errors[0]
    field = ".".join(str(part) for part in error.path) or "top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        allowed = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in allowed)
        raise UserError(
            f"{path.name}: unknown field '{shortened(str(unknown))}' at"
            f" {field}{nearest(str(unknown)[:_SHOWN], allowed)}"
        )
    group = str(error.path[-1]) if error.path else ""
    if group in ("task", "model", "method", "variant") and isinstance(error.instance, str):
        hint = nearest(error.instance.strip()[:_SHOWN], compose.choices(group))
        raise UserError(
            f"{path.name}: {field}: {shortened(repr(error.instance))} is no name of a {group} ({NAME_RULE}){hint}"
        )
    raise UserError(f"{path.name}: {shortened(field)}: {shortened(error.message)}")
