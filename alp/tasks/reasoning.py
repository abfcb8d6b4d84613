"""``task=reasoning_gym``: verifiable problems that other people's generators make."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from alp.configuration.task_schema import ReasoningGymTask
from alp.errors import UserError, nearest
from alp.tasks.grading import final_answer
from alp.tasks.grading_pool import Limits, Outcome, Work, pool
from alp.tasks.tally import count, note
from alp.tasks.task import Generated, Problem

_JOBS = "alp.tasks.reasoning_jobs"
_GENERATING = Limits(cpu_seconds=600, memory_bytes=8 * 1024**3, wall_seconds=1800)
_SCORING = Limits(cpu_seconds=20.0, memory_bytes=4 * 1024**3, wall_seconds=900.0)
_NO_ROUNDING = 1e-9
_KNOWN: tuple[tuple[str, list[Any], Any], ...] = (("sound", [], True),)


class ReasoningGym(Generated[ReasoningGymTask]):
    """One generator; splits are consecutive stretches of its different questions."""

    def __init__(self, config: ReasoningGymTask) -> None:
        self._config, self.system = config, config.system
        if find_spec("reasoning_gym") is None:
            raise UserError(
                "task=reasoning_gym: reasoning-gym is not installed; make install EXTRAS=dev,parity,reasoning"
            )
        known = _worked("names", [], "task").value
        if config.generator not in known:
            raise UserError(
                f"task.generator: reasoning-gym has no generator '{config.generator}'{nearest(config.generator, known)}"
            )
        self._wanted = config.train + config.validation + config.test
        size = 3 * self._wanted + 200  # entries to choose from: small generators repeat themselves
        self._key = [config.generator, json.dumps(config.options, sort_keys=True), config.seed, size]

    def _all(self) -> list[Problem]:
        return self._made

    @cached_property
    def _made(self) -> list[Problem]:
        wanted = self._wanted
        outcome = _worked("generate", [*self._key, wanted], f"task.options: the generator {self._config.generator}")
        if len(outcome.value) < wanted:
            made = f"{self._config.generator} gave only {len(outcome.value)} different ones"
            raise UserError(f"task: train + validation + test = {wanted} problems, but {made}")
        name = self._config.generator
        return [
            Problem(f"{name}/{index}", question, answer, f"reasoning-gym:{name}")
            for index, question, answer in outcome.value
        ]

    def grade(self, problem: Problem, response: str) -> float:
        """1 when the generator's score of the final answer reaches the threshold."""
        return self.grade_all([problem], [response])[0]

    def grade_all(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[float]:
        """Scores in other processes, with limits: some generators evaluate what they are given."""
        requests: list[list[Any]] = [
            [*self._key, int(problem.id.rpartition("/")[2]), extracted(response)]
            for problem, response in zip(problems, responses, strict=True)
        ]
        scores = []
        outcomes = pool().settle(Work(_JOBS, "score", _KNOWN), requests, _SCORING)
        for request, (outcome, again) in zip(requests, outcomes, strict=True):
            count("again", int(again))
            if outcome.fault is not None:
                note("error" if outcome.fault == "raised" else outcome.fault, request[-1], outcome.detail)
            scores.append(float(outcome.fault is None and outcome.value >= self._config.threshold - _NO_ROUNDING))
        return scores


def _worked(job: str, arguments: list[Any], what: str) -> Outcome:
    """The outcome of a job that answers no policy. Raises UserError when it fails, GraderError when workers do not
    work."""
    ((outcome, _),) = pool().settle(Work(_JOBS, job, _KNOWN), [arguments], _GENERATING)
    if outcome.fault is not None:
        raise UserError(f"{what} fails: {outcome.detail or outcome.fault}")
    return outcome


def extracted(response: str) -> str:
    """What stands in the last <answer> tags, else in the last box, else the response as it is."""
    _, opened, rest = response.rpartition("<answer>")
    if opened:
        return rest.partition("</answer>")[0].strip()
    return (final_answer(response) if r"\boxed" in response else None) or response.strip()
