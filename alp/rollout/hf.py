"""Hugging Face engine: the policy in the inference dtype, sampled token by token
(``alp.rollout.decoding``).

Where dtype and device are those of the served model and nothing is done to the weights (nor an adapter merged into
them), that model itself is sampled from, and no copy is held: then a sync moves nothing, and samples are those of the
weights as they stand.

The sampling loop is our own because ``generate`` gives no control over each sequence's random numbers: here token t of
a sequence is the inverse CDF at that sequence's t-th uniform, so batch order and size change nothing but rounding.
Finished rows are dropped from the batch as it goes, and samples of one prompt share its prefill.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from alp import adapters
from alp.configuration.rollout_schema import HFRollout
from alp.errors import UserError
from alp.reproducibility import stream
from alp.rollout import decoding
from alp.rollout.engine import Completion, Host, Request, Sampling, uniforms
from alp.rollout.probe import TOLERANCE, sequence_log_probs
from alp.shards import is_sharded

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.bfloat16}
_EXACT = 1e-5  # mean |log-prob difference| to the served model, both in float32
_INT8 = 2.0  # times bfloat16's: 255 levels of a row's largest weight are about as coarse as its 8 bits
# Per unit of weight noise and square root of the layers, whose noise adds up in squares; twice what is measured on two
# and three layers.
_NOISE_SHARE = 8.0
_COMPACT_SHARE = 0.125  # drop finished rows once they are this share of the batch: copying the cache costs about a step


class HFEngine:
    """``dtype`` float32, bfloat16 or int8 (linear weights rounded to 8 bits per output channel, computed in bfloat16).

    ``model`` is the served model; it is borrowed where it can be, unless ``borrow`` is false. ``weight_noise``
    multiplies every weight by 1 + weight_noise · N(0, 1), drawn anew at each sync from (seed, version, name).
    ``reference_dtype`` is the dtype that the served model computes in when the engine is held against it. ``static``:
    a cache of fixed size where the model goes with one (None: on a GPU).
    """

    def __init__(
        self,
        model: Any,
        *,
        dtype: str,
        device: torch.device,
        batch_size: int,
        weight_noise: float = 0.0,
        seed: int = 0,
        borrow: bool = True,
        reference_dtype: str = "float32",
        static: bool | None = None,
    ) -> None:
        self._dtype, self._device, self._batch_size = dtype, device, batch_size
        self._weight_noise, self._seed = weight_noise, seed
        shared = is_sharded(model)  # its forwards are other ranks' too
        plain = borrow and not weight_noise and dtype != "int8" and not adapters.layers_of(model) and not shared
        self.borrowed = plain and _is(model, COMPUTE_DTYPES[dtype], device)
        self._model = model if self.borrowed else _copy(model, COMPUTE_DTYPES[dtype], device)
        self._way = _way(self._model if shared else model, static=device.type == "cuda" if static is None else static)
        self._linear = {
            f"{name}.weight"
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
        }
        layers = int(model.config.get_text_config().num_hidden_layers)
        self.tolerance = _rounding(dtype, reference_dtype) + _NOISE_SHARE * layers**0.5 * weight_noise
        self._quantised = 0  # matrices rounded at the last sync
        self.version: int | None = None

    @classmethod
    def check(cls, settings: HFRollout, folder: Path, group: str) -> None:
        """It serves every model that can be trained."""

    @classmethod
    def make(cls, settings: HFRollout, host: Host) -> HFEngine:
        """See ``alp.rollout.engine.Implementation``."""
        return cls(
            host.model,
            dtype=settings.dtype,
            device=host.device,
            batch_size=settings.batch_size,
            weight_noise=settings.weight_noise,
            seed=host.seed,
            reference_dtype=host.probe.dtype,
            static=settings.static_cache,
        )

    def describe(self) -> dict[str, Any]:
        """What is really active."""
        parameter = next(self._model.parameters())
        return {
            "engine": "hf",
            "rollout_dtype": str(parameter.dtype).removeprefix("torch."),
            "quantised_weights": self._quantised,
            "weight_noise": self._weight_noise,
            "device": parameter.device.type,
            "borrowed": self.borrowed,
            "decoding": self._way.value,
        }

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The weights that are sampled from, by the served model's names."""
        return dict(self._model.named_parameters())

    @torch.no_grad()
    def sync_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> dict[str, float]:
        """Round the served model's weights to the inference format, one at a time as they come; of a borrowed model,
        note the version.

        Raises ValueError unless exactly the engine's parameters come, and of a borrowed model the very same.
        """
        held, names, foreign = self.parameters, set(), []
        quantised = size = 0
        for name, given in weights:
            names.add(name)
            if (target := held.get(name)) is None:
                continue
            if self.borrowed:
                foreign += [name] if given is not target else []
                continue
            value = given.detach().to(self._device, torch.float32)
            if self._weight_noise:
                value = value * (1.0 + self._weight_noise * self._draw(name, version, value))
            if self._dtype == "int8" and name in self._linear:
                value = quantise(value)
                quantised += 1
            target.copy_(value)
            size += target.nbytes
        if held.keys() != names:
            raise ValueError(f"weights: {sorted(held.keys() ^ names)[:4]} stand on one side only")
        if foreign:
            raise ValueError(f"weights: it samples from the served model itself, {foreign[:4]} are another's")
        self._quantised, self.version = quantised, version
        return {"sync/bytes": float(size)}

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        """log-probs of every token but the first at temperature 1, one plain forward a sequence."""
        with evaluating(self._model):
            return sequence_log_probs(self._model, sequences, 1.0)

    def close(self) -> None:
        """Everything it holds is in this process."""

    def _draw(self, name: str, version: int, like: Tensor) -> Tensor:
        random = stream(f"weight noise {name}", self._seed, version)
        return torch.from_numpy(random.standard_normal(tuple(like.shape), dtype=np.float32)).to(like.device)

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order. Raises RuntimeError before the first sync."""
        if self.version is None:
            raise RuntimeError("generate: no weights yet, call sync_weights first")
        completions: dict[int, Completion] = {}
        lengths = [len(request.prompt_ids) for request in requests]
        with evaluating(self._model):
            for places in decoding.batches(self._way, lengths, self._batch_size):
                made = self._generate([requests[place] for place in places], sampling)
                completions.update(zip(places, made, strict=True))
        return [completions[place] for place in range(len(requests))]

    @torch.no_grad()
    def _generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        rows = _Rows(requests, sampling, self._device)
        prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
        place = {prompt: row for row, prompt in enumerate(prompts)}
        batch = decoding.start(self._way, self._model, prompts, sampling.pad_token_id, sampling.max_new_tokens)
        batch.select(torch.tensor([place[request.prompt_ids] for request in requests], device=self._device))
        for step in range(sampling.max_new_tokens):
            rows.take(batch.logits, step)
            running = int(rows.running.sum())  # on a GPU the one wait of a step
            if step + 1 == sampling.max_new_tokens or not running:
                break
            if len(rows.running) - running >= _COMPACT_SHARE * len(rows.running):
                kept = rows.running.nonzero().squeeze(-1)
                batch.select(kept)
                rows.keep(kept)
            batch.advance(rows.last)
        return rows.completions()


class _Rows:
    """The sequences of one batch as they grow: what was sampled, what still runs."""

    def __init__(self, requests: list[Request], sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        count, longest = len(requests), sampling.max_new_tokens
        draws = (
            np.stack([uniforms(request.key, longest) for request in requests])
            if sampling.temperature
            else np.zeros((count, longest))
        )
        self._ends = torch.tensor(sampling.end_token_ids, device=device)
        self._uniforms = torch.from_numpy(draws).to(device)
        self._tokens = torch.full((count, longest), sampling.pad_token_id, device=device)
        self._log_probs = torch.zeros(count, longest, device=device)
        self._lengths = torch.zeros(count, dtype=torch.long, device=device)
        self._finished = torch.zeros(count, dtype=torch.bool, device=device)
        self._request = torch.arange(count, device=device)  # row of the batch -> request
        self._watches = None if sampling.stops is None else [sampling.stops.watch() for _ in requests]
        limits = [request.most(sampling) for request in requests]
        self._limits = torch.tensor(limits, device=device) if min(limits, default=longest) < longest else None
        self.running = torch.ones(count, dtype=torch.bool, device=device)
        self.last = torch.zeros(count, dtype=torch.long, device=device)

    def take(self, logits: Tensor, step: int) -> None:
        """Sample one token for every row from logits (rows, vocabulary); rows that ended earlier are left as they
        are."""
        sampling = self._sampling
        log_probs = torch.log_softmax(logits.float() / (sampling.temperature or 1.0), dim=-1)
        if sampling.temperature:
            cumulative = log_probs.double().exp().cumsum(-1)
            target = self._uniforms[self._request, step].unsqueeze(-1) * cumulative[:, -1:]
            token = (cumulative <= target).sum(-1).clamp(max=logits.shape[-1] - 1)
        else:
            token = logits.argmax(-1)
        chosen = log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1)
        running, request = self.running, self._request
        self._tokens[request, step] = torch.where(running, token, sampling.pad_token_id)
        self._log_probs[request, step] = torch.where(running, chosen, 0.0)
        self._lengths[request] += running
        ended = running & torch.isin(token, self._ends)
        self._finished[request] |= ended
        self.running = running & ~ended & ~self._stopped(token)
        self.last = token

    def _stopped(self, token: Tensor) -> Tensor:
        """Rows whose turn a form ends with this token, or a limit of their own."""
        stopped = torch.zeros_like(self.running)
        if self._watches is not None:  # the text of tokens is known on the host
            rows = zip(self._request.tolist(), token.tolist(), self.running.tolist(), strict=True)
            closed = [runs and self._watches[place].add(number) for place, number, runs in rows]
            stopped |= torch.tensor(closed, device=stopped.device)
        if self._limits is not None:
            stopped |= self._lengths[self._request] >= self._limits[self._request]
        return stopped

    def keep(self, rows: Tensor) -> None:
        """Forget the batch rows that are not in ``rows``."""
        self._request, self.running, self.last = self._request[rows], self.running[rows], self.last[rows]

    def completions(self) -> list[Completion]:
        """In the order of the requests."""
        tokens, log_probs = self._tokens.tolist(), self._log_probs.tolist()
        ends = zip(self._lengths.tolist(), self._finished.tolist(), strict=True)
        return [
            Completion(token_ids=tokens[row][:length], log_probs=log_probs[row][:length], finished=finished)
            for row, (length, finished) in enumerate(ends)
        ]


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Every part of a model in evaluation mode, and in its own again afterwards: layers that compute their activations
    again in a backward are in training mode, and keep no cache there."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _is(model: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model's parameters are all of that dtype and on that device."""
    return all(value.dtype == dtype and value.device.type == device.type for value in model.parameters())


def _way(model: Any, *, static: bool) -> decoding.Way:
    """How the served model is continued. Raises UserError where no way gives what it scores."""
    try:
        with evaluating(model):
            return decoding.choose(model, static=static)
    except decoding.Unusable as error:
        raise UserError(
            f"rollout=hf: {type(model).__name__} cannot be sampled so that its samples have the log-probs that training"
            f" gives them ({error})"
        ) from None


def _copy(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of the same configuration with values of its own, not yet those of ``model``."""
    return AutoModelForCausalLM.from_config(model.config, dtype=dtype).to(device).eval()


def _rounding(dtype: str, reference_dtype: str) -> float:
    """Largest mean |log-prob difference| of the formats. Two float32 programs of one library differ by the order of a
    few sums."""
    if dtype == reference_dtype == "float32":
        return _EXACT
    return max(TOLERANCE["bfloat16"] * _INT8 if dtype == "int8" else TOLERANCE[dtype], TOLERANCE[reference_dtype])


def quantise(weight: Tensor) -> Tensor:
    """A (out, in) matrix rounded to symmetric 8-bit integers per output channel, and back."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round().clamp(-127, 127) * scale
