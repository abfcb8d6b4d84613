"""The method: perturbation, ratios, corrections, objective, diagnostics. Imports torch and nothing else of this
project."""

from .correction import rollout_correction
from .diagnostics import effective_sample_size, mismatch_diagnostics, ratio_diagnostics
from .objective import group_advantages, kl_penalty, policy_loss
from .perturbation import LayerwisePerturbation
from .ratio import log_ratio
from .sharpness import sharpness

__all__ = [
    "LayerwisePerturbation",
    "effective_sample_size",
    "group_advantages",
    "kl_penalty",
    "log_ratio",
    "mismatch_diagnostics",
    "policy_loss",
    "ratio_diagnostics",
    "rollout_correction",
    "sharpness",
]
