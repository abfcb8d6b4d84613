"""Every engine is held against the model it serves: its log-probs of what it samples after fixed sequences, compared
with that model's own.

``Probed`` does so after the first sync, whatever the engine. The probe's requests have keys of their own, so it takes
no random number from anyone and changes no result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from alp.reproducibility import stream
from alp.rollout.engine import Completion, Engine, Host, Probe, Purpose, Request, Sampling

# Largest mean |log-prob difference| between two programs in a dtype, relative to the mean |log-prob| above 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
_PROBES, _RANDOM_TOKENS, _SAMPLED_TOKENS = 4, 12, 4  # sequences; random ids behind each prompt; sampled ones after them


class StaleWeights(RuntimeError):
    """The engine does not hold the served model's weights after a sync. Never tried again: it is a fault of the
    code."""


def sequences(prompts: list[list[int]], vocabulary: int, seed: int, longest: int | None = None) -> list[list[int]]:
    """The first few prompts, each with random ids behind it: fixed, and through every part of the model.

    Cut to leave room for what is sampled within ``longest`` tokens.
    """
    random = stream("sync probe", seed)
    extended = [[*prompt, *random.integers(vocabulary, size=_RANDOM_TOKENS).tolist()] for prompt in prompts[:_PROBES]]
    return extended if longest is None else [ids[: max(1, longest - _SAMPLED_TOKENS)] for ids in extended]


@torch.no_grad()
def sequence_log_probs(model: Any, sequences: list[list[int]], temperature: float) -> list[list[float]]:
    """log π of every token but the first of some plain sequences, one forward each, for comparison with an engine's."""
    device = next(model.parameters()).device
    log_probs_of_sequences = []
    for ids in sequences:
        row = torch.tensor([ids], device=device)
        logits = model(input_ids=row, use_cache=False).logits
        log_probs = (logits[0, :-1].float() / temperature).log_softmax(-1)
        log_probs_of_sequences.append(log_probs.gather(-1, row[0, 1:].unsqueeze(-1)).squeeze(-1).tolist())
    return log_probs_of_sequences


def difference(engine: Engine, probe: Probe, temperature: float) -> tuple[float, float]:
    """Mean |log-prob difference| between engine and served model on tokens that the engine samples after the probe's
    sequences, and the model's mean |log-prob|. Temperature 0 counts as 1, as in an engine's greedy log-probs."""
    requests = [
        Request(tuple(ids), (int(Purpose.PROBE), 0, 0, number, 0)) for number, ids in enumerate(probe.sequences)
    ]
    completions = engine.generate(requests, Sampling(temperature, _SAMPLED_TOKENS, eos_token_id=0, pad_token_id=0))
    whole = [[*ids, *completion.token_ids] for ids, completion in zip(probe.sequences, completions, strict=True)]
    rows = probe.reference(whole, temperature or 1.0)
    expected = [
        value
        for row, completion in zip(rows, completions, strict=True)
        for value in row[len(row) - len(completion.token_ids) :]
    ]
    served = [value for completion in completions for value in completion.log_probs]
    if not served or len(served) != len(expected):
        raise RuntimeError(f"engine: {len(served)} log-probs of {len(expected)} tokens sampled for the probe")
    known = torch.tensor(expected)
    return float((known - torch.tensor(served)).abs().mean()), float(known.abs().mean())


def own_difference(engine: Engine, sequences: list[list[int]]) -> tuple[float, float] | None:
    """Mean |difference| between the log-probs that an engine gives what it samples, token by token, and those that it
    gives the same ids at once, and the mean |log-prob|; at temperature 1, behind prompts of different lengths.

    Both are the engine's own weights in its own dtype, so neither rounding nor noise of the weights is in the way of
    seeing a cache that is not the model's. None for an engine without ``score``.
    """
    score = getattr(engine, "score", None)
    if score is None:
        return None
    prompts = [ids[: max(1, len(ids) - 3 * number)] for number, ids in enumerate(sequences)]
    requests = [Request(tuple(ids), (int(Purpose.PROBE), 0, 1, number, 0)) for number, ids in enumerate(prompts)]
    completions = engine.generate(requests, Sampling(1.0, _SAMPLED_TOKENS, eos_token_id=0, pad_token_id=0))
    rows = score([[*ids, *completion.token_ids] for ids, completion in zip(prompts, completions, strict=True)])
    served = torch.tensor([value for completion in completions for value in completion.log_probs])
    at_once = torch.tensor(
        [
            value
            for row, completion in zip(rows, completions, strict=True)
            for value in row[len(row) - len(completion.token_ids) :]
        ]
    )
    return float((served - at_once).abs().mean()), float(at_once.abs().mean())


class Probed:
    """An engine whose first sync is followed by the probe: it answers as the served model does, or the job stops."""

    def __init__(self, engine: Engine, host: Host, *, name: str, temperature: float) -> None:
        self._engine, self._name, self._temperature = engine, name, temperature
        self._host: Host | None = host  # until the probe: it keeps the served model in memory

    @property
    def tolerance(self) -> float:
        """See Engine."""
        return self._engine.tolerance

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """See Engine."""
        return self._engine.generate(requests, sampling)

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> dict[str, float]:
        """See Engine. Raises StaleWeights where the first probe finds another model."""
        figures = self._engine.sync_weights(weights, version)
        if self._host is not None:
            self._check(self._host, version)
            self._host = None
        return figures

    @property
    def detached(self) -> bool:
        """Whether the served model changes meanwhile (``EngineSettings.apart``)."""
        return bool(getattr(self._engine, "detached", False))

    @detached.setter
    def detached(self, value: bool) -> None:
        engine: Any = self._engine
        engine.detached = value

    def describe(self) -> dict[str, Any]:
        """See Engine."""
        return self._engine.describe()

    def close(self) -> None:
        """See Engine."""
        self._engine.close()

    def _check(self, host: Host, version: int) -> None:
        own = own_difference(self._engine, host.probe.sequences)
        allowed = TOLERANCE.get(str(self._engine.describe().get("rollout_dtype")), TOLERANCE["bfloat16"])
        if own is not None and not own[0] <= allowed * max(1.0, own[1]):
            raise StaleWeights(
                f"{host.group}={self._name}: after its first sync (version {version}) the engine gives what it samples"
                f" from {host.folder} other log-probs than the same tokens at once: mean difference {own[0]:.3g} on the"
                f" probe (allowed {allowed * max(1.0, own[1]):.3g}): what it keeps between tokens is not the model's"
            )
        gap, size = difference(self._engine, host.probe, self._temperature)
        allowed = self._engine.tolerance * max(1.0, size)
        if not gap <= allowed:
            raise StaleWeights(
                f"{host.group}={self._name}: after its first sync (version {version}) the engine does not answer as the"
                f" model read from {host.folder}: mean log-prob difference {gap:.3g} on the probe (allowed"
                f" {allowed:.3g}): it holds other weights, or computes something else"
            )
