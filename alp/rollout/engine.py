"""The one seam between training and inference: token ids in, token ids and behaviour log-probs out, plus new weights.

Ids are never decoded and re-encoded. An engine returns the log-prob of exactly what it sampled, at the temperature it
sampled with, over the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from alp.reproducibility import stream


class Purpose(IntEnum):
    """First word of a sampling key, so that training, validation and tests never share random numbers."""

    TRAINING = 0
    VALIDATION = 1
    EVALUATION = 2


@dataclass(frozen=True)
class Request:
    """One response to sample. ``key`` alone fixes its random numbers: (purpose, seed, step, problem, sample)."""

    prompt_ids: tuple[int, ...]
    key: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy decoding, which has no behaviour policy and no place in training.

    A response ends with ``eos_token_id`` or one of ``stop_token_ids`` (the end of a turn in a chat, where that is
    another token).
    """

    temperature: float
    max_new_tokens: int
    eos_token_id: int
    pad_token_id: int
    stop_token_ids: tuple[int, ...] = ()

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


class Engine(Protocol):
    """What training and evaluation need of an inference engine."""

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


def uniforms(key: tuple[int, ...], count: int) -> np.ndarray:
    """``count`` uniform numbers in [0, 1) that belong to this key, whatever the batch around it; float64."""
    return stream("sampling", *key).random(count)
