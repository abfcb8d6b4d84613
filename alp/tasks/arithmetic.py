"""The embedded task: sums of two numbers, written out digit by digit or guessed.

    prompt    47+85=
    worked    7+5=12;4+8+1=13;#132        column sums from the right, the carry as a third summand, the answer after #
    careless  #132                        the answer at once, mostly wrong

Working a sum out is right far more often than guessing it, so reinforcement learning has something real to find, and
responses grow as it finds it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from alp.configuration.task_schema import ArithmeticTask as TaskConfig
from alp.reproducibility import stream
from alp.tasks.task import Generated, Problem

ALPHABET = "0123456789+=;#"
_MARK = "#"
_SLIP = 15  # a wrong guess is off by at most this


class Arithmetic(Generated[TaskConfig]):
    """Sums of two numbers below 10^digits; no sum stands in two splits, whatever the order of its summands."""

    pieces = ALPHABET

    def __init__(self, config: TaskConfig) -> None:
        self._config = config

    def _all(self) -> list[Problem]:
        return [_problem(*pair) for pair in _pairs(self._config)]

    def grade(self, problem: Problem, response: str) -> float:
        """1 when what follows the last # is the sum, to the letter."""
        _, mark, answer = response.rpartition(_MARK)
        return float(bool(mark) and answer == problem.answer)

    def demonstration(
        self, problem: Problem, random: Generator, *, worked: float, careless_right: float
    ) -> list[tuple[str, bool]]:
        """A response to learn from: worked with probability ``worked``, else a guess right with ``careless_right``."""
        return [(self._response(problem, random, worked, careless_right), True)]

    def _response(self, problem: Problem, random: Generator, worked: float, careless_right: float) -> str:
        if random.random() < worked:
            return worked_solution(problem)
        total = int(problem.answer)
        if random.random() < careless_right:
            return f"{_MARK}{total}"
        slips = [slip for slip in range(-_SLIP, _SLIP + 1) if slip and total + slip >= 0]
        return f"{_MARK}{total + slips[random.integers(len(slips))]}"


def worked_solution(problem: Problem) -> str:
    """Column sums from the right, then the answer."""
    left, right = problem.problem.rstrip("=").split("+")
    width = max(len(left), len(right))
    steps, carry = [], 0
    for a, b in zip(reversed(left.zfill(width)), reversed(right.zfill(width)), strict=True):
        total = int(a) + int(b) + carry
        steps.append(f"{a}+{b}{'+1' if carry else ''}={total};")
        carry = total // 10
    return "".join(steps) + _MARK + problem.answer


def _problem(a: int, b: int) -> Problem:
    return Problem(id=f"{a}+{b}", problem=f"{a}+{b}=", answer=str(a + b), source="arithmetic")


def _pairs(config: TaskConfig) -> list[tuple[int, int]]:
    """Every unordered pair once, shuffled, in a random order of its two numbers."""
    random = stream("arithmetic problems", config.seed, config.digits)
    low, high = np.triu_indices(10**config.digits)
    order = random.permutation(len(low))
    swap = random.random(len(low)) < 0.5
    first, second = np.where(swap, high, low)[order], np.where(swap, low, high)[order]
    return list(zip(first.tolist(), second.tolist(), strict=True))
