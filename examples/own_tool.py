"""A tool of one's own: a table that a model may look into between its turns.

    alp prepare task=mathematics_tools task.tools.tool=custom task.tools.module=examples.own_tool \
        'task.tools.options={table: {speed of light: 299792458}}' …

The module defines a class ``Tool``, made with ``task.tools.options``. A model asks by writing what stands between
``opens`` and ``closes``; what ``run`` gives comes back to it between ``before`` and ``after``. Nothing is kept from one
request to the next: what a tool says should depend on the request alone, or a resumed batch is not the one it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Tool:
    """Values by name, whatever the case."""

    opens, closes = "<look>", "</look>"
    before, after = "\n<value>", "</value>\n"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._table = {str(name).lower(): str(value) for name, value in options["table"].items()}

    def run(self, request: str) -> tuple[str, bool]:
        """The value, and whether there is one. Called from several threads."""
        name = request.strip().lower()
        return self._table.get(name, "unknown"), name in self._table
