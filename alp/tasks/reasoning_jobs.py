"""The jobs of workers for reasoning-gym: making problems and scoring answers, with the fixed hash seed that six of its
generators need."""

from __future__ import annotations

import contextlib
import json
from functools import lru_cache
from typing import Any

import reasoning_gym
from reasoning_gym.factory import DATASETS


@lru_cache(maxsize=8)
def _dataset(name: str, options: str, seed: int, size: int) -> Any:
    """Entries follow from seed and index, and in a few generators from the size: those make all of them at once."""
    return reasoning_gym.create_dataset(name, seed=seed, size=size, **json.loads(options))


def names() -> list[str]:
    """Every generator."""
    return sorted(DATASETS)


def generate(name: str, options: str, seed: int, size: int, count: int) -> list[tuple[int, str, str]]:
    """(index, question, answer) of the first ``count`` entries whose questions differ; fewer when the generator has no
    more."""
    dataset, seen, found = _dataset(name, options, seed, size), set(), []
    for index in range(size):
        entry = dataset[index]
        if entry["question"] not in seen:
            seen.add(entry["question"])
            found.append((index, str(entry["question"]), "" if entry["answer"] is None else str(entry["answer"])))
            if len(found) == count:
                break
    return found


def score(name: str, options: str, seed: int, size: int, index: int, answer: str) -> float:
    """The generator's own score of an answer to entry ``index``, in [0, 1]."""
    dataset = _dataset(name, options, seed, size)
    return float(dataset.score_answer(answer=answer, entry=dataset[index]))


def sound() -> bool:
    """Whether a problem's own answer is right and another is wrong."""
    made = ("chain_sum", "{}", 0, 1)
    own = str(_dataset(*made)[0]["answer"])
    return score(*made, 0, own) == 1.0 and score(*made, 0, own + "1") < 1.0


def warm(job: str, arguments: list[Any]) -> None:
    """Word lists and the like are read once per worker. What fails here fails in the fork too, where it is a fault of
    the request."""
    if job in ("generate", "score"):
        with contextlib.suppress(Exception):
            _dataset(*arguments[:4])


LIBRARIES = {"reasoning_gym": "reasoning-gym"}
JOBS = {"names": names, "sound": sound, "generate": generate, "score": score}
