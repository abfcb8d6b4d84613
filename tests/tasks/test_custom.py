"""A user's own task and reward run like ours, and what is wrong with them is said in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alp.cli import main
from alp.configuration import compose
from alp.errors import UserError
from alp.tasks.catalogue import load_task
from alp.tasks.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_runs_as_its_first_lines_say(tmp_path: Path) -> None:
    command = next(
        line.strip()
        for line in (ROOT / "examples" / "own_task.py").read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("alp ")
    )
    assert "run.dir=results/own_task" in command
    done = subprocess.run(
        command.replace("results/own_task", str(tmp_path)).replace("alp ", f"{sys.executable} -m alp.cli ", 1),
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        *("train.jsonl", "validation.jsonl", "test.jsonl", "summary.json", "leakage.json", "leakage.md", ".alp")
    }
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert sum(entry["problems"] for entry in summary.values()) == 200


def test_problems_grades_and_system_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    chosen = compose.load("prepare", ["task=custom", "task.module=examples.own_task", "task.options={words: 30}"]).task
    task = load_task(chosen)
    problem = task.problems("train")[0]
    assert task.grade(problem, f"It is {problem.answer}.") == 1.0
    assert task.grade_all([problem] * 2, ["maybe", "I do not know"]) == [0.5, 0.0]
    assert task.system == "Answer with one of the two words."
    prepare(chosen, tmp_path)
    read = load_task(chosen.model_copy(update={"data": str(tmp_path)}))
    assert read.problems("train") == task.problems("train")
    assert read.grade(problem, problem.answer) == 1.0


def test_another_reward_for_our_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "p.jsonl").write_text('{"id": 1, "problem": "What is 1+1?", "answer": "2", "source": "own"}\n')
    words = ["task=mathematics", f"task.train=[{{path: '{tmp_path}/p.jsonl'}}]", "task.test={}", "task.validation=0"]
    task = load_task(compose.load("prepare", [*words, "task.grader=examples.own_task.halves"]).task)
    problem = task.problems("train")[0]
    assert task.grade_all([problem] * 3, ["so 2", "2 or 3", "3"]) == [1.0, 0.5, 0.0]
    with pytest.raises(
        UserError, match=r"task\.grader: examples\.own_task has no function 'halve'; did you mean 'halves'"
    ):
        load_task(compose.load("prepare", [*words, "task.grader=examples.own_task.halve"]).task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "importing broken_0 fails: SyntaxError"),
        ("x = 1", "broken_1 has no function 'Task'"),
        (
            "class Task:\n    def __init__(self, options): pass",
            r"broken_2\.Task must be a subclass of alp\.tasks\.task\.Task",
        ),
        ("class Task:\n    pass", r"broken_3\.Task cannot be made with task\.options"),
        ("import no_such_module", "cannot import broken_4: No module named 'no_such_module'"),
    ],
)
def test_broken_modules_are_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = "broken_" + message.split("broken_")[1][0]
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=message):
        load_task(compose.load("prepare", ["task=custom", f"task.module={name}"]).task)


def test_a_changed_module_is_another_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that was edited between two runs, and nothing says so."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("class Task: ...")
    loaded = compose.load("prepare", ["task=custom", "task.module=mine"])
    before = compose.identity(loaded)
    (tmp_path / "mine.py").write_text("class Task: pass")
    assert compose.identity(loaded) != before


def test_a_module_must_be_named() -> None:
    with pytest.raises(UserError, match=r"task\.module: name your module"):
        load_task(compose.load("prepare", ["task=custom"]).task)


OWN = """
import sys
from alp.tasks.task import Problem, Task as Base
class Task(Base):
    def __init__(self, options): self.o = options
    def problems(self, split):
        {problems}
        return [Problem(f"{{split}}-1", "1+1=", "2", "own")]
    def prompt(self, problem):
        {prompt}
        return problem.problem
    def grade(self, problem, response):
        {grade}
        return 1.0
"""


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        ("problems", "1 / 0", r"problems\('train'\) fails: ZeroDivisionError: division by zero"),
        ("problems", "return None", r"problems\('train'\): a list of problems is needed, this is a NoneType"),
        ("problems", "return [1]", r"number 0 is a int, not an alp.tasks.task.Problem"),
        ("problems", "return [Problem(1, 'a', 'b', 'c')]", r"number 0: id must be a text, this is a int"),
        ("problems", "return [Problem('a', 'a', 2, 'c')]", r"number 0: answer must be a text, this is a int"),
        ("problems", "return [Problem('a', 'a', 'b', 'c')] * 2", r"number 1: its id 'a' is used twice"),
        ("problems", "return [Problem('', 'a', 'b', 'c')]", r"number 0: its id '' is empty"),
        ("problems", "sys.exit(0)", r"problems\('train'\) fails: SystemExit: 0"),
        ("prompt", "return None", r"prompt of problem 'train-1' must be a text, this is a NoneType"),
        ("prompt", "raise ValueError('no\\nway')", r"prompt fails at problem 'train-1': ValueError: no way"),
        ("grade", "raise KeyError('x')", r"grade fails at problem 'train-1': KeyError: 'x'"),
        ("grade", "sys.exit(0)", r"grade fails at problem 'train-1': SystemExit: 0"),
    ],
)
def test_what_the_user_s_code_does_wrong_is_one_line(
    where: str, code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = f"own_{abs(hash((where, code)))}"
    parts = {part: code if part == where else "pass" for part in ("problems", "prompt", "grade")}
    (tmp_path / f"{name}.py").write_text(OWN.format(**parts))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    task = load_task(compose.load("prepare", ["task=custom", f"task.module={name}"]).task)

    def use() -> None:
        (problem,) = task.problems("train")
        task.prompt(problem)
        task.grade_all([problem], ["2"])

    with pytest.raises(UserError, match=said) as caught:
        use()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sets", ["['train', '../x', 'validation', 'test']", "['train', 'test']", "'train'", "[1]"])
def test_sets_of_a_custom_task_are_names(sets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"own_sets_{abs(hash(sets))}"
    (tmp_path / f"{name}.py").write_text(
        OWN.format(problems="pass", prompt="pass", grade="pass") + f"    sets = {sets}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    with pytest.raises(UserError, match=rf"task\.module: {name}: sets "):
        load_task(compose.load("prepare", ["task=custom", f"task.module={name}"]).task)


def test_nothing_to_train_on_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module's mistake that its training would have shown: everything is held out."""
    code = "if split == 'train': return []"
    (tmp_path / "own_held_out.py").write_text(OWN.format(problems=code, prompt="pass", grade="pass"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert main(["prepare", "task=custom", "task.module=own_held_out", f"run.dir={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.endswith("train 0, validation 1, test 1; none to train on, 1 held out\n")
