"""The noise budget of a model and a method's noise (docs/noise.md): in training, and of batches in general."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from alp.policy.budget import LEVELS, Budget, Piece, noise_budget
from alp.policy.method import Perturbation
from alp.policy.perturbation import LayerwisePerturbation
from alp.training.batch import Batch
from alp.training.forward import token_log_probs
from alp.training.head import Head

# What a probe of a training job costs: at most so many forwards a draw (the whole and the clean one aside) of so many
# sequences. A perturbed layer beyond them is measured in a band.
SOURCES, DRAWS, SEQUENCES = 6, 2, 32


def budget_of(
    model: Any,
    settings: Perturbation,
    pieces: Iterable[Batch],
    *,
    temperature: float,
    layers: list[int | str],
    std: list[float],
    draws: int,
    seed: int,
    most: int | None = None,
    head: Head | None = None,
    after: Callable[[int], object] = bool,
) -> Budget:
    """The budget of noise of the kind of ``settings`` and of the sizes ``std`` on ``layers``, over the sequences of
    ``pieces``, a forward each."""

    def attach(chosen: Any, sizes: list[float]) -> LayerwisePerturbation:
        # A learned σ at its bound may round to beyond it.
        bounds = {"std_min": settings.std_min / 2, "std_max": settings.std_max * 2}
        return LayerwisePerturbation.of(model, settings, seed=seed, layers=chosen, std=sizes, learnable=False, **bounds)

    return noise_budget(
        attach,
        [_piece(model, piece, temperature, head) for piece in pieces],
        layers=layers,
        std=std,
        draws=draws,
        most=most,
        after=after,
    )


def _piece(model: Any, batch: Batch, temperature: float, head: Head | None) -> Piece:
    return Piece(
        lambda: token_log_probs(model, batch, temperature, head=head)[0],
        batch.response_mask,
        batch.sequence_ids,
        batch.attention_mask,
    )


def probe_metrics(
    model: Any,
    perturbation: LayerwisePerturbation,
    settings: Perturbation,
    probe: Batch,
    *,
    temperature: float,
    seed: int,
    head: Head | None = None,
) -> dict[str, float]:
    """The budget of a job's noise as it stands, on the first sequences of its probe batch; σ is that of the moment."""
    first = probe.rows(torch.arange(min(SEQUENCES, len(probe)), device=probe.input_ids.device))
    budget = budget_of(
        model,
        settings,
        [first],
        temperature=temperature,
        layers=perturbation.layers,
        std=perturbation.std.tolist(),
        draws=DRAWS,
        seed=seed,
        most=SOURCES,
        head=head,
    )
    return figures(budget)


def figures(budget: Budget) -> dict[str, float]:
    """``budget/<level>_{variance,error,share}/<layer, band or all>``."""
    values: dict[str, float] = {}
    for level in LEVELS:
        named = {source.name: source.spread for source in budget.sources} | {"all": budget.together}
        for name, spread in named.items():
            values[f"budget/{level}_variance/{name}"] = getattr(spread, level)
            values[f"budget/{level}_error/{name}"] = getattr(spread, f"{level}_error")
        shares = zip(budget.sources, budget.shares(level), strict=True)
        values |= {f"budget/{level}_share/{source.name}": share for source, share in shares if share is not None}
    return values
