"""Which folders a program may make its own at all. Nothing here writes."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

from alp.errors import UserError
from alp.foreign import is_folder

_SOURCE = Path(__file__).resolve().parent.parent
_BELOW = 256  # bytes of a path that a folder's own files may take
_CHECKOUTS = (".git", ".hg", ".svn", ".jj", ".bzr")


def nearest_folder(path: Path) -> Path:
    """The folder itself or the nearest above it that exists."""
    return next(above for above in (path.absolute(), *path.absolute().parents) if is_folder(above))


def check_place(text: str | Path, key: str) -> Path:
    """The folder that ``key`` names. Raises UserError for one that is somebody's whatever it holds, and for what can be
    no folder.

    Refused by name: nothing at all, the working folder, a home, a root, a checkout, the source of this package, and
    every folder above one of these but for a checkout.
    """
    written = str(text)
    if not written.strip():
        raise UserError(
            f"{key}: empty (a shell variable that is not set?); name a folder of its own: {key}=results/<name>"
        )
    if written.startswith("~"):
        raise UserError(f"{key}: '{written}': write the home folder out, nobody expands ~ inside an override")
    try:
        real = Path(written).resolve()
        _check_exists_or_can(real)
        kind = _taken(real)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{key}: '{written[:200]}' can be no folder: {why}") from None
    if kind:
        raise UserError(
            f"{key}: '{written}' is {kind}: alp never takes it for its own; name a folder of its own:"
            f" {key}=results/<name>"
        )
    return Path(written)


def _check_exists_or_can(real: Path) -> None:
    """Raise OSError unless the path is a folder or could become one."""
    longest = max(len(os.fsencode(part)) for part in real.parts)
    if longest > os.pathconf("/", "PC_NAME_MAX") or len(os.fsencode(real)) + _BELOW > os.pathconf("/", "PC_PATH_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    for path in (real, *real.parents):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file, not a folder")
        return


def _taken(real: Path) -> str | None:
    """What the folder is, where it is no place for results."""
    if real == real.parent:
        return "the root of the file system"
    here = Path.cwd()
    if real == here:
        return "the working folder"
    if real in here.parents:
        return "above the working folder"
    homes = _homes()
    if real in homes:
        return "a home folder"
    if any(real in home.parents for home in homes):
        return "above a home folder"
    if real == _SOURCE or real in _SOURCE.parents:
        return "the folder of alp's own source, or above it"
    held = next((name for name in _CHECKOUTS if os.path.lexists(real / name)), None)
    return f"a checkout (it holds {held})" if held else None


def _homes() -> set[Path]:
    """Home folders of everybody on this machine that exist."""
    known = [os.path.expanduser("~"), *(entry.pw_dir for entry in pwd.getpwall())]
    return {Path(home).resolve() for home in known if home.startswith("/") and home != "/" and os.path.isdir(home)}
