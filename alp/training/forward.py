"""Log-probs of given tokens under the training model, at the sampling temperature and over the full vocabulary."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alp.rollout import probe
from alp.training.batch import Batch


def precision(device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 autocast on a GPU over float32 master weights; plain float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def token_log_probs(model: Any, batch: Batch, temperature: float, *, entropy: bool = False) -> tuple[Tensor, Tensor]:
    """log π(token | before it) of every token, (batch, tokens) with 0 for the first, and the entropy (a figure without
    gradient; zeros unless asked for).

    Rows are padded behind, so the model counts positions itself, from where it was trained to (RoBERTa's kin: not 0).
    """
    with precision(batch.input_ids.device):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    logits = logits[:, :-1].float() / temperature
    norm = logits.logsumexp(-1)
    chosen = logits.gather(-1, batch.input_ids[:, 1:].unsqueeze(-1)).squeeze(-1) - norm
    with torch.no_grad():
        spread = norm - logits.softmax(-1).mul_(logits).sum(-1) if entropy else torch.zeros_like(chosen)
    return F.pad(chosen, (1, 0)), F.pad(spread, (1, 0))


@torch.no_grad()
def frozen_log_probs(model: Any, batch: Batch, temperature: float, micro_batch: int | None) -> tuple[Tensor, Tensor]:
    """The same without gradient, over a whole batch in the pieces an update would use: then an on-policy ratio is
    exactly 1."""
    log_probs, entropy = torch.zeros_like(batch.rollout_log_probs), torch.zeros_like(batch.rollout_log_probs)
    for index, piece in batch.split(micro_batch):
        width = piece.input_ids.shape[1]
        log_probs[index, :width], entropy[index, :width] = token_log_probs(model, piece, temperature, entropy=True)
    return log_probs, entropy


def sequence_log_probs(model: Any, sequences: list[list[int]], temperature: float) -> list[list[float]]:
    """log π of every token but the first of some plain sequences, for comparison with an engine's."""
    with precision(next(model.parameters()).device):
        return probe.sequence_log_probs(model, sequences, temperature)
