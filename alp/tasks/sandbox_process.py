"""One worker of :mod:`alp.tasks.sandbox`: bubblewrap around an interpreter that serves programs one after the other.

What is inside is listed here: the interpreter with its standard library and the system's shared libraries, the modules
``alp.tasks.sandbox_worker``, ``alp.tasks.sandbox_program`` and ``alp.tasks.sandbox_kernel``, chosen installed packages,
four devices, an empty ``/tmp``. All of it but ``/tmp`` is read-only. Nothing else of the machine exists there: no home,
no repository, no environment of this process, no network, no other process.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import IO, Any

from alp.errors import SandboxUnavailable, UserError, printable
from alp.tasks import sandbox_filter, sandbox_worker
from alp.tasks.sandbox_worker import ANSWER, ENDED_BY, REQUEST

_INSIDE = ("sandbox_kernel", "sandbox_program", "sandbox_worker")
_HERE = Path(__file__).resolve().parent
_PYTHON, _LIBRARIES, _CODE = "/python", "/libraries", "/code"
_USER = 64_517  # nobody's: what root's sandboxes become inside
_START_SECONDS = 600.0  # a first import from a slow network disk
_GRACE_SECONDS = 600.0  # beyond a program's wall time, for a worker on a busy machine
_END_SECONDS = 10.0
_LONGEST_WORDS = 100_000  # bytes
# Stands at the top of the interpreter inside; what it does not name is no name of the program's.
_SCRIPT = f"""
import sys
sys.path.insert(0, {_CODE!r})
from alp.tasks.sandbox_worker import main
program, ended = main(), None
try:
    exec(compile(program.source, "<string>", "exec", dont_inherit=True), program.names)
except BaseException as error:
    ended = error
program.end(ended)
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended: its wait status, what ended it (a word of ``sandbox_worker.ENDED_BY``), its streams."""

    status: int
    ended_by: str
    seconds: float
    stdout: bytes
    stderr: bytes


class GoneError(Exception):
    """The worker does not answer, or said that a guard could not be put up; the message says what is known."""


class Worker:
    """One sandbox, started by :meth:`start`. Not safe from two threads at once."""

    def __init__(self, config: dict[str, Any], libraries: tuple[str, ...]) -> None:
        self._config, self._libraries = config, libraries
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Of bubblewrap, when there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and wait until programs can run. The worker ends with the thread that called this. Raises
        SandboxUnavailable."""
        self.stop()
        with contextlib.ExitStack() as files:
            words = files.enter_context(tempfile.TemporaryFile())
            here, there = socket.socketpair()
            files.enter_context(there)
            self._control = here
            handles = [files.enter_context(_memory(_HERE / f"{name}.py")) for name in _INSIDE]
            command = _command(handles, self._libraries)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=there.fileno(),
                    stdout=there.fileno(),
                    stderr=words,
                    env=_ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=[handle.fileno() for handle in handles],
                )
                there.close()
                self._send_config(words)
            except BaseException:
                self.stop()
                raise

    def _send_config(self, words: IO[bytes]) -> None:
        assert self._control is not None
        config = self._config | {
            "filter": sandbox_filter.assemble(platform.machine()).hex(),
            "libraries": list(self._libraries),
        }
        content = json.dumps(config).encode()
        deadline = monotonic() + _START_SECONDS
        try:
            self._control.sendall(len(content).to_bytes(8, "little") + content)
            size = int.from_bytes(self._receive(8, deadline), "little")
            said = self._receive(min(size, _LONGEST_WORDS), deadline).decode(errors="replace")
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            said = _last_words(words) or f"no word from it ({type(error).__name__})"
        if said:
            raise SandboxUnavailable(f"the sandbox does not start: {said[:300]} (docs/sandbox.md says what it needs)")

    def run(self, code: bytes, stdin: bytes, cpu_seconds: float, wall_seconds: float) -> Ended:
        """One program. Raises GoneError; then, and when it is interrupted, the worker is stopped."""
        deadline = monotonic() + wall_seconds + _GRACE_SECONDS
        try:
            self._send(REQUEST.pack(cpu_seconds, wall_seconds, len(code), len(stdin)), deadline)
            self._send(code, deadline)
            self._send(stdin, deadline)
            status, ended_by, seconds, *sizes = ANSWER.unpack(self._receive(ANSWER.size, deadline))
            most = self._config["output_bytes"] + 4096
            if ended_by >= len(ENDED_BY) or max(sizes) > most:
                raise ValueError
            stdout, stderr = (self._receive(size, deadline) for size in sizes)
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            self.stop()
            raise GoneError(f"the worker is gone ({type(error).__name__})") from error
        except BaseException:  # an interrupt in between: the answer still to come belongs to nobody
            self.stop()
            raise
        if ENDED_BY[ended_by] == "unfit":
            self.stop()
            raise GoneError(printable(stdout.decode(errors="replace")))
        return Ended(status, ENDED_BY[ended_by], seconds, stdout, stderr)

    def _send(self, content: bytes, deadline: float) -> None:
        if self._control is None:
            raise EOFError
        rest = memoryview(content)
        while rest:
            if not select.select([], [self._control], [], max(0.0, deadline - monotonic()))[1]:
                raise TimeoutError
            rest = rest[self._control.send(rest[:1_048_576], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]

    def _receive(self, count: int, deadline: float) -> bytes:
        if self._control is None:
            raise EOFError
        found = bytearray()
        while len(found) < count:
            self._control.settimeout(max(0.001, deadline - monotonic()))
            piece = self._control.recv(min(count - len(found), 1 << 20))
            if not piece:
                raise EOFError
            found += piece
        return bytes(found)

    def stop(self) -> None:
        """End the worker, and wait until nothing of it is left."""
        process, control = self._process, self._control
        self._process = self._control = None
        if control is not None:
            control.close()  # which it takes as the end
        if process is None:
            return
        try:
            process.wait(_END_SECONDS)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise

    def forget(self) -> None:
        """In a fork of this process: the worker belongs to the parent, which alone may keep its socket open."""
        process, control = self._process, self._control
        self._process = self._control = None
        if process is not None:
            process.returncode = 0  # nobody here is to wait for it
        if control is not None:
            control.close()


_ENVIRONMENT = {
    "PATH": f"{_PYTHON}/bin",
    "HOME": sandbox_worker.SCRATCH,
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "LD_LIBRARY_PATH": f"{_PYTHON}/lib",
    "MALLOC_ARENA_MAX": "1",  # of each thread otherwise: address space that it does not use
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONIOENCODING": "utf-8:strict",
    "PYTHONPATH": _LIBRARIES,
}


def _command(handles: list[IO[bytes]], libraries: tuple[str, ...]) -> list[str]:
    """Bubblewrap's words. Raises SandboxUnavailable."""
    bwrap = find_bubblewrap()
    words = [bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--chdir", "/", "--cap-drop", "ALL"]
    # Root mounts what only root may read; the worker then becomes another user. The rest need a namespace for that.
    words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else ["--unshare-user"]
    python, places = _python()
    places += _packages(libraries)
    files = [f"{_CODE}/alp/tasks/{name}.py" for name in _INSIDE]
    for folder in _parents([*files, "/dev/null", f"{_LIBRARIES}/none", *(inside for _, inside in places)]):
        words += ["--perms", "0755", "--dir", folder]  # of its own it makes some that only root may enter
    for place, inside in places:
        words += ["--ro-bind", place, inside]
    words += ["--tmpfs", f"{_PYTHON}/lib/{_VERSION}/site-packages"] if _has_site_packages() else []
    for device in ("null", "zero", "random", "urandom"):
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    words += ["--symlink", sandbox_worker.SCRATCH, "/dev/shm", "--dir", sandbox_worker.SCRATCH, "--proc", "/proc"]
    for handle, inside in zip(handles, files, strict=True):
        words += ["--perms", "0444", "--file", str(handle.fileno()), inside]
    return [*words, "--remount-ro", "/", "--", python, "-P", "-s", "-S", "-c", _SCRIPT, str(_USER)]


def _parents(places: list[str]) -> list[str]:
    """Every folder above them, from the top."""
    return sorted({str(folder) for place in places for folder in Path(place).parents} - {"/"})


def find_bubblewrap() -> str:
    """Its absolute path. Raises SandboxUnavailable."""
    found = shutil.which("bwrap")
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable(f"the sandbox needs Linux, this is {sys.platform}; no program is run without it")
    if found is None or not os.path.isabs(found):
        raise SandboxUnavailable(
            "the sandbox needs bubblewrap, and there is no bwrap here: make sandbox, or apt-get install bubblewrap; no"
            " program is run without it"
        )
    return found


_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))


