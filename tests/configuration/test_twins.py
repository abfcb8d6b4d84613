"""Every grid of the paper has a twin for two cores: the same arms, another model, other data and sizes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from pydantic import TypeAdapter

from alp.configuration import grid as grids
from alp.configuration import grid_file

PAPER = ("single_turn", "multi_turn", "ablation_layers", "ablation_sigma", "controls", "staleness", "mismatch")
SIZES = {
    *("steps", "prompts", "samples", "lr", "kl", "weight_decay", "max_grad_norm", "validate_every", "probe_every"),
    *("validation_samples", "checkpoint_every", "micro_batch", "micro_tokens", "logits_chunk", "precision", "device"),
    *("threads", "lora", "gradient_checkpointing", "updates_per_batch"),
}
# What a twin's arm has otherwise than the paper's, beside sizes, as its file says: four layers have other bands than
# 28, and 1e-6 is no noise in them.
LAYERS = {"perturbation.layers", "perturbation.std", "perturbation.lr", "dual_clip"}

_load = cache(grids.load)


def _flat(value: Any, before: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: one for key, inner in value.items() for name, one in _flat(inner, f"{before}{key}.").items()}
    return {before.rstrip("."): value}


def _differing(first: Any, second: Any) -> set[str]:
    one, other = (_flat(TypeAdapter(type(part)).dump_python(part)) for part in (first, second))
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


@pytest.mark.parametrize("name", PAPER)
def test_twin_and_original_have_the_same_arms(name: str) -> None:
    paper, twin = _load(name), _load(f"quick_{name}")
    assert [arm.name for arm in twin.arms] == [arm.name for arm in paper.arms]
    assert twin.published == paper.published or name == "ablation_layers"
    for arm in paper.arms:
        theirs, ours = grids.job_of(paper, arm), grids.job_of(twin, twin.arm(arm.name))
        allowed = LAYERS if name == "ablation_layers" else set()
        assert _differing(theirs.method, ours.method) <= allowed, arm.name
        assert _differing(theirs.trainer, ours.trainer) <= SIZES, arm.name
        assert len(twin.seeds) >= 3


@pytest.mark.parametrize("name", PAPER)
def test_arms_differ_among_themselves_alike(name: str) -> None:
    """What tells one arm from the first is told apart in the twin by the same keys: staleness stays staleness."""
    found = []
    for grid in (_load(name), _load(f"quick_{name}")):
        first = grids.job_of(grid, grid.arms[0])
        found.append(
            [
                {
                    *(f"method.{key}" for key in _differing(first.method, job.method)),
                    *(f"trainer.{key}" for key in _differing(first.trainer, job.trainer)),
                    "rollout" if _differing(first.rollout, job.rollout) else "",
                }
                for job in (grids.job_of(grid, arm) for arm in grid.arms)
            ]
        )
    assert found[0] == found[1]


def test_no_grid_of_the_paper_is_without_a_twin() -> None:
    on_a_cluster = {name for name in grid_file.names() if "qwen" in _load(name).model}
    assert on_a_cluster == set(PAPER)
