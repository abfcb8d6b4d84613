"""Every limit holds, to the number where there is one, whoever started the sandbox; senseless ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alp.errors import UserError
from alp.tasks.sandbox import Limits, Sandbox
from tests.sandbox.starting import USERS, Host, host, why_not_as

MEBI = 2**20
COUNT = """
import os, time
n = 1
try:
    while os.fork():
        n += 1
    time.sleep(60)
except BlockingIOError:
    print(n)
"""
THREADS = """
import threading, time
n = 1
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        n += 1
except RuntimeError:
    print(n)
"""
LARGEST = """
import os
low, high = 0, 2**31
while high - low > 4096:
    middle = (low + high) // 2
    try:
        {use}
        low = middle
    except (MemoryError, OSError):
        high = middle
print(low)
"""


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("processes", [1, 2, 20])
def test_processes_and_threads_are_counted_to_the_last(user: str, processes: int, places: Path) -> None:
    if why := why_not_as(user):
        pytest.skip(why)
    with host(user, places, {"processes": processes}) as one:
        forks, threads, both = one.run(COUNT, THREADS, COUNT)
        assert [int(each["stdout"] or 0) for each in (forks, threads, both)] == [processes] * 3
        uncaught = one.run("import os\nwhile os.fork(): pass\nimport time; time.sleep(60)")[0]
        assert uncaught["limit"] == "processes"
        assert "BlockingIOError" in uncaught["stderr"]


def test_memory_of_one_process(anyone: Host) -> None:
    largest = int(anyone.run(LARGEST.format(use="bytearray(middle)"), timeout=20)[0]["stdout"])
    assert 250 * MEBI < largest <= 256 * MEBI
    over = anyone.run("bytearray(256 * 2**20)")[0]
    assert (over["limit"], over["exit_code"]) == ("memory", 1)
    caught = anyone.run("try:\n bytearray(2**40)\nexcept MemoryError:\n print('no')")[0]
    assert (caught["limit"], caught["exit_code"], caught["stdout"]) == (None, 0, "no\n")


def test_memory_of_all_processes_together(anyone: Host) -> None:
    """What they share counts once."""
    one = "import os, time\nkept = bytearray(b'x') * (150 * 2**20)\nfor _ in range(2): os.fork()\ntime.sleep(0.3)\n"
    each = "import os, time\nfor _ in range(2): os.fork()\nkept = bytearray(b'x') * (150 * 2**20)\ntime.sleep(60)\n"
    shared, own = anyone.run(one, each, timeout=10)
    assert (shared["limit"], shared["exit_code"]) == (None, 0)
    assert (own["limit"], own["exit_code"]) == ("memory", -9)


def test_size_of_a_file_and_of_all_files(places: Path) -> None:
    limits = {"file_bytes": 8 * MEBI, "scratch_bytes": 20 * MEBI, "scratch_files": 100}
    write = "open('a', 'wb', buffering=0).write(bytes({}))"
    with Sandbox(workers=1, limits=Limits(**limits)) as box:
        assert box.run(write.format(8 * MEBI)).exit_code == 0
        assert box.run(f"print({write.format(8 * MEBI + 1)})").stdout == f"{8 * MEBI}\n"
        assert box.run(f"f = {write.format(8 * MEBI)}\nopen('a', 'ab', buffering=0).write(b'x')").limit == "file"
        many = "for n in range(3): open(str(n), 'wb', buffering=0).write(bytes(8 * 2**20))\nopen('3', 'wb').write(bytes(9**5))"  # noqa: E501
        assert box.run(many).limit == "scratch"
        assert box.run("for n in range(99): open(str(n), 'w')").exit_code == 0
        assert box.run("for n in range(101): open(str(n), 'w')").limit == "scratch"


def test_output_is_kept_to_the_byte(anyone: Host) -> None:
    for stream, other in (("stdout", "stderr"), ("stderr", "stdout")):
        write = f"import sys; sys.{stream}.write('x' * {{}}); sys.{stream}.flush()"
        whole, over = anyone.run(write.format(MEBI), write.format(MEBI + 1))
        assert (len(whole[stream]), whole["limit"], whole["exit_code"]) == (MEBI, None, 0)
        assert (over[stream], over["limit"], over["timed_out"]) == ("x" * MEBI, "output", False)
        assert over[other] == ""


def test_cpu_time_of_all_processes_decides(anyone: Host) -> None:
    loop = "import os\nfor _ in range({}): os.fork()\nwhile True: pass"
    for forks in (0, 3):
        result = anyone.run(loop.format(forks), timeout=0.4)[0]
        assert (result["limit"], result["timed_out"], result["exit_code"]) == ("cpu", True, -9)
    ended = "import os\nfor _ in range(1000):\n if not os.fork():\n  sum(range(10**6))\n  os._exit(0)\n os.wait()"
    assert anyone.run(ended, timeout=0.4)[0]["limit"] == "cpu"


def test_cpu_time_is_the_programs_whatever_else_runs() -> None:
    """Four programs of 0.4 s of CPU time side by side with 1 s each; wall time is long enough for all of them."""
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint('done')"
    with Sandbox(workers=4, limits=Limits(wall_factor=30.0)) as box:
        jobs = [box.run(code, timeout=1.0) for _ in range(2)]
        assert [(job.stdout, job.limit) for job in jobs] == [("done\n", None)] * 2


def test_the_clock_of_the_wall_is_tried_again_alone_and_counted(places: Path) -> None:
    with host("root" if not why_not_as("root") else "user", places, {"least_wall_seconds": 0.5}) as one:
        answer = one.ask([["import time; time.sleep(60)", ""], ["print(1)", ""]], 0.1)
    assert [(each["limit"], each["timed_out"]) for each in answer["results"]] == [("wall", True), (None, False)]
    assert answer["counts"] == {"programs": 2, "again": 1, "wall": 1}


def test_a_program_ended_by_someone_else_is_tried_again_alone() -> None:
    """The kernel ends a process by SIGKILL where memory is short, which is no result."""
    with Sandbox(workers=1) as box:
        assert box.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").exit_code == -9
        assert box.counts == {"programs": 1, "again": 1}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("memory_bytes", 1000, "memory_bytes: 1000 is out of range; the nearest is 16777216"),
        ("processes", 0, "processes: 0 is out of range; the nearest is 1"),
        ("processes", 10**6, "the nearest is 4096"),
        ("processes", 2.0, "processes: 2.0 is no whole number"),
        ("processes", True, "no whole number"),
        ("output_bytes", -1, "the nearest is 1"),
        ("scratch_files", "many", "no whole number"),
        ("file_bytes", None, "no whole number"),
        ("wall_factor", float("nan"), "no positive number"),
        ("wall_factor", 0.5, "less than 1"),
        ("least_wall_seconds", float("inf"), "no positive number"),
    ],
)
def test_limits_that_make_no_sense_are_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Limits(**{name: value})


def test_what_else_makes_no_sense_is_refused() -> None:
    for workers in (0, -1, 1.5, True, 1000):
        with pytest.raises(UserError, match="the sandbox's workers"):
            Sandbox(workers=workers)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'nosuch' is no installed package"):
        Sandbox(libraries=("nosuch",))
    with Sandbox(workers=1) as box:
        for timeout in (0, -1.0, float("nan"), float("inf"), 1e9, True):
            with pytest.raises(UserError, match="the sandbox's timeout"):
                box.run("print(1)", timeout=timeout)