def _has_site_packages() -> bool:
    return (_standard_library() / "site-packages").is_dir()


def _python() -> tuple[str, list[tuple[str, str]]]:
    """The interpreter inside, and what it needs: (place here, place inside)."""
    standard = _standard_library()
    executable = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    inside = f"{_PYTHON}/bin/{_VERSION}"
    places = [(executable, inside)]
    if standard.parent in (Path("/usr/lib"), Path("/usr/lib64"), Path("/lib")):  # where others' files lie too
        places.append((str(standard), f"{_PYTHON}/lib/{_VERSION}"))
    else:
        places.append((str(standard.parent), f"{_PYTHON}/lib"))
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    system = ("/lib64", f"/lib/{multiarch}", f"/usr/lib/{multiarch}", "/usr/lib64")
    return inside, places + [(os.path.realpath(place), place) for place in system if os.path.isdir(place)]


def _packages(libraries: tuple[str, ...]) -> list[tuple[str, str]]:
    """Folders or files of installed packages. Raises UserError for one that is none."""
    places = []
    for name in libraries:
        spec = find_spec(name) if name.isidentifier() else None
        if spec is None or spec.origin is None or "site-packages" not in Path(spec.origin).parts:
            raise UserError(f"the sandbox's libraries: '{name}' is no installed package (the top-level name of one)")
        origin = Path(spec.origin)
        place = origin.parent if spec.submodule_search_locations else origin
        beside = place.with_name(f"{name}.libs")  # shared libraries that a wheel brings
        places += [(str(each), f"{_LIBRARIES}/{each.name}") for each in (place, beside) if each.exists()]
    return places


def _memory(path: Path) -> IO[bytes]:
    """A file's content behind a handle that a process can inherit, wherever the file may be read from."""
    stream = open(os.memfd_create(path.name), "w+b")  # noqa: SIM115
    stream.write(path.read_bytes())
    stream.flush()
    stream.seek(0)
    return stream


def _last_words(words: IO[bytes]) -> str:
    """The end of what was written to stderr before the worker could begin."""
    words.seek(0)
    lines = words.read(_LONGEST_WORDS).decode("utf-8", "replace").split("\n")
    return printable(next((line for line in reversed(lines) if line.strip()), "").strip())
