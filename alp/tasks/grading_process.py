"""One worker of :mod:`alp.tasks.grading_pool`: a Python started so that nothing of the user's folders or environment
runs in it.

It gets an absolute interpreter, ``-P -s``, an environment made of a short list and ``/`` as its folder. The packages
whose jobs it runs (``alp`` first) are named to it by their files, so that no folder of theirs joins its path. Before
its first job of a module it says which libraries it imported from where; the process that started it compares with what
is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import IO, Any

from alp.errors import printable

_MODULE = "alp.tasks.grading_worker"  # by its file: a worker knows nothing of this package's place
_WORKER = Path(__file__).resolve().with_name(f"{_MODULE.rpartition('.')[2]}.py")
_START_SECONDS = 600.0  # a first import from a slow network disk
_LONGEST_ANSWER = 80 * 1024 * 1024  # bytes
_KEPT = ("PATH", "TMPDIR", "TZ")  # of the environment
_SET = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Limits:
    """Of one request: CPU seconds and bytes of address space; ``wall_seconds`` only ends what makes no progress at
    all."""

    cpu_seconds: float = 20.0
    memory_bytes: int = 2 * 1024**3
    wall_seconds: float = 900.0

    def wider(self) -> Limits:
        """For a second try."""
        return replace(
            self,
            cpu_seconds=4 * self.cpu_seconds,
            memory_bytes=2 * self.memory_bytes,
            wall_seconds=4 * self.wall_seconds,
        )


@dataclass(frozen=True)
class Outcome:
    """``value``, or the kind of ``fault`` and what is known of it.

    ``raised``, ``depth``: what the job makes of these arguments, every time. ``time``, ``memory``: a limit was met.
    ``died``: its process ended otherwise. ``unfit``: the worker could not begin.
    """

    value: Any = None
    fault: str | None = None
    detail: str = ""


class UnfitError(Exception):
    """The worker does not start, or is not what it should be; the message says why."""


class Worker:
    """One subprocess, started at the first request and again after a death. Not safe from two threads at once."""

    def __init__(self) -> None:
        self.fresh = True  # nothing but known requests, and second tries after them, since it was started
        self.proven = False  # the known requests came out right, and nothing went wrong since
        self._process: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] | None = None
        self._ready: set[str] = set()

    @property
    def pid(self) -> int | None:
        """Of the process, when there is one."""
        return self._process.pid if self._process is not None else None

    def run(self, module: str, job: str, arguments: Sequence[Any], limits: Limits) -> Outcome:
        """One request. Whatever becomes of the worker is an outcome; only what interrupts this process is raised."""
        request: dict[str, Any] = {"module": module, "job": job, "arguments": list(arguments)}
        request |= {"cpu_seconds": limits.cpu_seconds, "memory_bytes": limits.memory_bytes}
        try:
            self._make_ready(module)
            answer = self._exchange(request, limits.wall_seconds)
            return Outcome(answer.get("value"), answer.get("fault"), str(answer.get("detail", "")))
        except UnfitError as error:
            self.stop()
            return Outcome(fault="unfit", detail=str(error))
        except TimeoutError:
            self.stop()
            return Outcome(fault="died", detail=f"no answer in {limits.wall_seconds:g} s")
        except (OSError, EOFError, ValueError) as error:
            self.stop()
            return Outcome(fault="died", detail=f"the worker is gone ({type(error).__name__})")
        except BaseException:  # an interrupt in between: the answer still to come belongs to nobody
            self.stop()
            raise

    def _make_ready(self, module: str) -> None:
        """A running worker that has imported the module and the right libraries. Raises UnfitError."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._start()
        if module in self._ready:
            return
        packages = {name: _package_file(name) for name in ("alp", module.partition(".")[0])}
        try:
            found = self._exchange({"packages": packages, "import": module}, _START_SECONDS)
        except (OSError, EOFError, ValueError) as error:
            raise UnfitError(f"a worker does not start: {self._last_words() or type(error).__name__}") from error
        if "fault" in found:
            raise UnfitError(f"a worker cannot import {module}: {found.get('detail', '')}")
        _check_libraries(found["libraries"], module)
        self._ready.add(module)

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _SET
        libraries = [part for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if os.path.isabs(part)]
        if libraries:  # where some installations keep the interpreter's own
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [interpreter(), "-P", "-s", str(_WORKER)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise UnfitError(f"a worker does not start: {error}") from error

    def _last_words(self) -> str:
        """The end of what it wrote to stderr before it could begin."""
        if self._words is None:
            return ""
        self._words.seek(0)
        lines = self._words.read(100_000).decode("utf-8", "replace").split("\n")
        return printable(next((line for line in reversed(lines) if line.strip()), "").strip()[:300])

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request, receive its answer. Raises TimeoutError, EOFError, OSError, ValueError (no answer of
        ours)."""
        assert self._process is not None
        assert self._process.stdin is not None
        deadline = monotonic() + seconds
        rest = memoryview(json.dumps(request).encode() + b"\n")
        while rest:
            if not select.select([], [self._process.stdin], [], max(0.0, deadline - monotonic()))[1]:
                raise TimeoutError
            rest = rest[os.write(self._process.stdin.fileno(), rest[: select.PIPE_BUF]) :]
        size = int.from_bytes(self._read(8, deadline), "little")
        if size > _LONGEST_ANSWER:
            raise ValueError
        answer = json.loads(self._read(size, deadline))
        if not isinstance(answer, dict):
            raise ValueError
        return answer

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        found = bytearray()
        handle = self._process.stdout.fileno()
        while len(found) < count:
            if not select.select([handle], [], [], max(0.0, deadline - monotonic()))[0]:
                raise TimeoutError
            piece = os.read(handle, min(65536, count - len(found)))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)

    def stop(self) -> None:
        """Kill the worker and the fork it may have; the next request starts another."""
        self.fresh, self.proven = True, False
        self._ready.clear()
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, 9)
            self._close(process)
            process.wait()

    def forget(self) -> None:
        """In a fork of this process: the worker belongs to the parent, which alone may keep its input open."""
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # nobody here is to wait for it
            self._close(process)

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        words, self._words = self._words, None
        for stream in (process.stdin, process.stdout, words):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def interpreter() -> str:
    """The absolute path of this Python; ``sys.executable`` may be empty or relative. Raises UnfitError.

    Links are not followed: a virtual environment is found by where its link stands.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [
        sys.executable,
        *(str(Path(root) / "bin" / each) for root in (sys.prefix, sys.base_prefix) for each in (name, "python3")),
    ]
    for place in places:
        if place and os.path.isabs(place) and os.access(place, os.X_OK) and os.path.isfile(place):
            return place
    found = shutil.which(name)
    if found is None or not os.path.isabs(found):
        raise UnfitError(f"no Python interpreter found in {sys.prefix} to start a worker with")
    return found


@cache
def _package_file(package: str) -> str:
    """The ``__init__.py`` from which this process has a package."""
    loaded = sys.modules.get(package)
    spec = find_spec(package) if loaded is None else getattr(loaded, "__spec__", None)
    origin = getattr(loaded, "__file__", None) or (spec.origin if spec is not None else None)
    if origin is None:
        raise UnfitError(f"no package '{package}' for a worker to take its jobs from")
    return str(Path(origin).resolve())


def _check_libraries(found: dict[str, Any], module: str) -> None:
    """Raise UnfitError unless every library was imported from where it is installed, in the installed version."""
    for package, (file, version, name) in found.items():
        if name is None:  # the package of the jobs
            expected: tuple[str | None, str | None] = _package_file(package), None
        else:
            expected = _installed(package, name)
        place, wanted = expected
        if place is not None and not _same(place, file):
            raise UnfitError(f"a worker for {module} imported {package} from {file}, but it is installed in {place}")
        if wanted is not None and version != wanted:
            raise UnfitError(
                f"a worker for {module} imported {package} {version} from {file}, but {wanted} is installed"
            )


@cache
def _installed(package: str, name: str) -> tuple[str | None, str]:
    """File (None where the installer does not say: an editable install) and version of a distribution, among the
    interpreter's own folders first: what the working folder or PYTHONPATH offers is not what workers use. Raises
    UnfitError."""
    folders = list(
        dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()])
    )
    try:
        one = next(iter(Distribution.discover(name=name, path=folders)), None) or distribution(name)
    except PackageNotFoundError:
        raise UnfitError(f"{name} is not installed in {sys.prefix}; make install") from None
    file = next((file for file in one.files or [] if file.parts == (package, "__init__.py")), None)
    return None if file is None else str(one.locate_file(file)), one.version


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
