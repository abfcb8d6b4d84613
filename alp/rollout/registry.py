"""Engines by name. A new one is a module, a schema class (``alp.configuration.rollout_schema``) and a line here.

Lazy: neither importing this nor making one engine imports the code of another.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alp.configuration.rollout_schema import EngineSettings
    from alp.rollout.engine import Engine, Host, Implementation

ENGINES = {
    "hf": "alp.rollout.hf:HFEngine",
    "vllm": "alp.rollout.vllm:VLLMEngine",
    "custom": "alp.rollout.custom:CustomEngine",
}


def implementation(settings: EngineSettings) -> Implementation:
    """What makes the engine of a configuration."""
    module, _, name = ENGINES[settings.engine].partition(":")
    named: Implementation = getattr(importlib.import_module(module), name)
    return named


def check(settings: EngineSettings, folder: Path, group: str = "rollout") -> None:
    """Refuse, before anything is computed, an engine that is not installed or cannot do what is asked of it with the
    model in ``folder``. Raises UserError."""
    implementation(settings).check(settings, folder, group)


def make(settings: EngineSettings, host: Host) -> Engine:
    """The engine of a configuration; its first sync is followed by the probe (``alp.rollout.probe``)."""
    from alp.rollout.probe import Probed

    engine = implementation(settings).make(settings, host)
    return Probed(engine, host, name=settings.engine, temperature=settings.temperature)


def log_name(settings: EngineSettings, prefix: str = "") -> str:
    """The file that takes what an engine process prints."""
    return f"{prefix}{settings.engine}.log"


def log_names(prefix: str = "") -> list[str]:
    """That file of every engine."""
    return [f"{prefix}{name}.log" for name in ENGINES]
