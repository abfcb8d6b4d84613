"""Where a sandboxed program runs: a fork of an interpreter that has its libraries loaded, and does nothing else.

Standard library only; runs inside the sandbox (:mod:`alp.tasks.sandbox_worker`). The loaded interpreter does the same
few things for every program, and its addresses are fixed, so that each fork begins in the same state, down to the
address of the next object: what a program prints of sets and of objects without a name of their own does not depend on
the programs before it.
"""

from __future__ import annotations

import atexit
import gc
import importlib.machinery
import os
import random
import resource
import signal
import site
import socket
import struct
import sys
import threading
import types
from typing import Any

from alp.tasks import sandbox_kernel as kernel

ORDER = struct.Struct("<QQ")  # CPU seconds, bytes of address space that the loaded interpreter has
REPORT = struct.Struct("<qd")  # wait status, CPU seconds
HANDLES = 6  # that come with an order: process namespace, code, stdin, stdout, stderr, what says that all guards stand
GUARDED = b"guarded"
_OPEN_FILES, _PENDING_SIGNALS = 128, 1024
_NO_DUMP = 1  # as RLIMIT_CORE: neither a file nor a pipe to the host's collector, see core(5)
_SEED = 0
_PROGRAM = 2  # the program's number in its own namespace
_LOADED = (
    *("base64", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions"),
    *("functools", "hashlib", "heapq", "inspect", "io", "itertools", "json", "math", "operator", "random", "re"),
    *("statistics", "string", "textwrap", "time", "traceback", "typing"),
)


def serve(orders: socket.socket, config: dict[str, Any]) -> Program:
    """Answer orders until the socket closes. Returns in the fork that is to run a program, guarded."""
    guards = kernel.Filter(bytes.fromhex(config["filter"]))
    _load(config["libraries"])
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    main.__dict__.update(
        __annotations__={}, __builtins__=sys.modules["builtins"], __loader__=importlib.machinery.BuiltinImporter
    )
    gc.collect()
    gc.freeze()
    orders.send(b"loaded")
    while True:
        order, handles, _, _ = socket.recv_fds(orders, ORDER.size, HANDLES)
        if not order:
            os._exit(0)
        kernel.enter_pids(handles[0])
        child = os.fork()
        if child == 0:
            return _begin(order, handles, guards, config, main)
        for handle in handles:
            os.close(handle)
        _, status, usage = os.wait4(child, 0)
        orders.send(REPORT.pack(status, usage.ru_utime + usage.ru_stime))


def _load(libraries: list[str]) -> None:
    """What programs will find imported, with fixed random numbers, and the names that ``site`` brings."""
    site.setquit()
    site.setcopyright()
    site.sethelper()
    for name in (*_LOADED, *libraries):
        importlib.import_module(name)
    _fix_random_numbers()
    sys.argv, sys.orig_argv = ["-c"], [sys.executable, "-c"]
    sys.path[:] = ["", *(place for place in sys.path if place != os.path.dirname(os.path.dirname(__file__)))]
    sys.setrecursionlimit(sys.getrecursionlimit() + 2)  # what lies below the program's first frame


def _fix_random_numbers() -> None:
    """Whatever of Python's would ask the system for random bytes gets those of a stream of the process's own, fixed by
    its number."""
    stream, seed = random.Random(_SEED), random.Random.seed

    def urandom(size: int, /) -> bytes:
        return stream.randbytes(size)

    def seeded(self: random.Random, a: Any = None, version: int = 2) -> None:
        seed(self, int.from_bytes(stream.randbytes(32), "little") if a is None else a, version)

    def begin() -> None:  # after what the library does in a fork, which asks the system
        number = _SEED + os.getpid() - _PROGRAM
        seed(stream, number)
        random.seed(number)

    os.urandom = sys.modules["posix"].urandom = random._urandom = urandom  # type: ignore[attr-defined]
    random.Random.seed = seeded  # type: ignore[method-assign]
    random.seed = random._inst.seed
    os.register_at_fork(after_in_child=begin)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(_SEED)


def _begin(
    order: bytes, handles: list[int], guards: kernel.Filter, config: dict[str, Any], main: types.ModuleType
) -> Program:
    """In the fork: its streams, its limits, and no way back. Ends the process where a guard cannot be put up."""
    guarded = 64  # above every handle
    try:
        _, code, *streams, ready = handles
        os.dup2(ready, guarded, inheritable=False)
        source = _content(code)
        for number, handle in enumerate(streams):
            os.dup2(handle, number)
        os.closerange(3, guarded)
        os.closerange(guarded + 1, 1024)
        os.chdir("/tmp")
        os.setsid()
        cpu_seconds, loaded_bytes = ORDER.unpack(order)
        _limit(cpu_seconds, loaded_bytes, config)
        kernel.drop_capabilities()
        guards.install()
    except BaseException as error:
        os.write(guarded, f"{type(error).__name__}: {error}".encode(errors="replace")[:1000])
        os._exit(1)
    os.write(guarded, GUARDED)
    os.close(guarded)
    return Program(source, main.__dict__)


def _content(handle: int) -> str:
    with open(handle, "rb", closefd=False) as stream:
        return stream.read().decode("utf-8", "surrogatepass")


def _limit(cpu_seconds: int, loaded_bytes: int, config: dict[str, Any]) -> None:
    wanted = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: loaded_bytes + config["memory_bytes"],
        resource.RLIMIT_NPROC: config["processes"] + config["own_processes"],
        resource.RLIMIT_FSIZE: config["file_bytes"],
        resource.RLIMIT_CORE: _NO_DUMP,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_SIGPENDING: _PENDING_SIGNALS,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in wanted.items():
        resource.setrlimit(kind, (value, value))


class Program:
    """A program about to run, and how its process ends: as ``python -c`` ends, without taking the loaded libraries
    apart.

    The frame that runs it stands at the top of the interpreter's own script, so that as deep a recursion fits as in
    ``python -c``.
    """

    def __init__(self, source: str, names: dict[str, Any]) -> None:
        self.source, self.names = source, names
        self.status = 0

    def end(self, error: BaseException | None) -> None:
        """End the process; ``error`` is what ended the program, if anything did."""
        if error is not None:
            self._fail(error, error.__traceback__ and error.__traceback__.tb_next)
            del error
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            flushed = _flush()
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            _forget(self.names)
            _flush()
            if not flushed:
                self.status = 120
        except BaseException:
            sys.__excepthook__(*sys.exc_info())
            self.status = self.status or 1
            _flush()
        if self.status == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(self.status)

    def _fail(self, error: BaseException, trace: types.TracebackType | None) -> None:
        """Say what Python says of it; ``trace`` begins at the program's own first frame."""
        if isinstance(error, SystemExit):
            self.status = _exit_status(error.code)
            return
        self.status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        try:
            sys.excepthook(type(error), error.with_traceback(trace), trace)
        except SystemExit as other:
            self.status = _exit_status(other.code)
        except BaseException as other:
            sys.stderr.write("Error in sys.excepthook:\n")
            frames = other.__traceback__ and other.__traceback__.tb_next
            sys.__excepthook__(type(other), other.with_traceback(frames), frames)
            sys.stderr.write("\nOriginal exception was:\n")
            sys.__excepthook__(type(error), error, trace)


def _exit_status(code: object) -> int:
    """What SystemExit makes of its argument, here and in C."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if abs(code) < 2**63 else 0xFF
    print(code, file=sys.stderr)
    return 1


def _flush() -> bool:
    whole = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException:
            whole = stream is sys.stderr and whole
    return whole


def _forget(names: dict[str, Any]) -> None:
    """Drop the program's globals in the order in which Python does; objects may have last words."""
    for first in (True, False):
        for name in list(names):
            hidden = name[:1] == "_" and name[1:2] != "_"
            if hidden == first and name != "__builtins__":
                names[name] = None
    gc.collect()
