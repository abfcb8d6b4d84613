"""The sqlite file behind MLflow: made beside and renamed, checked before every use, set aside when broken, moved along
with its folder.

A file is never deleted, and never touched unless it is MLflow's: it has MLflow's tables, is called ``mlflow.db``, or
has the lock beside it that an earlier call left. What the disk, a lock or another user's rights refuse is raised: the
file may be all right.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from alp.configuration.tracking_uri import NAME, SQLITE, located
from alp.errors import UserError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

LOG = logging.getLogger("alp.reporting.tracking")
LOCK_SECONDS = (
    120.0  # wait for the calls of other jobs; the first one makes the database: 5 s, on a loaded machine a minute
)
BUSY_SECONDS = 10.0  # wait for other writers of the database, such as the UI
ARTIFACTS = "mlartifacts"  # the folder beside the database
_BESIDE = ("", "-journal", "-wal", "-shm")  # the file, and what sqlite keeps with it
SETTLE_SECONDS = 1.0  # a file of no known state that changes within that time is being made by another program
# Trouble of the moment or of this user, no fault of the file.
_MOMENT = tuple(
    f"SQLITE_{name}" for name in ("BUSY", "LOCKED", "FULL", "READONLY", "IOERR", "CANTOPEN", "PERM", "AUTH", "NOMEM")
)
_whole: set[tuple[int, int, int]] = set()  # device, inode, process: read from end to end once


class Broken(Exception):
    """Says why a database cannot be used, now or later."""


def address(database: Path) -> str:
    """Its URI, absolute: MLflow keeps its stores by URI."""
    return f"{SQLITE}{database}"


@contextmanager
def exclusive(uri: str) -> Iterator[Path | None]:
    """One call at a time per sqlite database, which is whole and writable inside; None and no wait for another kind of
    URI.

    Raises UserError for a file that is not MLflow's, TimeoutError for a lock that is held, OSError and sqlite3.Error.
    """
    database = located(uri)
    if database is None:
        yield None
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    guard = Path(f"{database}.lock")
    known = guard.exists()
    try:
        with FileLock(guard, timeout=LOCK_SECONDS, poll_interval=0.05):
            _prepare(Path(os.path.realpath(database)), known or database.name == NAME)
            with _connection(database) as connection:  # checked here, as MLflow would retry for minutes
                connection.execute("BEGIN IMMEDIATE")
                _relocate(connection, database.parent / ARTIFACTS)
                connection.execute("COMMIT")
            yield database
    except Timeout:
        raise TimeoutError(f"another process holds {guard}") from None


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        yield connection


def _prepare(path: Path, ours: bool) -> None:
    """Have a whole database of the installed MLflow at ``path``: the one that is there, brought up to date, or a new
    one."""
    for left in path.parent.glob(f".{_escaped(path.name)}.*.new*"):  # of a call that was killed: the lock is ours
        left.unlink(missing_ok=True)
    if not path.exists():
        _make(path)
        return
    try:
        revision = _settled(path, ours)
        if revision == _head():
            return
        replacement = _migrated(path, revision)
    except Broken as error:
        kept = _set_aside(path, "broken")
        LOG.warning("MLflow's database %s is broken (%s): it is kept as %s, a new one is made", path, error, kept.name)
        _make(path)
        return
    kept = _set_aside(path, "old")
    LOG.warning(
        "MLflow's database %s was of an older MLflow: a migrated copy takes its place, it is kept as %s",
        path,
        kept.name,
    )
    _rename(replacement, path)


def _settled(path: Path, ours: bool) -> str:
    """:func:`_revision` once it is the newest or the file has come to rest: the UI may be making it. Raises what that
    raises."""
    while True:
        before = path.stat()
        try:
            revision, broken = _revision(path, ours), None
        except Broken as error:
            revision, broken = "", error
        if revision != _head():
            time.sleep(SETTLE_SECONDS)
            after = path.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                continue
        if broken is not None:
            raise broken
        return revision


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _revision(path: Path, ours: bool) -> str:
    """The revision of a sound database. Raises Broken, UserError for one that is not MLflow's, sqlite3.Error when it
    cannot tell."""
    try:
        with _connection(path) as connection:
            query = (
                "SELECT t.name, c.name FROM sqlite_master t JOIN pragma_table_xinfo(t.name) c WHERE t.type = 'table'"
            )
            columns = {(table, column) for table, column in connection.execute(query)}  # generated ones too: xinfo
            tables = {table for table, _ in columns}
            mlflow = tables & ({table for table, _ in _columns()} | {"alembic_version"})
            if not mlflow and (tables or not ours):
                raise UserError(
                    f"run.tracking: {path} is not a database of MLflow; it is left as it is, name another file"
                )
            if not mlflow:
                raise Broken("it is empty")
            _read_through(path, connection)
            query = "SELECT version_num FROM alembic_version" if "alembic_version" in mlflow else "SELECT 1 WHERE 0"
            versions = [row[0] for row in connection.execute(query)]
    except sqlite3.DatabaseError as error:
        if _of_the_moment(error):
            raise
        if not ours:
            raise UserError(
                f"run.tracking: {path} is not a database of MLflow ({error}); it is left as it is, name another file"
            ) from None
        raise Broken(str(error)) from None
    if len(versions) != 1:
        raise Broken("its making was interrupted: it names no version")
    if versions[0] not in _revisions():
        raise RuntimeError(
            f"{path} is of another MLflow than the one installed (revision {versions[0]}); it is left as it is"
        )
    if versions[0] == _head() and (missing := _columns() - columns):
        raise Broken(f"{'.'.join(min(missing))} is missing in its tables")
    return str(versions[0])


def _of_the_moment(error: BaseException) -> bool:
    return isinstance(error, OSError) or (getattr(error, "sqlite_errorname", None) or "").startswith(_MOMENT)


def _read_through(path: Path, connection: sqlite3.Connection) -> None:
    """Sqlite's own check of every page, once for each file and process. Raises Broken."""
    status = path.stat()
    seen = (status.st_dev, status.st_ino, os.getpid())
    if seen not in _whole:
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise Broken(" ".join(str(answer).split()))
        _whole.add(seen)


