"""How processes end: with the one that started them, and not through the streams they write to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from alp.lifetime import StopRequest
from tests.signals import heard

JOB = "from alp.lifetime import end_with_parent; print(end_with_parent(), flush=True); import time; time.sleep(60)"


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("words", "follows"), [("export ALP_PARENT=$PPID ALP_SHELL=$$; exec", True), ("", False)])
def test_a_job_ends_with_the_workflow_that_started_it(words: str, follows: bool) -> None:
    """The parent starts a shell that becomes the job, as Snakemake does, says its number and is killed."""
    script = (
        f"import subprocess, sys\nchild = subprocess.Popen(['bash', '-c', '{words} {sys.executable} -c \"$JOB\"'],"
        " stdout=subprocess.PIPE, text=True)\nprint(child.pid, child.stdout.readline(), flush=True)\nchild.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | {"JOB": JOB}, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid, said = parent.stdout.readline().split()
    assert said == str(follows)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + (10 if follows else 1)
    while _alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _alive(int(pid)) is not follows
    if not follows:
        os.kill(int(pid), signal.SIGKILL)


@heard()
def test_a_signal_is_noted_and_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)
