"""Python as a tool: a fenced block is run in the sandbox (docs/sandbox.md), what it prints comes back.

Every program is run by itself: nothing of an earlier turn's is left, so what a program says depends on its text alone.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from alp.configuration.tool_schema import Tools
from alp.tasks.environment import CODE
from alp.tasks.sandbox import Limits, Result, Sandbox
from alp.tasks.sandbox_process import find_bubblewrap
from alp.tasks.tool_loop import Said

logger = logging.getLogger(__name__)
_SILENT = "(no output)"


class PythonTool:
    """Programs in a sandbox of ``settings.workers`` workers, which is opened by the first of them."""

    form = CODE
    before, after = "\n```output\n", "\n```\n"

    def __init__(self, settings: Tools) -> None:
        self._settings = settings
        self._limits = Limits()
        self._sandbox: Sandbox | None = None
        self._opening = threading.Lock()

    def check(self) -> None:
        """See Environment. Raises SandboxUnavailable where there is no sandbox on this machine."""
        find_bubblewrap()

    def run(self, request: str) -> Said:
        """What a program printed. One that fails says its error's last line too, one that met a limit which. Raises
        SandboxError where the sandbox is broken."""
        result = self._open().run(request, timeout=self._settings.timeout)
        return Said(_said(result), valid=result.exit_code == 0 and result.limit is None)

    def describe(self) -> dict[str, Any]:
        """See Environment."""
        return {
            "tool": "python",
            "timeout": self._settings.timeout,
            "libraries": self._settings.libraries,
            "memory_bytes": self._limits.memory_bytes,
        }

    def close(self) -> None:
        """See Environment; the log says where the machine's clock ended a program."""
        with self._opening:
            sandbox, self._sandbox = self._sandbox, None
        if sandbox is None:
            return
        sandbox.close()
        again = sandbox.counts["again"] + sandbox.counts["lost"]
        (logger.warning if sandbox.counts["wall"] else logger.info)(
            "the sandbox ran %d programs, %d of them again alone; the clock of the wall ended %d",
            sandbox.counts["programs"],
            again,
            sandbox.counts["wall"],
        )

    def _open(self) -> Sandbox:
        with self._opening:
            if self._sandbox is None:
                settings = self._settings
                self._sandbox = Sandbox(settings.workers, self._limits, libraries=tuple(settings.libraries))
            return self._sandbox


def _said(result: Result) -> str:
    """What a model is told of how its program ended."""
    parts = [result.stdout.rstrip("\n")]
    if result.limit is not None:
        parts.append(f"(stopped: limit of {result.limit})")
    elif result.exit_code:
        parts.append(result.stderr.rstrip("\n").rpartition("\n")[2] or f"(exit code {result.exit_code})")
    return "\n".join(part for part in parts if part) or _SILENT
