"""Sandboxes started as root and as an ordinary user, and what is to be seen of them from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from alp.errors import UserError
from alp.tasks.sandbox import Sandbox

ROOT = Path(__file__).resolve().parents[2]
SECRET = "the-secret-of-this-machine"
USERS = ("root", "user")
_NOBODY = "65534"
_AS_USER = """
mount --bind "$1" "$3" && mount --bind "$2" "$4" || exit 9
export PYTHONPATH="$4" LD_LIBRARY_PATH="$3/lib"
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$3/bin/$5" -P "$4/tests/sandbox/host.py" "$6"
"""
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


@cache
def why_not() -> str | None:
    """Why the suite cannot run here."""
    try:
        Sandbox(workers=1).close()
    except UserError as error:
        return str(error)
    return None


@cache
def why_not_as(user: str) -> str | None:
    """Why it cannot run as that user."""
    if user == "root" and os.geteuid() != 0:
        return "the suite was not started as root"
    return None


class Host:
    """A running ``host.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.begun = json.loads(process.stdout.readline() or '{"refused": "no word from the host"}')

    def run(self, *codes: str, stdin: str = "", timeout: float = 0.5) -> list[dict[str, Any]]:
        """The programs' results, run side by side."""
        return self.ask([[code, stdin] for code in codes], timeout)["results"]

    def ask(self, programs: list[list[str]], timeout: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"programs": programs, "timeout": timeout}), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextmanager
def host(user: str, places: Path, limits: dict[str, Any] | None = None, before: tuple[str, ...] = ()) -> Iterator[Host]:
    """``host.py`` of that user; ``places`` is a folder that everybody may enter. ``before``: words that start it."""
    script, words = str(ROOT / "tests" / "sandbox" / "host.py"), json.dumps(limits or {})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "ALP_SECRET": SECRET}
    command = [*before, sys.executable, "-P", script, words]
    if user == "user" and os.geteuid() == 0:
        python, code = places / "python", places / "code"
        for folder in (python, code):
            folder.mkdir(exist_ok=True)
        command = ["unshare", "-m", "sh", "-c", _AS_USER, "sh", sys.base_prefix, str(ROOT), str(python), str(code)]
        command += [_VERSION, words]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment, cwd="/")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Host(process)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def descendants(pid: int) -> dict[int, float]:
    """CPU seconds of every process below one, by its number."""
    parents, spent = {}, {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = (
                Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            )
        except OSError:
            continue
        parents[int(entry)] = int(fields[1])
        spent[int(entry)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found: set[int] = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {each: spent[each] for each in found - {pid}}


def settles(condition: Any, seconds: float = 5.0) -> bool:
    """Whether it becomes true soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
