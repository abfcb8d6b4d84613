"""What comes from elsewhere (models, dumps, data, YAML, manifests) is read under one guard: bad content is one line, not a traceback.

The guard stands around reading and checking alone. What is computed with the content afterwards stays outside: a fault of our own must
not pass for a bad file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alp.errors import GraderError, Interrupted, UserError

_OURS = (UserError, GraderError, Interrupted, KeyboardInterrupt, SystemExit, GeneratorExit)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # troubles of this machine, which the command line reports in its own words
_LONGEST = 300  # characters of a library's message


@contextmanager
def reading(key: str, place: str | Path) -> Iterator[None]:
    """``with reading("model.path", folder): …``: whatever the content makes of its readers becomes ``key: place cannot be read: why``.

    Raises UserError from the cause (``ALP_TRACEBACK=1`` shows it whole). What is a UserError already, an interrupt and a full disk pass.
    """
    try:
        yield
    except _OURS:
        raise
    except OSError as error:
        if error.errno in _DISK:
            raise
        raise UserError(f"{key}: {place} cannot be read: {reason(error)}") from error
    except Exception as error:
        raise UserError(f"{key}: {place} cannot be read: {reason(error)}") from error
    except BaseException as error:  # what a library in Rust makes of a file it did not expect
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{key}: {place} cannot be read: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """One line of what a library says, with the kind of its error."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(text.split())
    shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def read_text(key: str, path: Path) -> str:
    """A text file as UTF-8, whatever the locale; a byte order mark is no part of it. Raises UserError."""
    with reading(key, path):
        return path.read_text(encoding="utf-8-sig")
