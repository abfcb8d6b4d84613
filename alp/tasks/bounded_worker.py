"""The other end of :mod:`alp.tasks.bounded`: answers each request in a fork of its own, which alone can be hurt by it.

``python -m alp.tasks.bounded_worker`` reads ``{"job", "arguments", "cpu_seconds", "memory_bytes"}`` a line and answers ``{"value"}`` or
``{"fault"}``. A fork has its time limit in CPU seconds, so that a loaded machine changes no verdict, and a limit on its address space;
what it leaves behind in caches dies with it, so that no answer depends on the ones before. The worker ends when its input does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from typing import Any

_LONGEST_ANSWER = 64 * 1024 * 1024  # bytes


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes the pipe
    requests, answers = sys.stdin.buffer, os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    for line in requests:
        request = json.loads(line)
        try:
            module = importlib.import_module(request["module"])
            if hasattr(module, "warm"):
                module.warm(request["job"], request["arguments"])
            answer = _forked(module, request)
        except Exception as error:
            answer = json.dumps({"fault": f"{type(error).__name__}: {error}"[:500]}).encode()
        os.write(answers, len(answer).to_bytes(8, "little"))
        for start in range(0, len(answer), 65536):
            os.write(answers, answer[start : start + 65536])


def _forked(module: Any, request: dict[str, Any]) -> bytes:
    """What a fork makes of the request."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            _limit(request)
            _send(writing, _compute(module, request))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        answer = stream.read(_LONGEST_ANSWER)
    _, status = os.waitpid(child, 0)
    if answer and status == 0:
        return answer
    out_of_time = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGXCPU)
    fault = "time" if out_of_time else "died"
    return json.dumps({"fault": fault}).encode()


def _limit(request: dict[str, Any]) -> None:
    memory = int(request["memory_bytes"])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = float(request["cpu_seconds"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process whatever it is doing, C code included
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 2, int(seconds) + 2))  # a library cannot switch this one off


def _compute(module: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            return {"value": module.JOBS[request["job"]](*request["arguments"])}
    except MemoryError:
        return {"fault": "memory"}
    except RecursionError:
        return {"fault": "depth"}
    except Exception as error:
        return {"fault": f"{type(error).__name__}: {error}"[:500]}


def _send(writing: int, value: dict[str, Any]) -> None:
    content = json.dumps(value).encode()
    for start in range(0, len(content), 65536):
        os.write(writing, content[start : start + 65536])


if __name__ == "__main__":
    main()
