"""A tool of the user's own, by dotted path (``task.tools.tool=custom``; docs/tools.md). Whatever it raises is one
line."""

from __future__ import annotations

from typing import Any

from alp.configuration.tool_schema import Tools
from alp.errors import UserError
from alp.tasks.custom import foreign_code, named
from alp.tasks.environment import Form
from alp.tasks.tool_loop import Said

_KEY = "task.tools.module"


class OwnTool:
    """The user's class ``Tool``, made with ``task.tools.options``: it has ``opens`` and ``closes`` (texts around a
    request), perhaps ``before`` and ``after`` (texts around what it says), and ``run(request)``, which gives the
    output, or the output and whether the request was valid."""

    def __init__(self, settings: Tools) -> None:
        self._module = settings.module
        if settings.module is None:
            raise UserError(f"{_KEY}: name your module: task.tools.module=my_package.my_module (docs/tools.md)")
        make = named(f"{settings.module}.Tool", _KEY)
        with foreign_code(f"{_KEY}: {settings.module}.Tool cannot be made with task.tools.options"):
            self._tool = make(settings.options)
        self.form = Form(self._text("opens"), self._text("closes"))
        self.before, self.after = self._text("before", "\n"), self._text("after", "\n")

    def _text(self, name: str, default: str | None = None) -> str:
        value = getattr(self._tool, name, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise UserError(f"{_KEY}: {self._module}.Tool needs {name}, a text")
        return value

    def check(self) -> None:
        """See Environment."""
        if not callable(getattr(self._tool, "run", None)):
            raise UserError(f"{_KEY}: {self._module}.Tool has no method run")

    def run(self, request: str) -> Said:
        """See Tool."""
        with foreign_code(f"{_KEY}: {self._module}.Tool.run fails"):
            said = self._tool.run(request)
        output, valid = said if isinstance(said, tuple) and len(said) == 2 else (said, True)
        if not isinstance(output, str) or not isinstance(valid, bool):
            raise UserError(
                f"{_KEY}: {self._module}.Tool.run must give a text, or a text and whether the request was valid"
            )
        return Said(output.encode("utf-8", "replace").decode(), valid)

    def describe(self) -> dict[str, Any]:
        """See Environment."""
        return {"tool": self._module}

    def close(self) -> None:
        """See Environment."""
        if callable(close := getattr(self._tool, "close", None)):
            with foreign_code(f"{_KEY}: {self._module}.Tool.close fails"):
                close()
