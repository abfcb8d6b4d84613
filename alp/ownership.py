"""Whose a folder is: the mark that says so, one job at a time, temporary files of its own, and the end of earlier
results.

Every verb that writes holds a :class:`Claim`. ``<folder>/.alp/<job>/`` keeps ``mark.json`` (what the job is, whether it
is finished, and every file it made), ``lock``, ``holder.json`` (who has it) and ``tmp/`` (files that are not whole
yet). Only what a mark lists is ever removed or replaced, and a folder that holds anything else without a mark is
refused. No clock and no host stand in a mark.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from alp import __version__
from alp.errors import UserError
from alp.marks import FORMAT, MARKS, difference, foreign, holds_files, ledger, marks, named, read_mark, remove_made
from alp.places import check_place, nearest_folder
from alp.reproducibility import HOMES, sha256_file, sync_folder
from alp.sharing import DamagedError, TakenOver, Twins, copy_files

logger = logging.getLogger(__name__)
_ORPHAN_SECONDS = 120.0  # for the job of a killed workflow to reach its next update and stop
_KEEP = "to keep what is there move it, or build elsewhere"


def check(folder: str | Path, key: str, *, beside: bool = False) -> Path:
    """Refuse, before anything is computed, a folder that is not ours and cannot become ours. Writes nothing. Raises
    UserError.

    ``beside``: what is written goes to places of its own there, and the rest may be anybody's.
    """
    root = check_place(folder, key)
    try:
        unmarked = foreign(root) if root.is_dir() and not beside else None
        if unmarked is None:
            standing = nearest_folder(root)
            read_only = os.statvfs(standing).f_flag & os.ST_RDONLY
            if read_only or not os.access(standing, os.W_OK | os.X_OK):
                why = os.strerror(errno.EROFS if read_only else errno.EACCES)
                raise UserError(f"{key}: nothing can be written in {standing}: {why}")
    except OSError as error:
        raise UserError(f"{key}: {root}: {error.strerror}") from None
    if unmarked is not None:
        damaged = next((root / MARKS).glob("*/mark.json"), None) if (root / MARKS).is_dir() else None
        why = f"its mark {damaged} cannot be read" if damaged else "no mark says that this version of alp made it"
        raise UserError(f"{key}: {root} holds {unmarked.relative_to(root)}, and {why}: {_KEEP}: {_elsewhere(key)}")
    return root


def _elsewhere(key: str) -> str:
    return f"{key.split(': ')[-1]}=<another folder>"


def check_finished(folder: Path, key: str) -> None:
    """Refuse files of a job that was stopped in the middle of writing them. Raises UserError."""
    for job, mark in marks(folder.parent).items():
        if mark["state"] != "finished" and any(name.startswith(f"{folder.name}/") for name in mark["made"]):
            raise UserError(f"{key}: {folder} belongs to {named(job)} that has not finished; run that again first")


class Claim:
    """One job's hold on its outputs in a folder: entered, it is locked; ``begin(origin)`` makes the outputs its own;
    ``finish()`` ends it.

    ``origin`` has ``identity`` (a hash of what the results follow from) and parts of it that :func:`difference` puts in
    words. ``outputs`` are what the job makes, relative: a file, ``folder/*`` for files in a folder that may hold
    others, ``folder/`` for one that is the job's as a whole; other jobs may have theirs beside them, and with
    ``beside`` anybody. ``dependents`` begins the names of the jobs whose results follow from this one's: they go when
    this job is replaced. With ``twins`` the results of an equal job that finished elsewhere are copied instead of
    computed; ``taken_over`` says so. Raises UserError for everything that is refused.
    """

    def __init__(
        self,
        folder: str | Path,
        job: str,
        *,
        outputs: Iterable[str],
        key: str = "run.dir",
        replace: bool = False,
        dependents: str | None = None,
        beside: bool = False,
        twins: Twins | None = None,
    ) -> None:
        self.root = check(folder, key, beside=beside)
        self.job, self._outputs, self._key, self._replace, self._dependents = (
            job,
            tuple(outputs),
            key,
            replace,
            dependents,
        )
        self._home = self.root / MARKS / job
        self.scratch = self._home / "tmp"
        self._lock = FileLock(self._home / "lock", mode=0o644)
        self._mark: dict[str, Any] | None = None
        self._twins, self.taken_over = twins, False
        self._new: list[Path] = []  # folders that entering made
        self._first = False  # whether this is the first of such jobs here

    def __enter__(self) -> Claim:
        patience = (
            _ORPHAN_SECONDS if "ALP_PARENT" in os.environ else 0.0
        )  # in a workflow another holder can only be an orphan
        try:
            self._new = [folder for folder in (self._home, *self._home.parents) if not folder.exists()]
            self._home.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience)
        except Timeout:
            raise UserError(
                f"{self._key}: another job is running in {self.root}: {self._holder()}; wait for it, or {self._another}"
            ) from None
        except OSError as error:
            raise UserError(f"{self._key}: nothing can be written in {self.root}: {error.strerror}") from None
        try:
            self._write("holder.json", {"job": self.job, "process": os.getpid(), "host": socket.gethostname()})
            if read_mark(self.root, self.job) is not None:
                shutil.rmtree(
                    self.scratch, ignore_errors=True
                )  # of a job that was killed; nobody else may write here now
        except BaseException:
            self._lock.release()
            raise
        return self

    def compare(self, origin: dict[str, Any]) -> None:
        """Refuse already what :meth:`begin` would refuse: another job's results, without ``replace``; files that are
        not this job's."""
        earlier = read_mark(self.root, self.job)
        if earlier is not None and earlier["identity"] != origin["identity"] and not self._replace:
            replaced = "run.replace=true" if self._key == "run.dir" else "replace=true"
            raise UserError(
                f"{self._key}: {self.root} holds {named(self.job)} of another identity"
                f" ({difference(earlier['origin'], origin)}); {self._another}, or say {replaced} to have it replaced"
            )
        for job, mark in marks(self.root).items():
            taken = next((name for name in mark["made"] if job != self.job and self._covers(name)), None)
            if taken is not None:
                raise UserError(f"{self._key}: {self.root} holds {taken} of {named(job)}; {self._another}")
        self._check_free(set(earlier["made"]) if earlier else set(), begun=earlier is not None)

    def _check_free(self, made: set[str], *, begun: bool) -> None:
        """Refuse what stands in the place of an output and is not in ``made``; once ``begun``, ``folder/*`` may hold
        others' files."""
        for name in self._outputs:
            path = self.root / name.removesuffix("*")
            if path.is_symlink():
                blocked = True
            elif name.endswith("*"):
                blocked = (path.exists() and not path.is_dir()) or (not begun and path.is_dir() and any(path.iterdir()))
            elif name.endswith("/"):
                blocked = (path.exists() and not path.is_dir()) or (
                    name not in made and path.is_dir() and any(path.iterdir())
                )
            else:
                blocked = path.is_dir() or (path.exists() and name not in made)
            if blocked:
                raise UserError(f"{self._key}: {path} is in the way: alp did not make it; {self._another}")

    def accept(self, origin: dict[str, Any]) -> None:
        """Before anything heavy is loaded: refuse what :meth:`begin` would refuse, and end the work where it has
        nothing to do.

        Raises UserError; TakenOver where an equal job's results stand here now.
        """
        self.compare(origin)
        if self._take_over(origin):
            raise TakenOver

    def begin(self, origin: dict[str, Any]) -> bool:
        """Make the outputs this job's own: an earlier job's are removed where they are of another identity. From here
        on files may be written, unless it returns True: then an equal job's results stand here, and all is done."""
        self.compare(origin)
        if not self._take_over(origin):
            self._mark_begun(origin)
        return self.taken_over

    def _take_over(self, origin: dict[str, Any]) -> bool:
        """Copy what an equal job made elsewhere; what a job has begun here goes on here."""
        if self._twins is None or self.taken_over or self._mark is not None:
            return self.taken_over
        self._twins.hold(origin["identity"])
        if any(name.endswith("/") and holds_files(self.root / name) for name in self._outputs):
            return False
        for folder in self._twins.folders(origin["identity"], self.job):
            mark = read_mark(folder, self.job) if folder.absolute() != self.root.absolute() else None
            if mark is None or mark["identity"] != origin["identity"] or mark["state"] != "finished":
                continue
            if (hashes := ledger(mark)) is None:
                continue
            self._mark_begun(origin)
            try:
                copy_files(folder, self.root, hashes, self._twins.rewrites)
            except (DamagedError, FileNotFoundError, PermissionError) as error:
                logger.warning("an equal job's results cannot be taken over: %s", error)
                continue
            self.finish()
            self.taken_over = True
            logger.info("%s: taken over from %s, where an equal job finished", self.root, folder)
            return True
        return False

    def _mark_begun(self, origin: dict[str, Any]) -> None:
        if self._mark is not None:
            return
        earlier = read_mark(self.root, self.job)
        made = earlier["made"] if earlier else []
        self._first = earlier is None
        if earlier is not None and earlier["identity"] != origin["identity"]:
            # By its old identity until all of it is gone: whoever is killed here begins the removal again.
            self._write("mark.json", earlier | {"state": "being replaced"})
            self._end_dependents()
            made = self._remove(made)
        self._mark = {
            "made_by": "alp",
            "format": FORMAT,
            "version": __version__,
            "job": self.job,
            "identity": origin["identity"],
            "origin": origin,
            "state": "in progress",
            "made": sorted({*made, *(name for name in self._outputs if name.endswith("/"))}),
        }
        self._write("mark.json", self._mark)
        self.scratch.mkdir(exist_ok=True)
        HOMES.append(self)

    def note(self, path: Path) -> None:
        """``path`` is about to be made. Raises UserError where something stands there that this job did not make."""
        assert self._mark is not None
        made: list[str] = self._mark["made"]
        name = path.absolute().relative_to(self.root.absolute()).as_posix()
        if name in made or any(tree.endswith("/") and name.startswith(tree) for tree in made):
            return
        if os.path.lexists(path):
            raise UserError(f"{self._key}: {path} is in the way: alp did not make it; move it")
        self._mark["made"] = sorted({*made, name})
        self._write("mark.json", self._mark)  # before the file itself: what is made is always listed

    def forget(self, path: Path) -> None:
        """Remove a file that this job made earlier and makes no more."""
        assert self._mark is not None
        name = path.absolute().relative_to(self.root.absolute()).as_posix()
        if name in self._mark["made"]:
            remove_made(self.root, name)
            self._mark["made"] = [other for other in self._mark["made"] if other != name]
            self._write("mark.json", self._mark)

    def finish(self) -> None:
        """Every output is whole."""
        assert self._mark is not None
        self._mark |= {"state": "finished"}
        files = self._hashes() if self._twins is not None else None
        self._write("mark.json", self._mark | ({} if files is None else {"files": files}))
        if self._twins is not None and files is not None:
            self._twins.record(self._mark["identity"], self.job, self.root)

    def _hashes(self) -> dict[str, str] | None:
        """SHA-256 of every file that was made; None where a folder holds more than the mark lists."""
        made = self._mark_made()
        if any(name.endswith("/") and holds_files(self.root / name) for name in made):
            return None
        return {name: sha256_file(self.root / name) for name in made if (self.root / name).is_file()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._twins is not None:
            self._twins.release()
        if self._mark is not None:
            HOMES.remove(self)
            shutil.rmtree(self.scratch, ignore_errors=True)
        with suppress(OSError):  # of a disk that became read-only
            (self._home / "holder.json").unlink(missing_ok=True)
            if (
                kind is not None
                and self._first
                and not any(os.path.lexists(self.root / name) for name in self._mark_made())
            ):
                (self._home / "mark.json").unlink()  # it failed before its first file
                self._mark = None
            if self._mark is None and read_mark(self.root, self.job) is None:  # refused: no trace of it stays
                (self._home / "lock").unlink(missing_ok=True)
                for folder in self._new:
                    folder.rmdir()
        self._lock.release()

    def _mark_made(self) -> list[str]:
        return self._mark["made"] if self._mark else []

    def _covers(self, name: str) -> bool:
        folders = [output.removesuffix("*") for output in self._outputs if output.endswith(("/", "*"))]
        return name in self._outputs or any(name.startswith(folder) for folder in folders)

    def _remove(self, made: list[str]) -> list[str]:
        """Remove what an earlier job made; returns what stays: checkpoints, which are told apart by an identity of
        their own."""
        for name in made:
            if name != "checkpoints/":
                remove_made(self.root, name)
        return [name for name in made if name == "checkpoints/"]

    def _end_dependents(self) -> None:
        for job in marks(self.root):
            if self._dependents is None or not job.startswith(self._dependents):
                continue
            with Claim(self.root, job, outputs=(), key=self._key) as other:
                other._remove(marks(self.root)[job]["made"])
                (other._home / "mark.json").unlink()

    def _holder(self) -> str:
        try:
            who = json.loads((self._home / "holder.json").read_text(encoding="utf-8"))
            return f"alp {who['job']}, process {who['process']} on {who['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return f"alp {self.job}, of which nothing more is known"

    @property
    def _another(self) -> str:
        return f"name another: {_elsewhere(self._key)}"

    def _write(self, name: str, value: dict[str, Any]) -> None:
        partial = self._home / "mark.json.new"
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(value, sort_keys=True, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, self._home / name)
        sync_folder(self._home)


@contextmanager
def claimed(folder: str | Path, job: str, origin: dict[str, Any], **options: Any) -> Iterator[Claim]:
    """A claim for work that knows from the start what it is: begun at once, finished at the end."""
    with Claim(folder, job, **options) as claim:
        claim.begin(origin)
        yield claim
        if not claim.taken_over:
            claim.finish()
