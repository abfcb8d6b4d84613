"""A model that writes what a test tells it to, and a tool that answers after a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from alp import models
from alp.rollout.ends import Ends
from alp.rollout.engine import Completion, Request, Sampling
from alp.rollout.stops import Stops
from alp.tasks.calculator import PIECES
from alp.tasks.environment import CODE, Environment, Step, Turn, first
from alp.tasks.task import Problem, Task

Script = Callable[[int, int, int], str]  # problem, sample, turn -> text, "$" at its end for the end token


def tokenizer() -> PreTrainedTokenizerBase:
    """That of the calculator."""
    return models.character_tokenizer(PIECES)


class Scripted:
    """An engine without a model: ids of the script's texts, log-probs that name their request and place."""

    def __init__(self, script: Script, *, runs_on: bool = False) -> None:
        self.script, self.runs_on = script, runs_on
        self.tokenizer = tokenizer()
        self.batches: list[list[tuple[int, ...]]] = []
        self.contexts: dict[tuple[int, ...], tuple[int, ...]] = {}

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        self.batches.append([request.key for request in requests])
        return [self._one(request, sampling) for request in requests]

    def _one(self, request: Request, sampling: Sampling) -> Completion:
        assert request.key not in self.contexts, "asked twice"
        self.contexts[request.key] = request.prompt_ids
        problem, sample, *turn = request.key[3:]
        text = self.script(problem, sample, turn[0] if turn else 0)
        ids = self.tokenizer.encode(text.removesuffix("$"))
        ids += [sampling.eos_token_id] if text.endswith("$") else []
        if self.runs_on:  # as if it knew nothing of forms: it goes on to its limit
            ids += ids[:1] * sampling.max_new_tokens
        ids = ids[: request.most(sampling)] if not self.runs_on else ids[: sampling.max_new_tokens]
        logs = [-0.001 * (place + 1) - 0.1 * sample for place in range(len(ids))]
        return Completion(ids, logs, ids[-1] == sampling.eos_token_id)


class Echo(Environment):
    """Says how long a program was, after a delay that depends on nothing one could know. A program that holds 9 is
    invalid."""

    before, after = "\n```output\n", "\n```\n"

    def __init__(self, delay: Callable[[], float] = float, **rules: Any) -> None:
        self.turns, self.context, self.observation_tokens, self.workers = 3, None, 12, 4
        self.leave_out_void, self.forms = True, (CODE,)
        vars(self).update(rules)
        self.delay, self.calls = delay, 0
        self._counting = threading.Lock()

    def step(self, problem: Problem, turns: Sequence[Turn]) -> Step:
        time.sleep(self.delay())
        with self._counting:
            self.calls += 1
        found = first(turns[-1].text, self.forms)
        if found is not None:
            return Step(observation=f"{problem.id}{len(found.content)}", valid="9" not in found.content)
        return Step(answer=turns[-1].text if turns[-1].ended and "#" in turns[-1].text else None)


class Fixed(Task):
    """Problem number k is "k+k=", and any answer that ends with its number is right."""

    def __init__(self, environment: Environment | None) -> None:
        self.environment = environment

    def problems(self, split: str) -> list[Problem]:
        del split
        return [Problem(str(number), f"{number}+{number}=", str(number), "scripted") for number in range(6)]

    def grade(self, problem: Problem, response: str) -> float:
        return float(response.endswith(problem.answer))


def sampling(environment: Environment, most: int = 24) -> Sampling:
    """What the engine is told."""
    return Ends({"tokenizer": (1,)}, tokenizer()).sampling(
        temperature=1.0, max_new_tokens=most, stops=Stops.of(tokenizer(), environment.forms)
    )
