"""An engine of the user's own (``rollout=custom``): a class ``Engine`` in a module of theirs, made with a ``Host`` and
the configured options (docs/rollout.md, ``alp.rollout.engine``).

It may have a class method ``check(options, folder)``, which refuses what cannot work before anything is computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alp.configuration.rollout_schema import CustomRollout
from alp.errors import UserError
from alp.rollout.engine import Engine, Host
from alp.tasks.custom import foreign_code, named

_NEEDED = ("tolerance", "generate", "sync_weights", "describe", "close")


class CustomEngine:
    """Makes engines of the user's class."""

    @classmethod
    def check(cls, settings: CustomRollout, folder: Path, group: str) -> None:
        """See ``alp.rollout.engine.Implementation``."""
        engine_class = _class(settings, group)
        if hasattr(engine_class, "check"):
            with foreign_code(f"{group}.options: {settings.module}.Engine.check fails"):
                engine_class.check(settings.options, folder)

    @classmethod
    def make(cls, settings: CustomRollout, host: Host) -> Engine:
        """See ``alp.rollout.engine.Implementation``."""
        with foreign_code(f"{host.group}.module: {settings.module}.Engine cannot be made"):
            engine: Engine = _class(settings, host.group)(host, settings.options)
        missing = [name for name in _NEEDED if not hasattr(engine, name)]
        if missing:
            raise UserError(f"{host.group}.module: {settings.module}.Engine has no {', '.join(missing)}")
        return engine


def _class(settings: CustomRollout, group: str) -> Any:
    if settings.module is None:
        raise UserError(
            f"{group}.module: name your module: {group}=custom {group}.module=my_package.my_module (docs/rollout.md)"
        )
    return named(f"{settings.module}.Engine", f"{group}.module")
