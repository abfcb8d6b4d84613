"""What was active in a run, by its own record, as cells of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from alp.foreign import reading
from alp.policy.method import Correction
from alp.reporting import records
from alp.reporting.arms import build_command, label
from alp.reporting.runs import Results

SETTINGS = (
    "Numerator",
    "Denominator",
    "Level",
    "Clip range",
    "Dual clip",
    "Correction",
    "Noise",
    "Rollout",
    "Training",
)


def settings(loaded: Results, name: str, folder: Path) -> list[str]:
    """What was active in the arm's first seed, by its own record: name and one cell per entry of ``SETTINGS``."""
    path = folder / "active.json"
    active = records.read_json(path, build_command(loaded.grid))
    with reading("results", path):
        return [label(name), *_cells(active)]


def _cells(active: dict[str, Any]) -> list[str]:
    low, high = active.get("clip_low"), active.get("clip_high")
    clip = f"[{1 - low:.6g}, {1 + high:.6g}]" if low is not None and high is not None else _loss(active)
    cells = [active.get(key) for key in ("numerator", "denominator", "level")]
    cells += [clip, active.get("dual_clip"), _corrections(active.get("corrections"))]
    cells.append(_noise(active.get("perturbation")))
    cells += [_rollout(active), active.get("train_dtype")]
    return ["–" if cell in (None, "") else f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells]


def _loss(active: dict[str, Any]) -> str | None:
    """What stands where a loss has no clip range: its name and its own settings."""
    name = active.get("loss_form")
    if name is None:
        return None
    options = [f"{key} {value:g}" for key, value in (active.get("loss_options") or {}).items()]
    options += [f"+ {active['log_square']:g} log² r"] if active.get("log_square") else []
    return f"none: {name}" + (f" ({', '.join(options)})" if options else "")


def _rollout(active: dict[str, Any]) -> str:
    words = [str(active[key]) for key in ("engine", "rollout_dtype") if active.get(key) is not None]
    words += ["quantised weights"] if active.get("quantised_weights") else []
    words += [f"weight noise {active['weight_noise']:g}"] if active.get("weight_noise") else []
    return ", ".join(words)


def _corrections(value: Any) -> str:
    if not isinstance(value, list):
        return str(value or "none")
    return " and ".join(map(_correction, value)) or "none"


def _correction(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    if value.get("kind", "none") == "none":
        return "none" if value.get("veto") is None else f"veto below {value['veto']:g}"
    low, high = value.get("lower"), value.get("upper")
    bounds = f"at {high:g}" if low is None else f"to [{low:g}, {high:g}]"
    veto = "" if value.get("veto") is None else f", veto below {value['veto']:g}"
    plain = {setting.name: setting.default for setting in fields(Correction)}
    more = [f"{name} {value[name]}" for name in _REFINED if value.get(name, plain[name]) != plain[name]]
    return f"{value['kind']} per {value.get('level', '?')} {bounds}{veto}" + (f" ({', '.join(more)})" if more else "")


_REFINED = ("between", "statistic", "reduce", "weight", "when", "batch_normalise")  # shown where they say something


def _noise(value: Any) -> str:
    if not isinstance(value, Mapping) or value.get("hooks") == 0 or not value.get("std"):
        return "none"
    relative = value.get("scale") == "relative"
    words = [f"{'c₀' if relative else 'σ₀'} = {value['std']:g}{' of the RMS' if relative else ''}"]
    words.append("learned" if value.get("learnable") else "fixed")
    words += [f"decay {value['weight_decay']:g}"] if value.get("weight_decay") else []
    words += ["in the global norm"] if value.get("in_global_norm") else []
    words += ["in the hidden dtype"] if value.get("dtype") == "hidden" else []
    return ", ".join([*words, f"layers {_layers(value.get('layers'))}"])


def _layers(value: Any) -> str:
    """``0–27`` for a band of layers, else what was recorded."""
    if not isinstance(value, list):
        return str(value)
    if (
        len(value) > 2
        and all(isinstance(layer, int) for layer in value)
        and value == list(range(value[0], value[-1] + 1))
    ):
        return f"{value[0]}–{value[-1]}"
    return ", ".join(map(str, value))
