"""Our presets of published corrections against TRL's own code of the same name, at the numbers of the preset."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from alp.configuration import compose
from alp.policy import Correction, Method
from tests.policy.cases import assert_close

from .cases import SEEDS, TOLERANCE, Case, chosen_case, random_case
from .our_side import Ours, of_method
from .trl_side import TrlSide

every_seed = pytest.mark.parametrize("seed", SEEDS)
# TRL's settings at which it computes the preset; its rows count in a mean of sequences, empty ones too.
TRL: dict[str, dict[str, Any]] = {
    "dapo": {"loss_type": "dapo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 2e-3, "epsilon_high": 2.5e-3},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05},
    "gmpo": {"geometric": True, "epsilon": 0.4, "epsilon_high": 0.4},
    "opsm": {
        "loss_type": "bnpo",
        "off_policy_mask_threshold": 0.5,
        "correct": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1e9,
        "delta": 10.0,
    },
    "seq_mask_trl": {
        "loss_type": "bnpo",
        "correct": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
        "delta": 10.0,
    },
}

NARROW = float(torch.tensor(1.05, dtype=torch.float32))


def preset(name: str) -> Method:
    """As its file says."""
    method: Method = compose.load("train", [f"method={name}"]).method
    return method


def spread(seed: int) -> Case:
    """A case whose tokens reach every bound of the presets, with rows of every size of mismatch."""
    case = random_case(seed, mismatch=0.4)
    return case.with_(current=case.old + 2.5 * (case.current - case.old))


def ours(method: Method, case: Case, advantages: torch.Tensor) -> Ours:
    """Divided by the rows of the case where TRL counts empty ones."""
    return of_method(method, case, advantages, normaliser=None if method.aggregation == "token-mean" else case.rows)


@every_seed
@pytest.mark.parametrize("name", TRL)
def test_presets_are_trl_s(trl_side: TrlSide, name: str, seed: int) -> None:
    """Loss and gradient, at the preset's numbers, on a batch on which its bounds act."""
    case, method = spread(seed), preset(name)
    if name == "opsm":  # TRL multiplies with its weights besides, which cannot be switched off with the mask on μ
        method = replace(method, corrections=[*method.corrections, Correction("truncate", upper=1e9)])
    if name == "sapo":  # TRL holds its temperatures in float32
        method = replace(method, loss_options=dict.fromkeys(method.loss_options, 1.0) | {"tau_negative": NARROW})
    scored = trl_side.score(case, **TRL[name])
    loss, gradient = scored.loss()
    mine = ours(method, case, scored.advantages)
    if name == "gmpo":  # the geometric mean of an empty row is 1 there
        loss = loss + scored.advantages[~case.mask.any(-1)].sum() / case.rows
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)
    plain = replace(method, corrections=[]) if method.corrections else preset("grpo_unclipped")
    other = ours(plain, case, scored.advantages)
    assert (other.gradient - mine.gradient).abs().max() > 1e-4, "nothing that the preset does shows in this case"


@every_seed
def test_vespo_s_weight(trl_side: TrlSide, seed: int) -> None:
    """TRL's kernel is on Π π_θ/π_old times its token weights ω̃; with ω̃ as good as untruncated that is Π π_θ/μ, ours."""
    case = random_case(seed, mismatch=0.2)
    scored = trl_side.score(
        case,
        loss_type="vespo",
        correct=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=1e9,
    )
    loss, gradient = scored.loss()
    mine = of_method(preset("vespo"), case, scored.advantages)
    assert_close(mine.loss, loss, "loss", tol=TOLERANCE)
    assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)


@every_seed
def test_difference_vespo_truncates_each_token(trl_side: TrlSide, seed: int) -> None:
    """At TRL's bound of 3 on ω̃ a sequence with one larger weight has a smaller w than Π π_θ/μ."""
    case = random_case(seed, mismatch=0.2)
    case.rollout[0, 0] = case.old[0, 0] - math.log(6.0)
    scored = trl_side.score(
        case,
        loss_type="vespo",
        correct=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=3.0,
    )
    _, gradient = scored.loss()
    mine = of_method(preset("vespo"), case, scored.advantages)
    assert_close(mine.gradient[1:], gradient[1:], "rows without such a weight", tol=TOLERANCE)
    assert (mine.gradient[0] - gradient[0]).abs().max() > 1e-6


def test_difference_off_policy_mask_keeps_at_equality(trl_side: TrlSide) -> None:
    """Both keep a sequence at exactly δ and drop it above; ours and TRL's rule is on log μ/π_θ, for A < 0 alone."""
    for drift, dropped in ((-0.25, False), (-0.75, True)):
        case = chosen_case([drift] * 2)
        scored = trl_side.score(case, loss_type="bnpo", off_policy_mask_threshold=0.5)
        _, gradient = scored.loss()
        mine = of_method(replace(preset("opsm"), dual_clip=None), case, scored.advantages)
        assert_close(mine.gradient, gradient, "gradient", tol=TOLERANCE)
        assert mine.metrics["correction/dropped_tokens"] == (0.5 if dropped else 0.0)
