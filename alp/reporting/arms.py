"""What a grid file alone says about its arms, for people and for the choice of tables and figures: names, engines,
noise. Neither numpy, pandas nor plotting: the workflow asks before anything ran."""

from __future__ import annotations

import re

from alp.configuration import grid_file
from alp.configuration.grid import Arm, Grid, job_of
from alp.configuration.method_schema import Method

BASE = "base"
REFERENCES = ("grpo", "gspo")  # the method that differences are taken to: the first of them that a grid has
BYPASS = {"token": "token_bypass", "sequence": "seq_bypass"}

SHIPPED = frozenset(  # presets that are no user's own
    re.findall(
        r"\w+",
        "apmpo bapo bypass_pg_is ce_gppo cispo dapo dppo_kl dppo_tv dro geo_rs gmpo grpo grpo_unclipped gspo icepop "
        "ipo kpop luspo m2po opsm pspo sapo seq_alp seq_bypass seq_mask_tis seq_mask_trl seq_mis seq_tis so_grpo_ratio "
        "spo token_alp token_bypass token_mis token_tis topr trm_max_k2 trm_mean_k3 vespo veto",
    )
)

_ACRONYMS = frozenset(
    re.findall(
        r"\w+",
        "grpo gspo mis tis alp dapo luspo so trl rs opsm trm dppo tv kl ipo m2po pspo cispo pg is topr vespo dro "
        "sapo spo gmpo apmpo bapo ce gppo",
    )
)
_SPELT = {"icepop": "IcePop", "kpop": "KPop", "k2": "k2", "k3": "k3"}
_VARIANTS = {
    "sigma0": "σ₀ = 0",
    "fixed_sigma": "fixed σ",
    "relative": "relative σ",
    "skip_first": "not layer 0",
    "matched": "σ₀ as the mismatch",
    "lr_tenth": "σ at a tenth of the rate",
    "authors": "authors' σ",
    "clip_wide": "wide clip",
    "clip_tight": "tight clip",
    "fp32": "fp32",
    "quantised": "weights of 8 bits",
    "hf_fp32": "HF fp32",
    "hf_int8": "HF int8",
    "vllm_bf16": "vLLM bf16",
}
_NOISE = re.compile(r"(sigma0|relative)(\d+)")  # usual labels of overrides: sigma0003 is 0.003, and so is relative003
_SIZES = {"sigma0": "σ₀", "relative": "relative σ, c₀"}


# ---- methods and engines ---------------------------------------------------------------------------------------------


def ratio_level(method: Method) -> str:
    """``token`` or ``sequence``: under which of the two logged keys the method's own ratio is found."""
    return "token" if method.level == "token" else "sequence"


def learns_noise(method: Method) -> bool:
    """Whether σ is on and trained (a σ_0 of 0 is off whatever else is set)."""
    noise = method.perturbation
    return noise is not None and noise.std > 0 and noise.learnable


def adds_noise(method: Method) -> bool:
    """Whether it trains under noise, learned or fixed."""
    return method.perturbation is not None and method.perturbation.std > 0


# ---- conditions of tables and figures --------------------------------------------------------------------------------


def always(_: Grid) -> bool:
    return True


def has_several_sets(grid: Grid) -> bool:
    """Whether it evaluates on more than one set."""
    return bool(grid.parts)


def has_tools(grid: Grid) -> bool:
    """Whether a tool answers between its turns."""
    return job_of(grid, grid.arms[0]).task.multi_turn


def compares_engines(grid: Grid) -> bool:
    """Whether its arms sample with more than one engine."""
    return len({job_of(grid, arm).rollout.label for arm in grid.arms}) > 1


def has_learned_noise(grid: Grid) -> bool:
    """Whether an arm learns its noise."""
    return any(learns_noise(job_of(grid, arm).method) for arm in grid.arms)


def has_noise_budget(grid: Grid) -> bool:
    """Whether an arm's noise is measured layer by layer: every ``trainer.probe_every`` steps."""
    jobs = (job_of(grid, arm) for arm in grid.arms)
    return any(adds_noise(job.method) and 0 < job.trainer.probe_every <= job.trainer.steps for job in jobs)


def compares_corrections(grid: Grid) -> bool:
    """Whether an arm has another loss than the clipped one, or rejects without a weight: the grid is about more than
    ratios and their clip."""
    methods = [job_of(grid, arm).method for arm in grid.arms]
    return not is_phase_diagram(grid) and any(
        method.loss_form != "clip" or any(one.weight == "one" for one in method.corrections) for method in methods
    )


def phase_of(grid: Grid, arm: Arm) -> tuple[str, str]:
    """Updates on each rollout batch, with the batches that are sampled ahead of them, and the engine, with what it does
    to the weights, as people read them."""
    job = job_of(grid, arm)
    ahead = f" + {job.trainer.lag}" if job.trainer.lag else ""
    return f"{job.trainer.updates_per_batch}{ahead}", job.rollout.label


def is_phase_diagram(grid: Grid) -> bool:
    """Whether its arms cross several ages of rollout batches with several mismatches."""
    stale, mismatch = (set(part) for part in zip(*(phase_of(grid, arm) for arm in grid.arms), strict=True))
    return len(stale) > 1 and len(mismatch) > 1


# ---- names -----------------------------------------------------------------------------------------------------------


def is_control(arm: Arm) -> bool:
    """Variants that exist to be compared with their own preset: noise off, noise fixed, another clip range."""
    return arm.variant is not None and (arm.variant in ("sigma0", "fixed_sigma") or arm.variant.startswith("clip_"))


def is_own(arm: Arm) -> bool:
    """Whether it is the grid's or its reader's own: a preset of theirs, or a shipped one under a label of theirs."""
    variant = arm.variant or ""
    known = variant in _VARIANTS or _NOISE.fullmatch(variant) or is_control(arm)
    return arm.method not in SHIPPED or (bool(variant) and bool(arm.overrides) and not known)


def label(name: str) -> str:
    """An arm's name for people: ``token_alp-sigma0`` → Token-ALP (σ₀ = 0)."""
    if name == BASE:
        return "Base model"
    method, _, variant = name.partition("-")
    shown = "-".join(
        _SPELT.get(word, word.upper() if word in _ACRONYMS else word.capitalize()) for word in method.split("_")
    )
    noise = _NOISE.fullmatch(variant)
    words = f"{_SIZES[noise[1]]} = 0.{noise[2]}" if noise else _VARIANTS.get(variant, variant.replace("_", " "))
    return f"{shown} ({words})" if variant else shown


def named(grid: Grid) -> str:
    """How the grid is given on a command line."""
    return f"grid={grid.name}" if grid.name in grid_file.names() else f"grid=<folder>/{grid.name}.yaml"


def build_command(grid: Grid) -> str:
    """What builds everything below ``results/<grid>``."""
    return f"snakemake --cores 2 --config {named(grid)}"
