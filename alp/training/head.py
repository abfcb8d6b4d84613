"""Logits of any positions' hidden states, by the model's own forward: what log-probs by chunks of tokens need.

How hidden states become logits is the model's own business: one linear layer with or without a bias, several layers,
scaled, capped. None of it is written here a second time. The *body* is the submodule whose output the rest of the
forward starts from; for the logits of some hidden states the whole model is called while its body, instead of
computing, answers those states. So everything behind the body runs as the class has it, or fails loudly.

``proven_head`` tries it on the model itself and refuses any that does not then give its own logits: one whose head
reads more than each position's hidden state alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alp.reproducibility import stream

# Largest difference of two ways to the same logits, relative to the largest of them: other sums, the same arithmetic.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-6}
_ROWS, _TOKENS, _CHUNK = 2, 9, 4  # of the trial; chunks that end in the middle of a row


class Unproven(ValueError):
    """A model whose logits cannot be had from hidden states chunk by chunk, or not as far as we can tell."""


class Head:
    """The part of ``model`` behind ``body``; ``chunk`` tokens at a time are given to it."""

    def __init__(self, model: Any, body: nn.Module, chunk: int) -> None:
        self.model, self.body, self.chunk = model, body, chunk
        self._kind: type[Any] = tuple  # of what the body gives

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the body gives, (batch, tokens, hidden). The model's whole forward runs, hooks and all, but what is
        behind the body on one position only."""
        outputs: list[Any] = []

        def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
            outputs.append(output)
            return _output(type(output), _hidden(output)[:1, :1])

        handle = self.body.register_forward_hook(keep)
        try:
            self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise Unproven(f"{type(self.body).__name__} runs {len(outputs)} times in a forward")
        self._kind = type(outputs[0])
        return _hidden(outputs[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """(tokens, hidden) -> (tokens, vocabulary), after everything that the model does to them."""
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)  # not the real ones: it may not look
        with _answering(self.body, _output(self._kind, hidden.unsqueeze(0))):
            logits: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        if logits.shape[:-1] != ids.shape:
            raise Unproven(f"{tuple(logits.shape)} logits of {tuple(ids.shape)} hidden states")
        return logits[0]


def proven_head(model: Any, chunk: int, seed: int) -> Head:
    """The head of ``model``, after a trial on a few random ids; takes no random number from anyone.

    Raises Unproven, saying why, where the logits of chunks are not the model's own.
    """
    refusals = []
    for body in _bodies(model):
        head = Head(model, body, chunk)
        try:
            _try(head, seed)
        except Exception as error:  # whatever a class makes of a body that only answers; then it is not used
            said = str(error).partition("\n")[0]
            refusals.append(said if isinstance(error, Unproven) else f"{type(error).__name__}: {said}")
        else:
            return head
    raise Unproven("; ".join(refusals) or "no body apart from the model")


@torch.no_grad()
def _try(head: Head, seed: int) -> None:
    """Raises Unproven unless chunks give the model's own logits, in the precision of its weights."""
    weight = head.model.get_input_embeddings().weight
    random = stream("head trial", seed)
    ids = torch.tensor(random.integers(1, len(weight), size=(_ROWS, _TOKENS)), device=weight.device)
    mask = torch.ones_like(ids)
    whole = head.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
    hidden = head.hidden(ids, mask).flatten(0, 1)
    chunks = torch.cat([head.logits(part) for part in hidden.split(_CHUNK)])
    if chunks.dtype != whole.dtype or chunks.shape != whole.shape:
        raise Unproven(f"logits {tuple(chunks.shape)} {chunks.dtype}, not {tuple(whole.shape)} {whole.dtype}")
    if whole.dtype not in _TOLERANCE:
        raise Unproven(f"logits of {whole.dtype}")
    gap, size = (float(value.abs().max()) for value in (chunks - whole, whole))
    if not size > 0 or not gap <= _TOLERANCE[whole.dtype] * size:
        raise Unproven(f"logits of chunks differ by {gap:.3g} from the model's own, the largest of which is {size:.3g}")


def _bodies(model: Any) -> list[nn.Module]:
    """What may be the body: the base model, as nearly every class calls it, the decoder inside, or a part that is a
    model itself."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    parts = [part for part in model.children() if hasattr(part, "config")]
    candidates = {id(body): body for body in (model.base_model, decoder, *parts) if isinstance(body, nn.Module)}
    return [body for body in candidates.values() if body is not model]


def _hidden(output: Any) -> Tensor:
    hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
    if not isinstance(hidden, Tensor) or hidden.dim() != 3:
        raise Unproven("the body gives no hidden states (batch, tokens, hidden)")
    return hidden


def _output(kind: type[Any], hidden: Tensor) -> Any:
    """Hidden states as a body gives them, and nothing else: what reads more than them cannot be run in chunks."""
    return (hidden,) if issubclass(kind, tuple) else kind(last_hidden_state=hidden)


@contextmanager
def _answering(body: nn.Module, output: Any) -> Iterator[None]:
    """Inside, ``body`` gives ``output`` to whoever calls it, and computes nothing."""
    before = vars(body).get("forward")  # of a wrapper, perhaps
    body.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if before is None:
            del body.forward
        else:
            body.forward = before
