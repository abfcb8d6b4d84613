"""Nothing of a sandbox outlives who made it, however that ends, and a worker that goes costs no result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alp import cli
from alp.errors import SandboxError, SandboxUnavailable
from alp.tasks import sandbox_process
from alp.tasks.sandbox import Sandbox
from tests.sandbox.starting import ROOT, USERS, descendants, host, settles, why_not_as
from tests.signals import heard

ENDLESS = "import os\nos.fork()\nwhile True: pass"


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("user", USERS)
def test_a_killed_owner_leaves_no_process(user: str, places: Path) -> None:
    if why := why_not_as(user):
        pytest.skip(why)
    with host(user, places, {"least_wall_seconds": 60.0}) as one, ThreadPoolExecutor(1) as threads:
        threads.submit(one.run, ENDLESS, ENDLESS, timeout=60.0)
        assert settles(
            lambda: len(descendants(one.process.pid)) >= 2 * (2 + 4 + 2)
        )  # both programs run, and have forked
        below = list(descendants(one.process.pid))
        one.process.kill()
        assert settles(lambda: not _alive(below))


def test_an_owner_with_a_fork_that_goes_on_leaves_no_process() -> None:
    """The fork keeps no socket of the sandbox open, and closes none."""
    code = (
        "import os, time\nfrom alp.tasks.sandbox import Sandbox\nbox = Sandbox(workers=1)\n"
        "fork = os.fork()\nif not fork:\n    time.sleep(3)\n    os._exit(0)\n"
        "print(box.run('print(1)').stdout.strip(), box.workers[0].pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        said, pid = process.stdout.readline().split()
        assert said == "1"
        assert settles(lambda: not _alive([int(pid)]), 2.0)


def test_an_interrupt_in_the_middle_costs_nothing_but_the_program() -> None:
    with heard(), Sandbox(workers=1) as box:
        assert box.run("print(1)").stdout == "1\n"
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            box.run("import time; time.sleep(60)", timeout=60.0)
        assert box.run("print(2)").stdout == "2\n"


def test_an_exception_ends_the_sandbox() -> None:
    others = set(descendants(os.getpid()))  # the suite's own sandboxes
    with pytest.raises(ZeroDivisionError), Sandbox(workers=2) as box:  # noqa: PT012 - what is raised inside
        below = [pid for pid in descendants(os.getpid()) if pid not in others]
        assert len(below) >= 2 * (2 + 4)
        raise ZeroDivisionError
    assert not _alive([worker.pid for worker in box.workers if worker.pid])
    assert settles(lambda: not _alive(below))
    with pytest.raises(SandboxError, match="closed"):
        box.run("print(1)")


def test_fifty_sandboxes_leave_no_handle_thread_or_process() -> None:
    def held() -> tuple[int, int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(descendants(os.getpid()))

    Sandbox(workers=1).close()
    before = held()
    for number in range(50):
        with Sandbox(workers=1) as box:
            if number % 10 == 0:
                assert box.run(f"print({number})").stdout == f"{number}\n"
    assert held() == before


def test_threads_that_come_and_go_keep_their_sandboxes() -> None:
    """What the kernel ends with its parent it ends with the parent's thread."""
    with Sandbox(workers=1) as box:
        os.kill(_standing(box)[0], signal.SIGKILL)
        for number in range(3):
            thread = threading.Thread(target=box.run, args=("print(1)",))
            thread.start()
            thread.join()
            assert box.run(f"print({number})").stdout == f"{number}\n"
        assert box.counts["lost"] <= 1


def test_a_worker_that_is_killed_costs_no_result() -> None:
    """Each of its five processes in turn, in the middle of programs; not one program's worker again and again, which is
    a broken sandbox."""
    with Sandbox(workers=2) as box, ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(box.run, f"import time; time.sleep(0.05); print({n})", "", 20.0) for n in range(60)]
        for place in range(5):
            assert settles(lambda: len(_standing(box)) >= 5, 20.0)
            done = sum(job.done() for job in jobs)
            os.kill(_standing(box)[place], signal.SIGKILL)
            assert settles(lambda done=done: sum(job.done() for job in jobs) >= done + 6, 20.0)
        assert [job.result().stdout for job in jobs] == [f"{n}\n" for n in range(60)]


def _standing(box: Sandbox) -> list[int]:
    """The first worker's processes, the oldest first."""
    pid = box.workers[0].pid
    return [pid, *sorted(descendants(pid))] if pid else []


def test_a_sandbox_that_cannot_work_is_broken_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(workers=1) as box:
        os.kill(_standing(box)[0], signal.SIGKILL)
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(SandboxError, match=r"the sandbox is broken: .*bubblewrap"):
            box.run("print(1)")


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable, match="needs bubblewrap, and there is no bwrap here: make sandbox"):
        Sandbox()

    def verb(words: list[str]) -> int:
        with Sandbox() as box:
            return box.run("print(1)").exit_code

    monkeypatch.setattr(cli, "_dispatch", verb)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_where_namespaces_are_forbidden_nothing_runs(places: Path) -> None:
    before = ("bwrap", "--dev-bind", "/", "/", "--unshare-user", "--uid", "1000", "--disable-userns")
    with host("here", places, before=before) as one:
        assert "the sandbox does not start: " in one.begun["refused"]


def test_a_guard_that_cannot_be_put_up_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that the kernel does not take: the program does not begin."""
    monkeypatch.setattr(sandbox_process.sandbox_filter, "assemble", lambda _: bytes(8))
    with Sandbox(workers=1) as box, pytest.raises(SandboxError, match=r"prctl: Invalid argument"):
        box.run("print('unguarded')")


def test_a_batch_runs_beside_other_work() -> None:
    """More calls than workers wait for one, in whatever thread."""
    done: list[Any] = []
    with Sandbox(workers=2) as box, ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(box.run, f"print({n} ** 2)", "", 20.0) for n in range(50)]
        done = [job.result().stdout for job in jobs]
    assert done == [f"{n**2}\n" for n in range(50)]
