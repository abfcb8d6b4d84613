"""Jobs without their seconds of imports: a parent that has imported what they need forks one for every command.

``alp train`` (also pretrain, evaluate) with ALP_WARM=<socket> in its environment hands its words, folder, environment
and standard streams over and stays as the job's stand-in: signals go on to the job, and it ends as the job ends. The
job is a process of its own, begun from the same state as any other. What is not exactly as it would be in a process
started cold (another environment, source or packages changed since the imports, no such parent) is started cold; so
is everything where there is a GPU, whose driver does not survive a fork. Linux alone.

The workflow starts the parent (``start``), which lives as long as it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from alp.configuration.automatic import has_gpu
from alp.errors import TRY_AGAIN
from alp.lifetime import end_with, speak_utf8

VARIABLE = "ALP_WARM"
VERBS = ("pretrain", "train", "evaluate")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_PACKAGE = Path(__file__).resolve().parent
# What differs from job to job and is not looked at by an import; temporary folders are asked for anew in the job.
_OF_A_JOB = {VARIABLE, "ALP_PARENT", "ALP_SHELL", "_", "SHLVL", "PWD", "OLDPWD", "TMPDIR", "TMP", "TEMP", "TEMPDIR"}
_THREADS = ("OMP", "GOTO", "OPENBLAS", "MKL", "NUMEXPR")  # _NUM_THREADS: what Snakemake sets for a job's threads
# What jobs import after torch and transformers, down to what they import late.
_MODULES = (
    *("hydra", "omegaconf", "safetensors.torch", "tokenizers", "transformers.models.auto.modeling_auto"),
    *("transformers.models.qwen2.modeling_qwen2", "transformers.tokenization_utils_tokenizers"),
    *("alp.commands", "alp.configuration.compose", "alp.preflight", "alp.reporting.live", "alp.tasks.tally"),
    *("alp.tasks.arithmetic", "alp.training.loop", "alp.training.pretrain", "alp.evaluation.evaluate"),
    *("alp.rollout.hf", "alp.configuration.train_schema", "alp.configuration.evaluate_schema"),
    *("alp.configuration.pretrain_schema", "hydra.core.override_parser.overrides_parser", "torch.optim.adamw"),
)


# ---- the command's side ----------------------------------------------------------------------------------------------


def hand_over(words: list[str]) -> int | None:
    """The exit code of the job that a warm parent ran for ``words``; None where this process is to do it itself."""
    place = os.environ.pop(VARIABLE, None)  # not for the processes that a job starts
    if place is None or words[:1] not in [[verb] for verb in VERBS]:
        return None
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        ignored = [int(number) for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
        asked = {"words": words, "environment": dict(os.environ), "path": sys.path, "ignored": ignored}
        try:
            message = json.dumps(asked | {"folder": os.getcwd(), "umask": _umask()}).encode()
            connection.connect(place)
            socket.send_fds(connection, [len(message).to_bytes(8, "little")], [0, 1, 2])
            connection.sendall(message)
        except OSError:
            return None
        return _stand_in(connection, ignored)


def _stand_in(connection: socket.socket, ignored: list[int]) -> int | None:
    """Wait for the job, send it the signals that come, end as it ends."""
    came: list[int] = []

    def forward(number: int, _: object) -> None:
        came.append(number)
        with contextlib.suppress(OSError):
            connection.send(bytes([number]))

    before = {int(number): signal.signal(number, forward) for number in FORWARDED if number not in ignored}
    try:
        answer = _line(connection)
        job = _process(int(answer.split()[1])) if answer is not None else None
        ended = _line(connection) if answer is not None else None
        if answer is not None and ended is None and job is not None:
            select.select([job], [], [])  # the parent was killed, and the job with it asked to stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if answer is None:  # nothing was begun
        for number in came:
            os.kill(os.getpid(), number)
        return None
    if ended is None:
        print("alp: the process that had started this job was killed; what is done is kept", file=sys.stderr)
        return TRY_AGAIN
    return _end_as(int(ended.split()[1]))


def _end_as(status: int) -> int:
    """The exit code of a job that ended with ``status``; does not return where a signal killed it."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _process(pid: int) -> int | None:
    """A file descriptor that can be waited for; None of a process that is gone."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _line(connection: socket.socket) -> str | None:
    """The next line; None where the other end is gone."""
    content = b""
    while not content.endswith(b"\n"):
        try:
            piece = connection.recv(1)
        except OSError:
            return None
        if not piece:
            return None
        content += piece
    return content.decode()


def _umask() -> int:
    before = os.umask(0o077)
    os.umask(before)
    return before


# ---- the parent's side -----------------------------------------------------------------------------------------------


def start(place: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    """A parent that listens at ``place`` for jobs of one thread in ``environment``, and ends with this thread of this
    process; None where there can be none."""
    if not sys.platform.startswith("linux") or not hasattr(os, "pidfd_open") or has_gpu():
        return None
    one = {f"{name}_NUM_THREADS": "1" for name in _THREADS} | {"VECLIB_MAXIMUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "alp.warm", str(place), str(os.getpid())],
        env={**environment, **one},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C reaches a job once, through its stand-in
    )


def fingerprint() -> str:
    """What was read: our source and configurations by size and time, and when a package was last installed."""
    read = [*_PACKAGE.rglob("*.py"), *(_PACKAGE.parent / "configs").rglob("*.yaml")]
    files = [(str(path), path.stat()) for path in sorted(read)]
    parts: list[Any] = [(name, state.st_mtime_ns, state.st_size) for name, state in files]
    return json.dumps([parts, os.stat(sysconfig.get_path("purelib")).st_mtime_ns])


def _relevant(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _OF_A_JOB}


def _threads_here() -> int:
    return len(os.listdir("/proc/self/task"))


class Parent:
    """Listens, forks, passes signals and exit codes on; its loop ends in a job (``serve``), or when it is to end."""

    def __init__(self, listener: socket.socket, made_from: str, environment: Mapping[str, str]) -> None:
        self._listener: socket.socket | None = listener
        self._made_from, self._environment = made_from, _relevant(environment)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)  # a signal alone does not end a wait
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._jobs: dict[socket.socket, tuple[int, int]] = {}  # process and what it is waited for by

    def serve(self) -> dict[str, Any] | None:
        """What a job that was forked here is to do, in its process; None in the parent's, at its end."""
        while self._listener is not None or self._jobs:
            for key, _ in self._selector.select():
                source = key.fileobj
                if source == self._bell:
                    self._end()
                elif source is self._listener:
                    request = self._accept(self._listener)
                    if request is not None:
                        return request
                elif source in self._jobs:  # else its job was reaped a moment ago
                    self._relay(source)
                elif key.data in self._jobs:
                    self._reap(key.data)
        return None

    def end(self, *_: object) -> None:
        """Take no more jobs, and ask those that run to stop; a handler of signals."""
        os.eventfd_write(self._bell, 1)

    def _end(self) -> None:
        os.eventfd_read(self._bell)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for pid, _handle in self._jobs.values():
            os.kill(pid, signal.SIGTERM)

    def _accept(self, listener: socket.socket) -> dict[str, Any] | None:
        connection, _ = listener.accept()
        connection.settimeout(10.0)
        streams: list[int] = []
        try:
            request, streams = _receive(connection)
            if _relevant(request["environment"]) != self._environment or fingerprint() != self._made_from:
                raise ValueError("not as this parent is")
        except (OSError, ValueError):
            for handle in streams:
                os.close(handle)
            connection.close()
            return None
        connection.settimeout(None)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # until a job has handlers of its own (``_become``)
        pid = os.fork()
        if pid == 0:
            connection.close()
            self._leave()
            return request | {"streams": streams}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        for handle in streams:
            os.close(handle)
        handle = os.pidfd_open(pid)
        self._jobs[connection] = pid, handle
        self._selector.register(connection, selectors.EVENT_READ)
        self._selector.register(handle, selectors.EVENT_READ, connection)
        with contextlib.suppress(OSError):
            connection.sendall(f"job {pid}\n".encode())
        return None

    def _leave(self) -> None:
        """Close what belongs to the parent: whoever waits for its end must not wait for this job's."""
        self._selector.close()
        os.close(self._bell)
        if self._listener is not None:
            self._listener.close()
        for connection, (_, handle) in self._jobs.items():
            connection.close()
            os.close(handle)

    def _relay(self, connection: Any) -> None:
        """Signals from a stand-in go to its job; where the stand-in was killed, so is the job."""
        pid, _ = self._jobs[connection]
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or [int(signal.SIGKILL)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if not numbers:
            self._selector.unregister(connection)

    def _reap(self, connection: socket.socket) -> None:
        pid, handle = self._jobs.pop(connection)
        self._selector.unregister(handle)
        os.close(handle)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(f"ended {status}\n".encode())
        connection.close()


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request and the three streams that come with it. Raises ValueError or OSError for anything else."""
    size, handles, _, _ = socket.recv_fds(connection, 8, 3)
    content = b""
    length = int.from_bytes(size, "little")
    while len(size) == 8 and len(content) < length and (piece := connection.recv(length - len(content))):
        content += piece
    if len(handles) != 3 or len(content) != length:
        for handle in handles:
            os.close(handle)
        raise ValueError("no request")
    return json.loads(content), list(handles)


def _become(request: dict[str, Any], parent: int, of_imports: Mapping[str, str]) -> list[str]:
    """Make this fork what the command would be that asked for it; returns its words.

    ``of_imports`` are the environment variables that the imports set, as they would have in a cold process.
    """
    import atexit
    import gc
    import tempfile

    atexit.register(gc.unfreeze)  # what was frozen for the fork is given back in order, as at any end
    for number in FORWARDED:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if int(number) in request["ignored"] else default)
    end_with(parent, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    for stream, handle in enumerate(request["streams"]):
        os.dup2(handle, stream)
        os.close(handle)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.update(of_imports)
    for name in ("ALP_PARENT", "ALP_SHELL"):  # of the stand-in, which they name
        os.environ.pop(name, None)
    sys.path[:] = request["path"]
    sys.argv = ["alp", *request["words"]]
    tempfile.tempdir = None
    return list(request["words"])


def main() -> int:
    """``python -m alp.warm <socket> <parent>``; and every job that is forked here, to its end."""
    speak_utf8()
    place, parent = Path(sys.argv[1]), int(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # in the middle of the imports: the folder goes too
    end_with(parent, signal.SIGTERM)
    before = dict(os.environ)
    listener = socket.socket(socket.AF_UNIX)
    own = os.getpid()
    try:
        listener.bind(str(place))  # first of all: a command that comes before starts cold
        listener.listen(64)  # commands wait here for the imports
        made_from = fingerprint()
        request = _serve(listener, made_from, before)
    except OSError as error:  # a path too long for a socket
        print(f"alp: jobs start cold: {place}: {error.strerror or error}", file=sys.stderr)
        return 1
    finally:
        if os.getpid() == own:
            place.unlink(missing_ok=True)
            place.parent.rmdir()
    if request is None:
        os._exit(0)  # nothing is left to do, and taking the imports apart takes a second
    words = _become(request, own, {name: value for name, value in os.environ.items() if before.get(name) != value})
    from alp.cli import run

    return run(words)


def _serve(listener: socket.socket, made_from: str, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Import, then listen; what a job that was forked is to do, in its process."""
    import gc

    from alp.preload import load_libraries

    load_libraries()
    for name in _MODULES:
        import_module(name)
    from alp.configuration import compose

    for verb in ("train", "evaluate"):  # what the modules and configurations say is read once; it is in the fingerprint
        compose.code_of(verb, compose.load(verb))
    if _threads_here() > 1:
        return None  # what a thread holds is never given back in a fork
    gc.collect()
    gc.freeze()  # jobs share the pages as long as nobody writes into them
    server = Parent(listener, made_from, environment)
    signal.signal(signal.SIGTERM, server.end)
    return server.serve()


if __name__ == "__main__":
    sys.exit(main())