def _make(path: Path) -> None:
    """A new database, complete before it has its name. What cannot be finished leaves nothing."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with _cleared(new):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(address(new), (path.parent / ARTIFACTS).as_uri()).engine.dispose()
        _rename(new, path)


def _migrated(path: Path, revision: str) -> Path:
    """A copy brought to the installed MLflow's revision. Raises Broken when that does not work: it was interrupted in
    the middle."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with _cleared(new, keep=True):
        with _connection(path) as source, _connection(new) as target:
            source.backup(target)
        from mlflow.store.db import utils

        engine = utils.create_sqlalchemy_engine(address(new))
        try:
            utils._upgrade_db(engine)  # what `mlflow db upgrade` runs
        except Exception as error:
            cause = getattr(error, "orig", None) or error
            if _of_the_moment(cause):
                raise
            raise Broken(
                f"its making was interrupted at revision {revision}: {' '.join(str(cause).split())[:200]}"
            ) from error
        finally:
            engine.dispose()
        if _revision(new, ours=True) != _head():
            raise Broken(f"its making was interrupted at revision {revision}")
    return new


@contextmanager
def _cleared(new: Path, keep: bool = False) -> Iterator[None]:
    """Leave nothing of an unfinished file, nor, without ``keep``, of a finished one."""
    try:
        yield
    except BaseException:
        keep = False
        raise
    finally:
        for ending in _BESIDE if not keep else ():
            Path(f"{new}{ending}").unlink(missing_ok=True)


def _rename(new: Path, path: Path) -> None:
    """Give a finished file its name, unless something else has taken that in the meantime."""
    with open(new, "rb") as stream:
        os.fsync(stream.fileno())
    try:
        os.link(new, path)  # fails where a rename would replace
        new.unlink()
    except FileExistsError:
        new.unlink()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        os.rename(new, path)  # a file system without links


def _set_aside(path: Path, word: str) -> Path:
    """Rename the database, and what sqlite keeps with it, to the first free number; returns the new name."""
    for number in itertools.count(1):
        kept = path.with_name(f"{path.name}.{word}-{number}")
        if not any(os.path.lexists(f"{kept}{ending}") for ending in _BESIDE):
            break
    for ending in reversed(_BESIDE):  # the file last: killed in between, the next call takes up the rest
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{ending}", f"{kept}{ending}")
    return kept


@functools.cache
def _revisions() -> frozenset[str]:
    """Every revision the installed MLflow has passed through."""
    return frozenset(script.revision for script in _scripts().walk_revisions())


@functools.cache
def _head() -> str:
    (head,) = _scripts().get_heads()
    return str(head)


@functools.cache
def _scripts() -> ScriptDirectory:
    import mlflow.store
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(next(iter(mlflow.store.__path__))) / "db_migrations"))


@functools.cache
def _columns() -> frozenset[tuple[str, str]]:
    """Table and column of everything that the installed MLflow stores."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - fills the list below
    from mlflow.store.db.base_sql_model import Base

    return frozenset((table.name, column.name) for table in Base.metadata.tables.values() for column in table.columns)


def _relocate(connection: sqlite3.Connection, artifacts: Path) -> None:
    """Have the runs look for their artifacts where the database lies now: its folder was renamed or copied.

    Runs of ours alone (tag ``alp.run_dir``) whose URI has the form ``file:///…/mlartifacts/<run>/artifacts``, and the
    experiments that hold no others.
    """
    root = artifacts.as_uri()
    ours = "run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'alp.run_dir')"
    query = f"SELECT run_uuid, artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) <> ? AND {ours}"
    for run, uri in connection.execute(query, (len(root) + 1, f"{root}/")).fetchall():
        ending = f"/{run}/artifacts"
        if uri.endswith(f"/{ARTIFACTS}{ending}") and _elsewhere(uri.removesuffix(ending), artifacts):
            connection.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (root + ending, run))
    foreign = f"SELECT 1 FROM runs WHERE runs.experiment_id = experiments.experiment_id AND NOT {ours}"
    query = (
        "SELECT experiment_id, artifact_location FROM experiments WHERE artifact_location <> ? AND NOT EXISTS"
        f" ({foreign})"
    )
    for experiment, uri in connection.execute(query, (root,)).fetchall():
        if uri.endswith(f"/{ARTIFACTS}") and _elsewhere(uri, artifacts):
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (root, experiment)
            )


def _elsewhere(uri: str, artifacts: Path) -> bool:
    """Whether a URI names another folder of this machine (or of the one it came from), not the same by another path."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc:
        return False
    old = Path(unquote(parts.path)).parent  # the artifacts' folder may not be there yet, the database's is
    return not (old.exists() and old.samefile(artifacts.parent))
