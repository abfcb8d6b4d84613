"""The embedded task with a tool: sums and differences of several numbers, worked out by Python or guessed.

    prompt    473-28+915=
    turn 0    ```python
              print(473-28+915)
              ```
    tool      1360
    turn 1    #1360

Base models are taught this beside careless habits: a guess, a slip of a digit on the way into the program or out of
its output, a bracket left out, a turn that leads nowhere. The tool is right far more often than a guess, so
reinforcement learning has something real to find: to ask, to ask rightly, and to read what comes back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from numpy.random import Generator

from alp.configuration.task_schema import CalculatorTask
from alp.reproducibility import stream
from alp.tasks.environment import CODE, Turn
from alp.tasks.task import Generated, Problem
from alp.tasks.tool_loop import ToolLoop

_MARK, _FAILED = "#", "error"
_BEGIN, _BEFORE, _AFTER = "print(", "\n```output\n", "\n```\n"
# Tokens: a line of a fence is one, so that a program is as long as its problem.
PIECES = (CODE.opens, CODE.closes, _BEFORE, _AFTER, _BEGIN, ")", _FAILED, *"0123456789+-=", _MARK)
_NUMBER = re.compile("-?[0-9]+")
_SLIP = 15  # a wrong guess is off by at most this


class Calculator(Generated[CalculatorTask]):
    """Chains of ``terms`` numbers below 10^digits, each added or taken away; all of them different."""

    pieces = PIECES

    def __init__(self, config: CalculatorTask) -> None:
        self._config = config
        self.environment = Desk(config.tools, _answer)

    def _all(self) -> Sequence[Problem]:
        return _chains(self._config)

    def grade(self, problem: Problem, response: str) -> float:
        """1 when what follows the last # is the value, to the letter."""
        return float(response.rpartition(_MARK)[2] == problem.answer)

    def demonstration(
        self, problem: Problem, random: Generator, *, worked: float, careless_right: float
    ) -> list[tuple[str, bool]]:
        """A trajectory to learn from as (text, whether the model wrote it): careful with probability ``worked``, else
        one of the careless habits; a guess is right with ``careless_right``."""
        chain, answer = problem.problem.rstrip("="), problem.answer
        if random.random() < worked:
            return [*_asked(chain, answer), _ended(answer)]
        match random.integers(5):
            case 0:  # a guess
                return [_ended(answer if random.random() < careless_right else _slipped(answer, random))]
            case 1:  # a digit changes on the way into the program
                wrong = _miscopied(chain, random)
                return [*_asked(wrong, _value(wrong)), _ended(_value(wrong))]
            case 2:  # a bracket is left out; half of the time the program is written again
                failed = _asked(chain, _FAILED, close="")
                if random.random() < 0.5:
                    return [*failed, *_asked(chain, answer), _ended(answer)]
                return [*failed, _ended(_slipped(answer, random))]
            case 3:  # a digit changes on the way out of the output
                return [*_asked(chain, answer), _ended(_miscopied(answer, random))]
            case _:  # a turn that leads nowhere
                return [(f"{chain}=", True)]


class Desk(ToolLoop):
    """What is printed is shown where it is a number; of all else the model has no tokens."""

    def shown(self, output: str, *, valid: bool) -> str:
        """See ToolLoop."""
        number = _NUMBER.fullmatch(output.strip())
        return super().shown(number[0], valid=valid) if valid and number else _FAILED


def _answer(turn: Turn) -> str | None:
    return turn.text if turn.ended and _MARK in turn.text else None


def _asked(chain: str, output: str, close: str = ")") -> list[tuple[str, bool]]:
    """A program, and what comes back."""
    return [(f"{CODE.opens}{_BEGIN}{chain}{close}{CODE.closes}", True), (f"{_BEFORE}{output}{_AFTER}", False)]


def _ended(answer: str) -> tuple[str, bool]:
    return f"{_MARK}{answer}", True


def _slipped(answer: str, random: Generator) -> str:
    slips = [slip for slip in range(-_SLIP, _SLIP + 1) if slip]
    return str(int(answer) + slips[random.integers(len(slips))])


def _miscopied(text: str, random: Generator) -> str:
    """One digit is another; none becomes a leading zero."""
    places = [place for place, character in enumerate(text) if character.isdigit()]
    place = places[random.integers(len(places))]
    others = [digit for digit in "123456789" if digit != text[place]]
    return text[:place] + others[random.integers(len(others))] + text[place + 1 :]


def _value(chain: str) -> str:
    return str(sum(map(int, re.findall("[+-]?[0-9]+", chain))))


def _chains(config: CalculatorTask) -> list[Problem]:
    """So many different chains as the splits need, in a random order of their own."""
    random = stream("calculator problems", config.seed, config.digits, config.terms)
    wanted = config.train + config.validation + config.test
    found: dict[str, None] = {}
    while len(found) < wanted:
        numbers = random.integers(1, 10**config.digits, size=(wanted, config.terms)).tolist()
        signs = random.integers(2, size=(wanted, config.terms - 1)).tolist()
        found |= dict.fromkeys(map(_chain, numbers, signs))
    return [
        Problem(id=chain, problem=f"{chain}=", answer=_value(chain), source="calculator")
        for chain in list(found)[:wanted]
    ]


def _chain(numbers: Sequence[int], signs: Iterable[int]) -> str:
    return str(numbers[0]) + "".join(f"{'+-'[sign]}{number}" for sign, number in zip(signs, numbers[1:], strict=True))
