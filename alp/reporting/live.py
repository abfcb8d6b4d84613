"""MLflow, or another tracker, beside a job, in a process of its own: no job imports one, waits for one while it works,
or fails with one.

The process reads the job's files (:mod:`alp.reporting.tracking`, :mod:`alp.reporting.mirror`) whenever it is told a
word on its standard input: ``step``, and at the end ``finished`` or ``failed``. It ends with the job: the kernel kills
it, and elsewhere than on Linux the end of its input says so; then the run is left as it stands, for the next attempt to
go on with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from alp.lifetime import end_with, hold_standard_streams, unblock
from alp.reporting.trackers import is_tracker
from alp.reproducibility import ROOT

LOG = logging.getLogger("alp.reporting.tracking")
BETWEEN_SECONDS = 1.0  # two words about steps; the process itself logs more seldom
END_SECONDS = 300.0  # the longest that a job waits for the call under way, the last one, and a start of MLflow


class Follower:
    """The job's side: call :meth:`step` after every step and :meth:`close` at the end, also of a failed job.

    The process starts at the first step after which the folder says what the job is. Without a ``uri`` nothing happens.
    """

    def __init__(self, run_dir: Path, uri: str | None) -> None:
        self._run_dir, self._uri = run_dir, uri
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0

    def step(self) -> None:
        """Say that there is something new; never waits."""
        if self._uri is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + BETWEEN_SECONDS
        if self._process is None and (self._run_dir / "config.yaml").is_file():
            self._process = _start("training", self._run_dir, self._uri)
        elif self._process is not None:
            _tell(self._process, "step")

    def close(self, *, finished: bool) -> None:
        """Have the last call made and wait for it, within limits. A job that was refused before its first step leaves
        MLflow alone."""
        if self._process is None or self._uri is None:
            return
        if self._process.poll() is not None:  # somebody ended it
            self._process = _start("training", self._run_dir, self._uri)
        if self._process is not None:
            _tell(self._process, "finished" if finished else "failed")
            _wait(self._process, self._run_dir, self._uri)


class Followers:
    """One for each place that shows the job; MLflow's may be None."""

    def __init__(self, run_dir: Path, uris: Iterable[str | None]) -> None:
        self._all = [Follower(run_dir, uri) for uri in uris]

    def step(self) -> None:
        """See Follower."""
        for follower in self._all:
            follower.step()

    def close(self, *, finished: bool) -> None:
        """See Follower."""
        for follower in self._all:
            follower.close(finished=finished)


def add_evaluation(run_dir: Path, uri: str | None) -> None:
    """Bring a trained folder's evaluations into its run; waits for it, within limits."""
    if uri is not None and (process := _start("evaluation", run_dir, uri)) is not None:
        _wait(process, run_dir, uri)


def _start(kind: str, run_dir: Path, uri: str) -> subprocess.Popen[bytes] | None:
    """The process; None, and a warning, where the system has no room for one."""
    command = [sys.executable, "-P", "-m", "alp.reporting.live", kind, str(run_dir), uri, str(os.getpid())]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C is the job's: it says how it ended
        )
    except OSError as error:
        LOG.warning("%s is not told of %s, everything else goes on: %s", _called(uri), run_dir, error)
        return None
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


def _called(uri: str) -> str:
    return uri.partition(":")[0] if is_tracker(uri) else "MLflow"


def _tell(process: subprocess.Popen[bytes], word: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it is gone, or does not read
        process.stdin.write(f"{word}\n".encode())


def _wait(process: subprocess.Popen[bytes], run_dir: Path, uri: str) -> None:
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        LOG.warning("%s is behind the files of %s: no answer within %.0f s", _called(uri), run_dir, END_SECONDS)
    finally:
        assert process.stdin is not None
        process.stdin.close()


def main(kind: str, run_dir: Path, uri: str) -> None:
    """The process's side: log what the job's files say whenever a word comes."""
    from alp.reporting import mirror, tracking

    if kind == "evaluation" and not is_tracker(uri):
        tracking.sync_evaluation(run_dir, uri=uri)
        return
    view = mirror.Mirror if is_tracker(uri) else tracking.Live
    try:
        live = view(run_dir, uri=uri, **tracking.describe(run_dir))
    except Exception as error:  # files of a job that was replaced meanwhile
        LOG.warning(mirror.BEHIND, _called(uri), run_dir, f"{type(error).__name__}: {error}")
        return
    if isinstance(live, mirror.Mirror) and kind == "evaluation":
        live.conclude()
        return
    for line in sys.stdin:
        if line == "step\n":
            live.step()
        else:
            live.close(finished=line == "finished\n")
            return


if __name__ == "__main__":
    hold_standard_streams()
    end_with(int(sys.argv[4]), signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to everything that a job started: how it ended is the job's to say
    sys.stderr = unblock(sys.stderr, 2)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    os._exit(0)  # a call that still hangs is left behind
