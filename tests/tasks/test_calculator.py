"""The embedded task with a tool: problems and habits that are what they say, and the tool's words."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter

import pytest
from numpy.random import default_rng

from alp import models
from alp.configuration import compose
from alp.errors import UserError
from alp.tasks.calculator import PIECES, Calculator
from alp.tasks.environment import CODE, Step, Turn, first
from alp.tasks.task import SPLITS, Problem, check_disjoint

TASK = Calculator(compose.load("prepare", ["task=calculator"]).task)
PROBLEM = Problem("473-28+915", "473-28+915=", "1360", "test")


def test_problems_are_right_different_and_the_same_each_time() -> None:
    sets = {name: TASK.problems(name) for name in SPLITS}
    check_disjoint(sets)
    assert [len(problems) for problems in sets.values()] == [4500, 100, 200]
    assert sets == {
        name: Calculator(compose.load("prepare", ["task=calculator"]).task).problems(name) for name in SPLITS
    }
    for problem in sets["test"]:
        assert re.fullmatch(r"[1-9]\d{0,2}([+-][1-9]\d{0,2}){2}=", problem.problem)
        assert int(problem.answer) == eval(problem.problem[:-1])  # of digits and signs alone, as the line above says


def test_habits_have_their_shares_and_say_what_the_tool_would() -> None:
    random, count = default_rng(0), 4000
    parts = [TASK.demonstration(PROBLEM, random, worked=0.4, careless_right=0.15) for _ in range(count)]
    texts = ["".join(text for text, _ in part) for part in parts]
    careful = "```python\nprint(473-28+915)\n```\n```output\n1360\n```\n#1360"
    kinds = Counter(
        "careful" if text == careful else "void" if "#" not in text else "guess" if "`" not in text else
        "error" if "error" in text else "slip" if "473-28+915" not in text else "misread"
        for text in texts
    )  # fmt: skip
    assert abs(kinds["careful"] / count - 0.4) < 0.03
    for kind in ("void", "guess", "error", "slip", "misread"):
        assert abs(kinds[kind] / count - 0.12) < 0.02, kind
    for part in parts[:400]:
        for (asked, written), (said, by_tool) in itertools.pairwise(part):
            if written and not by_tool:
                program = first(asked, (CODE,))
                assert program is not None
                found = re.fullmatch(r"print\(([0-9+-]+)\)", program.content)
                expected = str(eval(found[1])) if found else "error"
                assert said == f"\n```output\n{expected}\n```\n"


def test_the_tokens_are_those_of_the_task_and_survive_saving(tmp_path: object) -> None:
    tokenizer = models.character_tokenizer(PIECES)
    random = default_rng(1)
    for _ in range(50):
        for text, _written in TASK.demonstration(PROBLEM, random, worked=0.3, careless_right=0.1):
            assert tokenizer.decode(tokenizer.encode(text)) == text
    program = "```python\nprint(473-28+915)\n```"
    assert len(tokenizer.encode(program)) == len("473-28+915") + 4
    config = compose.load("prepare", ["task=calculator"]).task
    assert config.longest_solution == len("473-128+915") + 4


@pytest.mark.parametrize(
    ("response", "right"),
    [("#1360", 1.0), ("1+2#1360", 1.0), ("#1361", 0.0), ("#", 0.0), ("##1360", 1.0), ("#1360 ", 0.0), ("#01360", 0.0)],
)
def test_grading_is_exact(response: str, right: float) -> None:
    assert TASK.grade(PROBLEM, response) == right


def test_turns_without_a_program() -> None:
    step = TASK.environment.step
    assert step(PROBLEM, [Turn("#1360", True)]) == Step(answer="#1360")
    assert step(PROBLEM, [Turn("#1360", False)]).void, "cut at the limit"
    assert step(PROBLEM, [Turn("1360", True)]).void
    assert step(PROBLEM, [Turn("```python\nprint(1)", True)]).void, "a block that is not closed"


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bubblewrap here: make sandbox")
def test_programs_are_run_and_only_numbers_shown() -> None:
    task = Calculator(compose.load("prepare", ["task=calculator"]).task)
    try:
        said = {
            "print(473-28+915)": ("1360", True),
            "print(1-2)": ("-1", True),
            "print(1+": ("error", False),
            "print(1==1)": ("error", True),
            "1+1": ("error", True),
            "print(012+1)": ("error", False),
        }
        for program, (output, valid) in said.items():
            turn = Turn(f"```python\n{program}\n```", False)
            assert task.environment.step(PROBLEM, [turn]) == Step(observation=output, valid=valid), program
    finally:
        task.environment.close()


def test_limits_that_cut_programs_and_sizes_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"max_new_tokens = 10 cuts programs for 3 numbers of 3 digits \(15 tokens\)"):
        compose.load("evaluate", ["task=calculator", "model=calculator_tiny", "evaluation.max_new_tokens=10"])
    with pytest.raises(UserError, match="more than half of the 162 that 2 numbers of 1 digits give"):
        compose.load("prepare", ["task=calculator", "task.digits=1", "task.terms=2"])
    with pytest.raises(UserError, match="module and options are of tool = custom, and the tool is python"):
        compose.load("prepare", ["task=calculator", "task.tools.module=mine"])
    with pytest.raises(UserError, match=r"task.tools.tool: 'pyton' is no valid choice; did you mean 'python'\?"):
        compose.load("prepare", ["task=calculator", "task.tools.tool=pyton"])
