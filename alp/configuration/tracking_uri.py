"""Which file a sqlite URI of MLflow means. Standard library only."""

from __future__ import annotations

from pathlib import Path

from alp.errors import UserError

NAME = "mlflow.db"  # the database that all grids of a results root share
SQLITE = "sqlite:///"


def located(uri: str) -> Path | None:
    """The file behind a sqlite URI, None behind another. A relative one means the working directory of this moment.

    Raises UserError for what SQLAlchemy would read as the name of another file, or of none.
    """
    if not uri.startswith("sqlite:"):
        return None
    name = uri.removeprefix(SQLITE)
    if not uri.startswith(SQLITE) or name in ("", ":memory:") or name.endswith("/"):
        raise UserError(
            f"run.tracking: '{uri}' names no file; write sqlite:///<path>, such as sqlite:///results/{NAME}"
        )
    if "?" in name or name.startswith("file:"):
        what = "a path with '?'" if "?" in name else "a path that begins with 'file:'"
        raise UserError(f"run.tracking: '{uri}': {what} would be read as another database; choose a folder without it")
    return Path(name).absolute()
