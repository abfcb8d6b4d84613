"""The other end of :mod:`alp.tasks.grading_process`: answers each request in a fork of its own, which alone can be hurt
by it.

Started as a file, with nothing but the standard library; reads one JSON object a line. ``{"packages": {name: file},
"import"}`` takes packages from those very files, imports a module and answers ``{"libraries": {package: [file, version,
distribution]}}``. ``{"module", "job", "arguments", "cpu_seconds", "memory_bytes"}`` is answered with ``{"value"}`` or
``{"fault", "detail"}``. A fork has its time limit in CPU seconds and a limit on its address space; what it leaves
behind in caches dies with it, so that no answer depends on the ones before. The worker ends when its input does.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import resource
import select
import signal
import sys
from typing import Any

_LONGEST_ANSWER = 64 * 1024 * 1024  # bytes
_LIMITS_REFUSED = 97  # exit status


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the pipe
    requests, answers = sys.stdin.buffer, os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    for line in requests:
        request = json.loads(line)
        try:
            answer = json.dumps(_imported(request)).encode() if "import" in request else _answer(request, answers)
        except Exception as error:
            answer = json.dumps(_fault("unfit", error)).encode()
        _write(answers, len(answer).to_bytes(8, "little") + answer)


def _imported(request: dict[str, Any]) -> dict[str, Any]:
    """Import the module, and say what it and its libraries were taken from."""
    for name, file in request["packages"].items():
        if name not in sys.modules:
            _take(name, file)
    module = importlib.import_module(request["import"])
    found: dict[str, Any] = {name: [sys.modules[name].__file__, None, None] for name in request["packages"]}
    home = os.path.realpath(os.path.dirname(found[request["import"].partition(".")[0]][0]))
    if os.path.commonpath([os.path.realpath(str(module.__file__)), home]) != home:
        raise ImportError(f"{module.__name__} was imported from {module.__file__}")
    for library, distribution in getattr(module, "LIBRARIES", {}).items():
        loaded = importlib.import_module(library)
        found[library] = [loaded.__file__, importlib.metadata.version(distribution), distribution]
    nowhere = os.open(os.devnull, os.O_WRONLY)  # so far it went to the process that started this one
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return {"libraries": found}


def _take(name: str, file: str) -> None:
    """A package from that very file; the folder beside it is no place to find libraries in."""
    root = os.path.realpath(os.path.dirname(os.path.dirname(file)))
    if os.path.basename(root) not in ("site-packages", "dist-packages"):  # an editable install may name the checkout
        sys.path[:] = [place for place in sys.path if os.path.realpath(place) != root]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[os.path.dirname(file)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def _answer(request: dict[str, Any], answers: int) -> bytes:
    """What a fork makes of the request."""
    module = importlib.import_module(request["module"])
    if hasattr(module, "warm"):
        module.warm(request["job"], request["arguments"])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.close(answers)  # when the worker goes, whoever asked is to see it at once
            try:
                _limit(request)
            except (OSError, ValueError):
                os._exit(_LIMITS_REFUSED)
            _write(writing, json.dumps(_compute(module, request)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    answer = _received(reading, child)
    _, status = os.waitpid(child, 0)
    if status == 0 and _is_answer(answer):
        return answer
    return json.dumps(_ended(status)).encode()


def _received(reading: int, child: int) -> bytes:
    """All that the fork writes; the fork is ended when the process that asked is gone."""
    found = bytearray()
    watch = select.poll()
    watch.register(reading, select.POLLIN)
    watch.register(0, 0)  # its hanging up alone
    while True:
        events = dict(watch.poll())
        if 0 in events:
            os.kill(child, signal.SIGKILL)
            os._exit(0)
        piece = os.read(reading, 65536)
        if not piece or len(found) > _LONGEST_ANSWER:
            os.close(reading)
            return bytes(found)
        found += piece


def _is_answer(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


def _ended(status: int) -> dict[str, Any]:
    """A fork that gave no answer."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGPROF, signal.SIGXCPU):
            return {"fault": "time", "detail": ""}
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return {"fault": "died", "detail": f"ended by {name}"}
    code = os.waitstatus_to_exitcode(status)
    return {
        "fault": "died",
        "detail": "its limits were refused" if code == _LIMITS_REFUSED else f"exit status {code}, no answer",
    }


def _limit(request: dict[str, Any]) -> None:
    """Limits of this process; a limit that it has already stays when it is the lower one."""
    seconds = float(request["cpu_seconds"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process whatever it is doing, C code included
    signal.setitimer(signal.ITIMER_PROF, seconds)
    wanted = {
        resource.RLIMIT_AS: int(request["memory_bytes"]),
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: int(seconds) + 2,
    }
    for kind, value in wanted.items():  # the last because a library cannot switch it off
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))


def _compute(module: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            return {"value": module.JOBS[request["job"]](*request["arguments"])}
    except MemoryError:
        return {"fault": "memory", "detail": ""}
    except RecursionError:
        return {"fault": "depth", "detail": "too deep for Python"}
    except (ImportError, OSError, SystemError) as error:  # of this machine or its installation, rarely of the arguments
        return _fault("died", error)
    except Exception as error:
        return _fault("raised", error)
    except BaseException as error:  # by which a module says that the fault is its own
        return _fault("died", error)


def _fault(kind: str, error: BaseException) -> dict[str, Any]:
    try:
        text = str(error)
    except Exception:  # sympy's numbers may be too long to print
        text = ""
    return {"fault": kind, "detail": f"{type(error).__name__}: {text}"[:500]}


def _write(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest[:65536]) :]


if __name__ == "__main__":
    main()
