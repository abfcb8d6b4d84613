"""Every hostile program, started by each user: nothing gets out, nothing stays, the next program notices nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sandbox.hostile import HOSTILE
from tests.sandbox.starting import ROOT, SECRET, Host, descendants, settles

ENDED = {  # what ends a program whose end is certain: a limit, or an exit code
    "fork_bomb": "cpu",
    "fork_chain": ("cpu", 0),
    "fork_and_wait": "cpu",
    "thread_bomb": "processes",
    "memory_bomb": "memory",
    "memory_at_once": "memory",
    "memory_of_many": "memory",
    "memory_shared": "memory",
    "power_tower": "cpu",
    "regular_expression": "cpu",
    "endless_loop": "cpu",
    "endless_sleep": "wall",
    "endless_output": "output",
    "endless_errors": "output",
    "ignored_signals": "cpu",
    "no_end_by_exception": "cpu",
    "end_in_finalizers": "wall",
    "processes_killed": (None, -9, 0),
    "parent_killed": (-9,),
    "scratch_filled": "scratch",
    "scratch_of_names": "scratch",
    "large_file": "file",
    "sparse_file": "file",
    "huge_traceback": "output",
    "crash": (-11,),
}
BYSTANDER = "import os, sys\nprint(6 * 7, os.getpid(), os.listdir('/tmp'), os.listdir('/dev/shm'), sys.stdin.read())"


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((entry.name, entry.stat(follow_symlinks=False).st_size) for entry in os.scandir(folder))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_contained(
    name: str, anyone: Host, places: Path, record_property: pytest.RecordProperty
) -> None:
    outside, shared = places / "outside", Path("/dev/shm")
    before = _listing(outside), _listing(shared), _listing(ROOT / "alp" / "tasks")
    code = HOSTILE[name].replace("{outside}", str(outside)).replace("{repository}", str(ROOT))
    result, first, second = anyone.run(code, BYSTANDER, BYSTANDER, stdin="in")
    said = result["stdout"] + result["stderr"]
    escaped = (
        "ESCAPED" in said
        or SECRET in said
        or before
        != (
            _listing(outside),
            _listing(shared),
            _listing(ROOT / "alp" / "tasks"),
        )
    )
    after = anyone.run(BYSTANDER, BYSTANDER, stdin="in")
    served = all(each["stdout"] == "42 2 [] [] in\n" and not each["stderr"] for each in (first, second, *after))
    left = not settles(lambda: len(descendants(anyone.process.pid)) <= _at_rest(anyone))
    record_property("hostile", [name, escaped, left])
    assert not escaped, said
    assert served
    assert not left, descendants(anyone.process.pid)
    if (expected := ENDED.get(name)) is not None:
        found = result["limit"] if isinstance(expected, str) else {result["limit"], result["exit_code"]}
        assert found == expected if isinstance(expected, str) else found & set(expected), result


@pytest.mark.parametrize(
    "name",
    ["environment_read", "secret_read", "repository_read", "processes_read", "sockets", "memory_without_a_process"],
)
def test_without_a_sandbox_it_gets_out(name: str, places: Path) -> None:
    """What the test above takes for an escape is one."""
    code = HOSTILE[name].replace("{outside}", str(places / "outside")).replace("{repository}", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"ALP_SECRET": SECRET}, cwd=places
    )
    assert "ESCAPED" in done.stdout or SECRET in done.stdout


def _at_rest(host: Host) -> int:
    """Processes of a host whose workers wait: for each two of bubblewrap, four of the worker and a namespace's first."""  # noqa: E501
    return 2 * (2 + 4)


def test_the_machine_is_at_rest_afterwards(anyone: Host) -> None:
    anyone.run(*[HOSTILE[name] for name in ("fork_bomb", "memory_of_many", "endless_output", "daemon")])
    assert settles(lambda: len(descendants(anyone.process.pid)) <= _at_rest(anyone))
    before = sum(descendants(anyone.process.pid).values())
    time.sleep(1)
    assert sum(descendants(anyone.process.pid).values()) - before < 0.1
