"""Two equalities that the literature does not state, in float64 (docs/method.md, "What coincides")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from alp.policy import LossInputs, Method

UNCLIPPED: dict[str, Any] = {"loss_form": "ratio", "clip_low": None, "clip_high": None, "dual_clip": None}
GRPO = Method(**UNCLIPPED)
PSPO = Method(**UNCLIPPED, loss_options={"alpha": 0.1})
CONTEXTS, VOCABULARY, ROWS, TOKENS = 12, 9, 16, 6
Optimiser = Callable[[list[Tensor]], torch.optim.Optimizer]


def _trained(
    method: Method, optimiser: Optimiser, *, steps: int = 200, most: float | None = None, kl: float = 0.0
) -> Tensor:
    """The logits of a policy over contexts after ``steps`` updates, four on each batch of a fixed stream of batches."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(CONTEXTS, VOCABULARY, generator=random, dtype=torch.float64)
    reference = logits.log_softmax(-1)
    logits.requires_grad_()
    stepper = optimiser([logits])
    mask = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    for step in range(steps):
        if step % 4 == 0:
            contexts = torch.randint(CONTEXTS, (ROWS, TOKENS), generator=random)
            tokens = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=random)
            advantages = torch.randn(ROWS, generator=random, dtype=torch.float64)
            old = logits.detach().log_softmax(-1)[contexts, tokens]
        given = LossInputs(
            log_probs=logits.log_softmax(-1)[contexts, tokens],
            old_log_probs=old,
            rollout_log_probs=old,
            ref_log_probs=reference[contexts, tokens] if kl else None,
            response_mask=mask,
            advantages=advantages,
            kl=kl,
        )
        stepper.zero_grad()
        method.loss(given).loss.backward()
        if most is not None:
            norm = torch.nn.utils.clip_grad_norm_([logits], most)
            assert norm > most, "a norm clip that does not bind"
        stepper.step()
    return logits.detach()


def _gap(first: Tensor, second: Tensor) -> float:
    """Distance over the length of the way."""
    random = torch.Generator().manual_seed(0)
    start = torch.randn(CONTEXTS, VOCABULARY, generator=random, dtype=torch.float64)
    return float((first - second).norm() / (first - start).norm())


def _adam(parameters: list[Tensor], eps: float = 1e-8) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02, eps=eps)


def test_probability_smoothing_is_unclipped_grpo_under_adam() -> None:
    """Its gradient is that of r A times 1 - α, and Adam divides a constant out, up to its ε: any difference of the two
    in an experiment is one of ε."""
    gaps = {eps: _gap(*(_trained(m, lambda p, e=eps: _adam(p, e)) for m in (GRPO, PSPO))) for eps in (1e-8, 1e-10)}
    assert 0 < gaps[1e-8] < 1e-5
    assert gaps[1e-10] < gaps[1e-8] / 10


def test_a_norm_clip_that_binds_does_not_part_them() -> None:
    """Clipped to one norm, the two gradients are one."""
    assert _gap(*(_trained(method, _adam, most=1e-3) for method in (GRPO, PSPO))) < 1e-5


def test_what_does_part_them() -> None:
    """Plain gradient descent sees the factor; a KL term does, unless its coefficient has the same factor."""
    descent = [_trained(method, lambda p: torch.optim.SGD(p, lr=5.0)) for method in (GRPO, PSPO)]
    assert _gap(*descent) > 1e-2
    with_kl = _trained(PSPO, _adam, kl=0.1)
    assert _gap(with_kl, _trained(GRPO, _adam, kl=0.1)) > 1e-3
    assert _gap(with_kl, _trained(GRPO, _adam, kl=0.1 / 0.9)) < 1e-5


@pytest.mark.parametrize("samples", [2, 3, 5, 8])
def test_pairwise_proximal_without_clip_on_policy_is_rloo(samples: int) -> None:
    """P3O's gradient, the mean over pairs of (R_1 - R_2) ∇(log π(y_1) - log π(y_2)) / 2, is the policy gradient with
    each reward less the mean of the others: constant 1."""
    prompts, tokens = 3, 5
    random = torch.Generator().manual_seed(samples)
    log_probs = -torch.rand(prompts * samples, tokens, generator=random, dtype=torch.float64)
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (prompts * samples, 1), generator=random)
    rewards = torch.rand(prompts * samples, generator=random, dtype=torch.float64)
    groups = rewards.view(prompts, samples)
    others = (groups.sum(-1, keepdim=True) - groups) / (samples - 1)
    given = LossInputs(
        log_probs=log_probs.clone().requires_grad_(),
        old_log_probs=log_probs,
        response_mask=mask,
        advantages=(groups - others).flatten(),
    )
    (rloo,) = torch.autograd.grad(
        Method(**UNCLIPPED, aggregation="seq-mean-token-sum").loss(given).loss, given.log_probs
    )

    def pairwise(leaf: Tensor, behaviour: Tensor) -> Tensor:
        """Minus the surrogate (R_1 - R_2) (w_1 w_2) (log π(y_1) - log π(y_2)) / 2, w detached products of ratios."""
        whole = (leaf * mask).sum(-1).view(prompts, samples)
        weights = (((leaf - behaviour) * mask).sum(-1)).exp().detach().view(prompts, samples)
        pairs = list(combinations(range(samples), 2))
        terms = [
            (groups[:, i] - groups[:, j]) * weights[:, i] * weights[:, j] * (whole[:, i] - whole[:, j]) / 2
            for i, j in pairs
        ]
        return -torch.stack(terms).sum(0).mean() / len(pairs)

    leaf = log_probs.clone().requires_grad_()
    (pairs,) = torch.autograd.grad(pairwise(leaf, log_probs), leaf)
    assert torch.allclose(pairs, rloo, rtol=1e-12, atol=1e-16)
    # Off-policy the product of both weights makes another estimator: what is P3O's own lies there, and in its clips.
    behaviour = log_probs + 0.1 * torch.randn(log_probs.shape, generator=random, dtype=torch.float64)
    (away,) = torch.autograd.grad(pairwise(leaf, behaviour), leaf)
    method = Method(**UNCLIPPED, level="sequence", aggregation="seq-mean-token-sum")
    loss = method.loss(replace(given, old_log_probs=behaviour)).loss
    assert not torch.allclose(away, torch.autograd.grad(loss, given.log_probs)[0], rtol=1e-3)
