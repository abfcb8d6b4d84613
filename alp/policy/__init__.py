"""The method: perturbation, ratios, corrections, losses, diagnostics. Imports torch and nothing else of this project.

Names are imported at their first use: ``alp.policy.method``, which configurations read, needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budget import noise_budget
    from .correction import rollout_correction
    from .diagnostics import effective_sample_size, mismatch_diagnostics, ratio_diagnostics
    from .flatness import sharpness
    from .method import Correction, LossInputs, LossOutputs, Method, Perturbation
    from .objective import group_advantages, kl_penalty, policy_loss
    from .perturbation import LayerwisePerturbation
    from .ratio import log_ratio

_MODULES = {
    "budget": ["noise_budget"],
    "correction": ["rollout_correction"],
    "diagnostics": ["effective_sample_size", "mismatch_diagnostics", "ratio_diagnostics"],
    "method": ["Correction", "LossInputs", "LossOutputs", "Method", "Perturbation"],
    "objective": ["group_advantages", "kl_penalty", "policy_loss"],
    "perturbation": ["LayerwisePerturbation"],
    "ratio": ["log_ratio"],
    "flatness": ["sharpness"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Correction",
    "LayerwisePerturbation",
    "LossInputs",
    "LossOutputs",
    "Method",
    "Perturbation",
    "effective_sample_size",
    "group_advantages",
    "kl_penalty",
    "log_ratio",
    "mismatch_diagnostics",
    "noise_budget",
    "policy_loss",
    "ratio_diagnostics",
    "rollout_correction",
    "sharpness",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
