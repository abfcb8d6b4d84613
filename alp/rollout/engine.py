"""The one seam between training and inference: token ids in, token ids and behaviour log-probs out, plus new weights.

Ids are never decoded and re-encoded. An engine returns the log-prob of exactly what it sampled, at the temperature it
sampled with, over the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from alp.reproducibility import stream

if TYPE_CHECKING:
    from alp.rollout.stops import Stops


class Purpose(IntEnum):
    """First word of a sampling key, so that training, validation, evaluation and probes never share random numbers."""

    TRAINING = 0
    VALIDATION = 1
    EVALUATION = 2
    PROBE = 3


@dataclass(frozen=True)
class Request:
    """One turn to sample. ``key`` alone fixes its random numbers: (purpose, seed, step, problem, sample), and behind
    the first turn the turn's number. ``limit``: most tokens, where that is less than ``Sampling.max_new_tokens``."""

    prompt_ids: tuple[int, ...]
    key: tuple[int, ...]
    limit: int | None = None

    def most(self, sampling: Sampling) -> int:
        """Tokens it may get."""
        return sampling.max_new_tokens if self.limit is None else min(self.limit, sampling.max_new_tokens)


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy decoding, which has no behaviour policy and no place in training.

    A response ends with ``eos_token_id`` or one of ``stop_token_ids`` (the end of a turn in a chat, where that is
    another token), and behind what ``stops`` says. An engine that knows nothing of ``stops`` or of a request's limit
    samples on, and what it sampled there is dropped (``alp.rollout.stops.cut``).
    """

    temperature: float
    max_new_tokens: int
    eos_token_id: int
    pad_token_id: int
    stop_token_ids: tuple[int, ...] = ()
    stops: Stops | None = None

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a response."""
        return (self.eos_token_id, *self.stop_token_ids)


@dataclass(frozen=True)
class Completion:
    """Sampled ids with their log-probs under the engine; the end token is part of the response, if it was sampled."""

    token_ids: list[int]
    log_probs: list[float]
    finished: bool


# log-probs (tokens of each sequence but the first) of given ids at a temperature, under the model that is served
Reference = Callable[[list[list[int]], float], list[list[float]]]


@dataclass(frozen=True)
class Probe:
    """Fixed sequences and what the served model says about them, in ``dtype``; an engine is held against it."""

    sequences: list[list[int]]
    reference: Reference
    dtype: str


@dataclass(frozen=True)
class Host:
    """What an engine works for: the model whose weights it serves, the folder that model was read from, and its means.

    ``log`` takes what an engine process prints; ``scratch`` is an existing folder for its temporary files (None: the
    system's). ``seed`` is of what an engine draws beyond its requests' own keys. ``group`` is the configuration group
    that chose the engine, for messages.
    """

    model: Any
    folder: Path
    log: Path
    device: torch.device
    seed: int
    probe: Probe
    scratch: Path | None = None
    group: str = "rollout"


class Engine(Protocol):
    """What training and evaluation need of an inference engine.

    One that also has ``score(sequences)``, the log-probs at temperature 1 of every token but the first of given ids
    computed at once, has its first answers held against that (``alp.rollout.probe``).
    """

    @property
    def tolerance(self) -> float:
        """Largest mean |log-prob difference| to the served model that its number formats explain, relative to the mean
        |log-prob| where that is above 1."""
        ...

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order."""
        ...

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> dict[str, float]:
        """Take new weights (names as in the training model's ``named_parameters``); returns figures for
        ``timings.jsonl``."""
        ...

    def describe(self) -> dict[str, Any]:
        """What is really active: engine, dtype, quantisation, noise; read from the engine, not from the
        configuration."""
        ...

    def close(self) -> None:
        """Give back what it holds outside this process. May be called twice."""
        ...


class Implementation(Protocol):
    """What an entry of ``alp.rollout.registry`` names: most often the engine's class, with two class methods."""

    def check(self, settings: Any, folder: Path, group: str) -> None:
        """Refuse, before anything is computed, what this machine or the model in ``folder`` cannot do. Raises
        UserError."""
        ...

    def make(self, settings: Any, host: Host) -> Engine:
        """The engine of ``settings`` (its class of ``alp.configuration.rollout_schema``)."""
        ...


def uniforms(key: tuple[int, ...], count: int) -> np.ndarray:
    """``count`` uniform numbers in [0, 1) that belong to this key, whatever the batch around it; float64."""
    return stream("sampling", *key).random(count)
