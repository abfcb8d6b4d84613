"""The process of an engine seen from the trainer: started in a temporary folder of its own, talked to, and certainly
ended.

``EngineLost`` says how it went. Nothing here knows which engine it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from alp.ranks import apart
from alp.reproducibility import ROOT, note
from alp.rollout.wire import Channel, Closed, TimedOut

Result = TypeVar("Result")
_PATIENCE = 10.0  # seconds for an orderly end
# Deaths by the process's own doing: the same start ends the same way.
_CERTAIN = tuple(getattr(signal, f"SIG{name}") for name in ("ILL", "SEGV", "BUS", "FPE", "ABRT", "TRAP", "SYS"))
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")  # what kernels are chosen by
# Bytes of a folder in which programs can make Unix sockets: the kernel allows 108 with the name in it.
_SOCKET_NAME = 60


class EngineLost(Exception):
    """The engine process died, hung, or failed at what it was asked: a new one may do better. ``code``: minus the
    signal, or exit code."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code

    @property
    def certain(self) -> bool:
        """Whether a new process in its place would end likewise."""
        return self.code is not None and (self.code > 0 or -self.code in _CERTAIN)

    @property
    def killed(self) -> bool:
        """Whether someone else ended it: the kernel, short of memory, or a user."""
        return self.code == -signal.SIGKILL


def cpu() -> str:
    """Model and the flags that matter to inference engines, as Linux names them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "CPU unknown"
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    present = [flag for flag in _FLAGS if flags and flag in flags[1].split()]
    return f"CPU {model[1].strip() if model else 'unknown'} with {' '.join(present) or 'none of ' + ' '.join(_FLAGS)}"


def last_line(log: Path) -> str:
    """What a process said last."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "it said nothing"
    return "it said nothing"


class Process:
    """The engine process, the channel to it, its temporary folder (mode 0700, in ``scratch`` or the system's), and its
    certain end.

    ``module`` is run with Python and serves (``alp.rollout.serving``); ``environment`` is added to this process's.
    ``sockets``: it makes Unix sockets in its temporary folder. ``memory``: descriptor of memory that it shares.
    """

    def __init__(
        self,
        module: str,
        *,
        name: str,
        log: Path,
        environment: dict[str, str],
        scratch: Path | None = None,
        sockets: bool = False,
        memory: int | None = None,
    ) -> None:
        if scratch is not None and sockets and len(os.fsencode(scratch.absolute())) > _SOCKET_NAME:
            scratch = None
        self.folder = Path(tempfile.mkdtemp(prefix=f"alp-{name}-", dir=scratch)).absolute()
        log.parent.mkdir(parents=True, exist_ok=True)
        note(log)
        trainer_end, engine_end = socket.socketpair()
        try:
            with log.open("ab") as output, engine_end:
                inherited = [engine_end.fileno(), *([] if memory is None else [memory])]
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, str(os.getpid()), *map(str, inherited)],
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(environment, self.folder),
                    # an interrupt at the terminal is the trainer's to handle; its own children end with its group
                    start_new_session=True,
                )
        except BaseException:
            trainer_end.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._channel = Channel(trainer_end)
        # At the latest when the interpreter ends: a trainer that dies without ending takes it along
        # (serving.end_with).
        self._finalizer = weakref.finalize(self, _kill, self._process, self.folder)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, header: dict[str, Any], limit: float, tensors: dict[str, Tensor] | None = None) -> int:
        """Bytes of the tensors sent. Raises EngineLost."""
        return self._guarded(lambda: self._channel.send(header, tensors, deadline=time.monotonic() + limit), limit)

    def receive(self, limit: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The next answer. Raises EngineLost."""
        return self._guarded(lambda: self._channel.receive(deadline=time.monotonic() + limit), limit)

    def _guarded(self, action: Callable[[], Result], limit: float) -> Result:
        try:
            return action()
        except TimedOut:
            raise EngineLost(f"no answer in {limit:g} s") from None
        except Closed as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
            code = self._process.returncode
            how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
            raise EngineLost(f"{error}, {how}", code) from None

    def stop(self) -> None:
        """Ask it to end, then make sure."""
        with contextlib.suppress(Closed, TimedOut, subprocess.TimeoutExpired):
            self._channel.send({"operation": "stop"}, deadline=time.monotonic() + _PATIENCE)
            self._process.wait(_PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End it now, its group with it; its temporary folder goes too."""
        self._channel.close()
        self._finalizer()


def _kill(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _environment(added: dict[str, str], folder: Path) -> dict[str, str]:
    """This code first on the Python path, temporary files in the process's own folder alone; no rank of a job."""
    return (
        apart(os.environ)
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
        }
        | added
    )
