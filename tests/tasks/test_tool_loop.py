"""Tools between turns: the mathematics task, what Python says, a tool of one's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from alp.configuration import compose
from alp.configuration.tool_schema import Tools
from alp.errors import SandboxUnavailable, UserError
from alp.tasks.catalogue import load_task
from alp.tasks.environment import Environment, Step, Turn
from alp.tasks.python_tool import PythonTool
from alp.tasks.task import Problem

PROBLEM = Problem("p", "What is 6 times 7?", "42", "test")
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bubblewrap here: make sandbox")


def mathematics(tmp_path: Path, *words: str) -> Any:
    for name in ("train", "mine"):
        (tmp_path / f"{name}.jsonl").write_text('{"problem": "What is 6 times 7?", "answer": "42"}\n', encoding="utf-8")
    own = [f"task.train=[{{path: '{tmp_path}/train.jsonl'}}]", f"task.test={{mine: {{path: '{tmp_path}/mine.jsonl'}}}}"]
    return load_task(compose.load("prepare", ["task=mathematics_tools", *own, "task.validation=0", *words]).task)


def block(program: str) -> Turn:
    return Turn(f"Let us see.\n```python\n{program}\n```", False)


def test_the_mathematics_task_answers_in_a_box_and_keeps_its_grading(tmp_path: Path) -> None:
    task = mathematics(tmp_path)
    environment: Environment = task.environment
    assert (environment.turns, environment.context, environment.observation_tokens) == (5, 16000, 256)
    text = r"so it is \boxed{\frac{84}{2}}"
    assert environment.step(PROBLEM, [Turn(text, False)]) == Step(answer=text)
    assert task.grade(task.problems("mine")[0], text) == 1.0
    for void in ("it is 42", r"\boxed{42", "```\nprint(42)\n```", ""):
        assert environment.step(PROBLEM, [Turn(void, True)]).void, void


@needs_bwrap
def test_what_a_program_says(tmp_path: Path) -> None:
    environment: Environment = mathematics(tmp_path, "task.tools.timeout=0.5").environment
    try:
        cases = {
            "print(6 * 7)": ("42", True),
            "print('a\\n')\nprint('b')": ("a\n\nb", True),
            "x = 1": ("(no output)", True),
            "print(1)\n1 / 0": ("1\nZeroDivisionError: division by zero", False),
            "def": ("SyntaxError: invalid syntax", False),
            "import sys; sys.exit(3)": ("(exit code 3)", False),
            "while True: pass": ("(stopped: limit of cpu)", False),
            "print('x' * 1000)": ("x" * 512, True),
            r"print('\\boxed{1}')": (r"\boxed{1}", True),
        }
        for program, (output, valid) in cases.items():
            assert environment.step(PROBLEM, [block(program)]) == Step(observation=output, valid=valid), program
        again = [
            environment.step(PROBLEM, [block("import random; print(random.random(), hash('a'))")]) for _ in range(3)
        ]
        assert again[0] == again[1] == again[2]
    finally:
        environment.close()
    environment.close()


def test_without_bubblewrap_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable, match="bubblewrap"):
        PythonTool(settings()).check()


def settings(**changes: Any) -> Tools:
    plain = compose.load("prepare", ["task=calculator"]).task.tools.model_dump()
    return Tools.model_validate(plain | changes)


class Tool:
    """Looks words up; made with ``task.tools.options``."""

    opens, closes, after = "<look>", "</look>", "\n"

    def __init__(self, options: dict[str, Any]) -> None:
        self.words = options["words"]

    def run(self, request: str) -> Any:
        if request == "break":
            raise KeyError("no such shelf")
        if request == "number":
            return 3
        return (self.words.get(request, "unknown"), request in self.words)


OWN = ["task.tools.tool=custom", f"task.tools.module={__name__}", "task.tools.options={words: {a: 'the letter'}}"]


def test_a_tool_of_one_s_own(tmp_path: Path) -> None:
    environment: Environment = mathematics(tmp_path, *OWN).environment
    environment.check()
    assert (environment.before, environment.after, environment.forms[0].opens) == ("\n", "\n", "<look>")
    assert environment.step(PROBLEM, [Turn("<look>a</look>", False)]) == Step(observation="the letter")
    assert environment.step(PROBLEM, [Turn("<look>b</look>", False)]) == Step(observation="unknown", valid=False)
    assert environment.step(PROBLEM, [block("print(1)")]).void, "another tool's form"
    with pytest.raises(UserError, match=r"task.tools.module: .*Tool.run fails: KeyError: 'no such shelf'"):
        environment.step(PROBLEM, [Turn("<look>break</look>", False)])
    with pytest.raises(UserError, match="must give a text, or a text and whether the request was valid"):
        environment.step(PROBLEM, [Turn("<look>number</look>", False)])
    environment.close()


def test_the_example(tmp_path: Path) -> None:
    own = ["task.tools.tool=custom", "task.tools.module=examples.own_tool"]
    environment = mathematics(tmp_path, *own, "task.tools.options={table: {speed of light: 299792458}}").environment
    turn = Turn("<look>Speed of light</look>", False)
    assert environment.step(PROBLEM, [turn]) == Step(observation="299792458")
    assert environment.step(PROBLEM, [Turn("<look>pi</look>", False)]) == Step(observation="unknown", valid=False)


def test_faults_of_one_s_own_tool_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.tools.module: name your module"):
        mathematics(tmp_path, "task.tools.tool=custom")
    with pytest.raises(UserError, match=r"Tool cannot be made with task.tools.options: KeyError: 'words'"):
        mathematics(tmp_path, *OWN[:2])
    with pytest.raises(UserError, match=r"alp.tasks.tally has no function .Tool."):
        mathematics(tmp_path, OWN[0], "task.tools.module=alp.tasks.tally")


def test_the_code_of_one_s_own_tool_is_part_of_a_job() -> None:
    words = ["task=mathematics_tools", "task.train=[]", "task.test={}"]
    plain = compose.load("prepare", words)
    own = compose.load("prepare", [*words, *OWN])
    assert compose.identity(plain) != compose.identity(own)
    assert compose.code_of("prepare", plain) != compose.code_of("prepare", own)
