"""Equal jobs under one results root are computed once: the index of finished ones by identity, a lock for each
identity, and the copying of what another one made.

``<results>/.alp/shared/<identity>.json`` names the folders (relative to the results root) whose job of that identity
finished; it is a hint, and what counts is the mark there (alp/ownership.py) with its ledger: the SHA-256 of every file.
Files are copied, never linked: alp replaces files whole, but an editor may write into one, and an edit in one place
must not change another. The disk holds no more than without sharing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from alp.errors import Interrupted
from alp.marks import MARKS, read_mark
from alp.reproducibility import write_bytes, write_file, write_json

logger = logging.getLogger(__name__)
INDEX = Path(MARKS) / "shared"
_PIECE = 2**20  # bytes read at a time
_LOOK_SECONDS = 1.0  # between two looks at whether the job that waits was asked to stop

Rewrite = Callable[[bytes], bytes]  # the file there -> the same file here


class TakenOver(Exception):
    """The results of an equal job stand in the folder now: nothing is left to compute."""


class DamagedError(Exception):
    """A file is not the one that the finished job recorded."""


def _asked_by_nobody() -> str | None:
    return None


@dataclass
class Twins:
    """The finished jobs that are equal to one of this results root, and the lock that has each identity computed once.

    ``rewrites`` are the files that name the folder or the arm, and what makes them right for this one. ``stop_signal``
    is asked while the job waits for another: the name of a signal ends the wait.
    """

    results: Path
    rewrites: Mapping[str, Rewrite] = field(default_factory=dict)
    stop_signal: Callable[[], str | None] = _asked_by_nobody
    _lock: BaseFileLock | None = None

    def hold(self, identity: str) -> None:
        """Wait until no other job computes this identity, and keep others waiting until :meth:`release`.

        Raises Interrupted when a signal asked this job to stop meanwhile. Where the results root has no room for a
        lock, nobody waits.
        """
        if self._lock is not None:
            return
        path = self._path(identity, ".lock")
        lock = FileLock(path, mode=0o644)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._wait(lock, identity)
        except OSError as error:
            logger.warning("%s: equal jobs are not shared: %s", path, error.strerror)
            return
        self._lock = lock

    def _wait(self, lock: BaseFileLock, identity: str) -> None:
        seconds = 0.0
        while True:
            try:
                lock.acquire(timeout=seconds)
                return
            except Timeout:
                if not seconds:
                    logger.info("an equal job is running (identity %s…): waiting for its results", identity[:8])
            if (name := self.stop_signal()) is not None:
                raise Interrupted(f"stopped by {name} while it waited for an equal job; nothing was begun")
            seconds = _LOOK_SECONDS

    def release(self) -> None:
        """Let the next job of this identity go on."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def folders(self, identity: str, job: str) -> Iterator[Path]:
        """Where a job of this identity is said to have finished; whoever reads there checks."""
        try:
            entries = json.loads(self._path(identity, ".json").read_text(encoding="utf-8"))["finished"]
            names = [entry["folder"] for entry in entries if entry["job"] == job]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return
        for name in names:
            if isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts:
                yield self.results / name

    def record(self, identity: str, job: str, folder: Path) -> None:
        """Note that ``folder`` holds finished results; without room for the note they are only not shared."""
        here = folder.absolute().relative_to(self.results.absolute()).as_posix()
        known = [path.relative_to(self.results).as_posix() for path in self.folders(identity, job) if path.is_dir()]
        entries = [{"folder": name, "job": job} for name in sorted({*known, here})]
        try:
            write_json(self._path(identity, ".json"), {"finished": entries})
        except OSError as error:
            logger.warning("%s: equal jobs are not shared: %s", self.results / INDEX, error.strerror)

    def _path(self, identity: str, ending: str) -> Path:
        return self.results / INDEX / f"{identity}{ending}"


def twins_of(
    folder: str | Path,
    grid: str | None,
    *,
    share: bool,
    rewrites: Mapping[str, Rewrite] | None = None,
    stop_signal: Callable[[], str | None] = _asked_by_nobody,
) -> Twins | None:
    """The equal jobs of one that writes into ``folder``; None for a job of no grid, or one that shares nothing.

    The results root is what holds the folder of the grid, which carries the grid's mark.
    """
    if not share or grid is None:
        return None
    for above in Path(folder).parents:
        if above.name == grid and read_mark(above, "grid") is not None:
            return Twins(above.parent, rewrites or {}, stop_signal)
    return None


def copy_files(source: Path, target: Path, ledger: Mapping[str, str], rewrites: Mapping[str, Rewrite]) -> None:
    """Copy every file of a ledger (name: SHA-256) from one folder to another, each whole and checked, or not at all.

    Weights go last: a folder that has them has everything. Raises DamagedError and OSError.
    """
    for name in sorted(ledger, key=lambda name: (name.endswith(".safetensors"), name)):
        if name in rewrites:
            content = b"".join(_checked(source / name, ledger[name]))
            write_bytes(target / name, rewrites[name](content))
        else:
            write_file(target / name, _checked(source / name, ledger[name]))


def _checked(path: Path, expected: str) -> Iterator[bytes]:
    """The file in pieces. Raises DamagedError, before it counts as written, unless its hash is ``expected``."""
    if path.is_symlink() or not path.is_file():
        raise DamagedError(f"{path} is missing")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            yield piece
    if digest.hexdigest() != expected:
        raise DamagedError(f"{path} has changed since it was made")
