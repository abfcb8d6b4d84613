"""Log-probs of given tokens under the training model, at the sampling temperature and over the full vocabulary."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alp import shards
from alp.rollout import probe
from alp.training.batch import Batch
from alp.training.compiled import MULTIPLE, CompiledLayers
from alp.training.distributed import ALONE, World
from alp.training.head import Head


def precision(device: torch.device, *, cache: bool = True) -> AbstractContextManager[None]:
    """bfloat16 autocast on a GPU over float32 master weights; plain float32 on a CPU. ``cache``: weights are cast once
    for all that runs inside; not those in shards, which would all be held whole."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=cache)


def token_log_probs(
    model: Any, batch: Batch, temperature: float, *, entropy: bool = False, head: Head | None = None
) -> tuple[Tensor, Tensor]:
    """log π(token | before it) of every token, (batch, tokens) with 0 for the first, and the entropy (a figure without
    gradient; zeros unless asked for). Given the model's ``head``, of response tokens alone, chunk by chunk, and 0
    elsewhere.

    Rows are padded behind, so the model counts positions itself, from where it was trained to (RoBERTa's kin: not 0).
    """
    if head is not None:
        if head.model is not model:
            raise ValueError("head: of another model")
        return _by_chunks(head, batch, temperature, entropy=entropy)
    with precision(batch.input_ids.device, cache=not shards.is_sharded(model)):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    logits = _wide(logits[:, :-1]) / temperature
    chosen, spread = _of_logits(logits, batch.input_ids[:, 1:], entropy=entropy)
    return F.pad(chosen, (1, 0)), F.pad(spread, (1, 0))


def _wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _of_logits(logits: Tensor, ids: Tensor, *, entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probs of ``ids`` (...) under ``logits`` (..., vocabulary), and the entropy."""
    norm = logits.logsumexp(-1)
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - norm
    with torch.no_grad():
        spread = norm - logits.softmax(-1).mul_(logits).sum(-1) if entropy else torch.zeros_like(chosen)
    return chosen, spread


def _by_chunks(head: Head, batch: Batch, temperature: float, *, entropy: bool) -> tuple[Tensor, Tensor]:
    """The same of the tokens in the response mask, with logits of ``head.chunk`` tokens at a time, forgotten at once
    and computed again in the backward: memory grows with hidden size, not vocabulary, times tokens."""
    with precision(batch.input_ids.device, cache=not shards.is_sharded(head.model)):
        hidden = head.hidden(batch.input_ids, batch.attention_mask)
    before = F.pad(batch.response_mask[:, 1:], (0, 1)).flatten().nonzero().squeeze(-1)  # the place before each token
    states, ids = hidden.flatten(0, 1)[before], batch.input_ids.flatten()[before + 1]

    def piece(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        # Each chunk casts the weights for itself: a shared cast would sum their gradients over chunks in bfloat16.
        with precision(states.device, cache=False):
            logits = head.logits(states)
        logits = _wide(logits) / temperature
        return _of_logits(logits, ids, entropy=entropy)

    pieces = [
        # Nothing of it is random, and it runs to its end: the model is left as it was found.
        checkpoint(piece, *part, use_reentrant=False, preserve_rng_state=False, early_stop=False)
        if torch.is_grad_enabled()
        else piece(*part)
        for part in zip(states.split(head.chunk), ids.split(head.chunk), strict=True)
    ]
    chosen, spread = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    zeros = chosen.new_zeros(batch.input_ids.numel())
    chosen, spread = (zeros.index_copy(0, before + 1, values).view_as(batch.input_ids) for values in (chosen, spread))
    return chosen, spread


def frozen_log_probs(
    model: Any,
    batch: Batch,
    temperature: float,
    micro_batch: int | None,
    head: Head | None = None,
    *,
    micro_tokens: int | None = None,
    compiled: CompiledLayers | None = None,
    world: World = ALONE,
) -> tuple[Tensor, Tensor]:
    """The same without gradient, over a whole batch in the pieces an update would use: then an on-policy ratio is
    exactly 1; each rank of a ``world`` runs its own, and has the values of all. Of ``compiled`` layers the graph is the
    update's too, which keeps what its backward would need.
    """
    log_probs, entropy = torch.zeros_like(batch.rollout_log_probs), torch.zeros_like(batch.rollout_log_probs)
    for index, piece in world.pieces(batch, micro_batch, micro_tokens, 1 if compiled is None else MULTIPLE):
        width = min(piece.input_ids.shape[1], log_probs.shape[1])
        with torch.set_grad_enabled(compiled is not None), nullcontext() if compiled is None else compiled.used():
            values = token_log_probs(model, piece, temperature, entropy=True, head=head)
        log_probs[index, :width], entropy[index, :width] = (value.detach()[: len(index), :width] for value in values)
    return world.sum(log_probs), world.sum(entropy)


def sequence_log_probs(model: Any, sequences: list[list[int]], temperature: float) -> list[list[float]]:
    """log π of every token but the first of some plain sequences, for comparison with an engine's."""
    with precision(next(model.parameters()).device):
        return probe.sequence_log_probs(model, sequences, temperature)
