"""``alp noise``: how far each layer's noise moves log π, beside what all layers together and the engine's mismatch do
(docs/noise.md). Responses are the engine's own, with its μ; nothing is trained."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from alp.configuration.noise_schema import NoiseConfig
from alp.diagnosis import noise_page
from alp.diagnosis.noise_page import Measured
from alp.errors import UserError
from alp.evaluation.evaluate import Sampler
from alp.ownership import Claim
from alp.policy.budget import LEVELS, Budget, Spread, spread
from alp.policy.layers import LOGITS, decoder_layers, resolve_layers
from alp.policy.method import Perturbation
from alp.progress import Progress
from alp.reproducibility import install, partial_folder, write_json, write_text
from alp.rollout import registry
from alp.training.batch import Batch, collate
from alp.training.budget import budget_of
from alp.training.forward import token_log_probs

KEY = "noise: output"
OUTPUTS = ("budget.json", "report.html", "tables/*", "figures/*", *registry.log_names())


def noise(config: NoiseConfig) -> str:
    """Write the folder; returns its path and what was found, for people. Raises UserError for a model whose layers are
    not those asked for, or log-probs that are no numbers."""
    with Claim(config.output, "noise", outputs=OUTPUTS, key=KEY, replace=config.replace) as claim:
        sampler = Sampler(config.sampling, log=claim.root / registry.log_name(config.rollout), scratch=claim.scratch)
        # Where it goes is no part of what it is.
        origin = sampler.origin_of("noise", config.model_copy(update={"output": "", "replace": False}))
        claim.begin(origin)
        try:
            measured = _measure(config, sampler)
        finally:
            sampler.close()
        with partial_folder(claim.root / "budget") as made:
            write_json(made / "budget.json", _record(config, measured) | {"identity": origin["identity"]})
            write_text(made / "report.html", noise_page.write(made, measured))
            install(made, claim.root)
        claim.finish()
    return "\n".join([str(claim.root), *(f"  {sentence}" for sentence in noise_page.findings(measured))])


def _measure(config: NoiseConfig, sampler: Sampler) -> Measured:
    settings, noise = config.noise, config.method.perturbation
    assert noise is not None  # the schema's
    model = sampler.load()
    try:
        layers = _layers(noise, model)
    except ValueError as error:  # a model that cannot be perturbed
        raise UserError(f"noise: method.perturbation: {error}") from None
    sampler.serve(model)
    assert sampler.engine is not None
    batch = collate(
        sampler.trajectories(sampler.problems[: settings.problems], first=0),
        pad_token_id=sampler.tokenizer.pad_token_id,
        first_sequence=0,
        device=sampler.device,
        for_loss=False,
    )
    pieces = [piece for _, piece in batch.split(settings.batch_size)]
    std = [noise.std] * len(layers)
    temperature = config.rollout.temperature
    with Progress(f"noise {config.method.name}: layers, and all together", len(layers) + 1) as progress:
        budget = budget_of(
            model,
            noise,
            pieces,
            temperature=temperature,
            layers=layers,
            std=std,
            draws=settings.draws,
            seed=settings.seed,
            after=progress.update,
        )
    mismatch = _mismatch(model, pieces, temperature)
    _check_finite(budget, mismatch)
    return Measured(
        model=_name(config),
        method=config.method.name,
        engine=config.rollout.label,
        described=sampler.engine.describe(),
        std=noise.std,
        draws=settings.draws,
        sequences=len(batch),
        tokens=int(batch.response_mask.sum()),
        budget=budget,
        mismatch=mismatch,
    )


def _name(config: NoiseConfig) -> str:
    """Of the model, for people: its folder's, unless that is the one of a job of ours."""
    folder = Path(config.model.path or "model").name
    return config.model.name if folder == "model" else folder


def _layers(noise: Perturbation, model: Any) -> list[int | str]:
    """The perturbed layers, or the logits. Raises ValueError for a model whose layers cannot be told."""
    depth = len(decoder_layers(model))
    return [LOGITS] if noise.layers == LOGITS else [*resolve_layers(noise.layers, depth)]


@torch.no_grad()
def _mismatch(model: Any, pieces: list[Batch], temperature: float) -> Spread:
    """The spread of log π_old − log μ, on the very tokens that the noise is measured on."""
    changes = [
        (token_log_probs(model, piece, temperature)[0].double() - piece.rollout_log_probs.double()).unsqueeze(0)
        for piece in pieces
    ]
    return spread(changes, [piece.response_mask for piece in pieces])


def _check_finite(budget: Budget, mismatch: Spread) -> None:
    """Raises UserError for a variance that is no number."""
    named = {f"the noise of {source.name}": source.spread for source in budget.sources}
    named |= {"the noise of all layers": budget.together, "the mismatch": mismatch}
    for name, variances in named.items():
        if not all(math.isfinite(getattr(variances, level)) for level in LEVELS):
            raise UserError(
                f"noise: under {name} a response's log-probability is no finite number: try a smaller"
                " method.perturbation.std"
            )


def _record(config: NoiseConfig, measured: Measured) -> dict[str, Any]:
    """The content of ``budget.json``: variances in nats²."""
    budget = measured.budget
    return {
        "model": measured.model,
        "method": measured.method,
        "perturbation": asdict(config.method.perturbation),  # type: ignore[arg-type]
        "temperature": config.rollout.temperature,
        "engine": measured.described | {"label": measured.engine},
        "draws": measured.draws,
        "sequences": measured.sequences,
        "tokens": measured.tokens,
        "sources": [
            {
                "layers": list(source.layers),
                "hidden_rms": source.hidden_rms,
                "realised_rms": source.realised_rms,
                "variance": asdict(source.spread),
                "share": {level: budget.shares(level)[row] for level in LEVELS},
            }
            for row, source in enumerate(budget.sources)
        ],
        "together": {"variance": asdict(budget.together)},
        "additivity": {level: budget.additivity(level) for level in LEVELS},
        "mismatch": {"variance": asdict(measured.mismatch)},
    }
