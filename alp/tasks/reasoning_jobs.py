"""The jobs of workers for reasoning-gym: making problems and scoring answers, with the fixed hash seed that six of its generators need."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS

_TRIES = 20  # entries looked at for each problem wanted: small generators repeat themselves
_SIZE = 2**31 - 1  # an entry follows from seed and index alone, whatever the size


@lru_cache(maxsize=8)
def _dataset(name: str, options: str, seed: int) -> Any:
    return reasoning_gym.create_dataset(name, seed=seed, size=_SIZE, **json.loads(options))


def names() -> list[str]:
    """Every generator."""
    return sorted(DATASETS)


def generate(name: str, options: str, seed: int, count: int) -> list[tuple[int, str, str]]:
    """(index, question, answer) of the first ``count`` entries whose questions differ; fewer when the generator has no more."""
    dataset, seen, found = _dataset(name, options, seed), set(), []
    for index in range(_TRIES * count):
        entry = dataset[index]
        if entry["question"] not in seen:
            seen.add(entry["question"])
            found.append((index, str(entry["question"]), "" if entry["answer"] is None else str(entry["answer"])))
            if len(found) == count:
                break
    return found


def score(name: str, options: str, seed: int, index: int, answer: str) -> float:
    """The generator's own score of an answer to entry ``index``, in [0, 1]."""
    dataset = _dataset(name, options, seed)
    return float(dataset.score_answer(answer=answer, entry=dataset[index]))


def warm(job: str, arguments: list[Any]) -> None:
    """Word lists and the like are read once per worker."""
    if job != "names":
        _dataset(*arguments[:3])


JOBS = {"names": names, "generate": generate, "score": score}
