"""Local flatness: how much one draw of layerwise noise moves the log-probs (docs/method.md, Diagnostics; ours)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .checks import check_mask
from .perturbation import LayerwisePerturbation
from .streams import FIELD_BITS

_RELATIVE_STD = 1e-2
_PROBE = (
    1 << FIELD_BITS["update"]
) - 1  # an update index no training reaches: the probe shares no noise with any update


@torch.no_grad()
def sharpness(
    model: nn.Module,
    log_probs: Callable[[], Tensor],
    mask: Tensor,
    *,
    sequence_ids: Tensor,
    attention_mask: Tensor,
    seed: int = 0,
) -> float:
    """Mean absolute change of ``log_probs()`` (batch, tokens) over ``mask`` with σ_l = 1e-2 · RMS(h_l) in every layer.

    ``log_probs`` runs the model's forward on the batch that ``sequence_ids`` and ``attention_mask`` describe. The
    probe's hooks come and go with the call; the draw depends on ``seed`` and the ids alone.
    """
    keys = {"update": _PROBE, "sequence_ids": sequence_ids, "attention_mask": attention_mask}

    def probe(std: float | list[float]) -> tuple[Tensor, list[float]]:
        # Bounds as wide as the format allows: hidden states of any size are measured, and σ follows them.
        noise = LayerwisePerturbation(model, std=std, learnable=False, std_min=1e-30, std_max=1e30, seed=seed)
        try:
            with noise.active(**keys):  # type: ignore[arg-type]
                return log_probs(), noise.hidden_rms.tolist()
        finally:
            noise.detach()

    before, rms = probe(1e-30)  # noise too small to change a bit: this pass measures RMS(h_l)
    valid = check_mask(mask, before.shape)
    after, _ = probe([max(_RELATIVE_STD * size, 1e-30) for size in rms])
    return float((after - before).abs()[valid].mean()) if bool(valid.any()) else 0.0
