"""A fault of the machine is no verdict, and nothing that an answer does is a fault of the machine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from alp import cli, commands
from alp.errors import GraderError
from alp.tasks import grading, tally
from alp.tasks.grading import counts, grade_all
from alp.tasks.grading_pool import Limits, Pool, Work, pool
from alp.tasks.grading_process import interpreter

JOBS = "tests.tasks.jobs"
RIGHT = ("grade", ["a+b", "b+a", "math", None], [True, None, ""])
WRONG = ("grade", ["a+b", "b+c", "math", None], [False, None, ""])
ROOT = Path(__file__).resolve().parents[2]
Hurt = Callable[..., None]


@pytest.fixture
def hurt(monkeypatch: pytest.MonkeyPatch) -> Hurt:
    """The grader of a process, whose real workers some answers hurt."""

    def change(job: str = "grade", limits: Limits = Limits(cpu_seconds=1.0)) -> None:  # noqa: B008
        known = (
            (RIGHT, WRONG)
            if job == "grade"
            else tuple((job, arguments, value) for _, arguments, value in (RIGHT, WRONG))
        )
        monkeypatch.setattr(grading, "WORK", Work(JOBS, job, known))
        monkeypatch.setattr(grading, "LIMITS", limits)
        monkeypatch.setattr(grading, "_known", {})

    return change


KINDS = {
    "leave": "died",
    "overflow": "died",
    "worker": "died",
    "babble": "died",
    "full": "died",
    "eat": "memory",
    "spin": "time",
}


def _graded(acts: list[str | None], gold: str = "d+c") -> list[bool]:
    """The verdicts on one right answer to questions that hurt whoever grades it."""
    return grade_all([r"\boxed{c+d}"] * len(acts), [gold] * len(acts), prompts=acts)


def test_no_answer_stops_a_job(hurt: Hurt, caplog: pytest.LogCaptureFixture) -> None:
    """Answers that kill, crash, fill, block or end the process that grades them: each is wrong, counted by its kind and
    named; the others of the batch get their verdicts."""
    hurt()
    before = counts.copy()
    assert _graded([*KINDS, "recurse", None]) == [False] * (len(KINDS) + 1) + [True]
    met = {kind: counts[kind] - before[kind] for kind in (*tally.SERIOUS, "depth")}
    assert met == {"died": 5, "memory": 1, "time": 1, "depth": 1}
    assert f"7 of {len(KINDS) + 2} answers hit a limit of grading twice and count as wrong" in caplog.text
    before = counts.copy()
    assert _graded(["leave", "recurse", None]) == [False, False, True]
    assert counts["algebra"] == before["algebra"] + 1, "a verdict is kept; what met a limit is tried again"
    lines = grading.summary()
    assert any("the grading process died" in line and "'c+d' (ended by SIGKILL)" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_passing_fault_of_the_machine_changes_no_verdict(hurt: Hurt, tmp_path: Path) -> None:
    """A worker killed by a machine short of memory, a limit met under load: the same pair was wrong once and right
    once."""
    hurt()
    before = counts.copy()
    acts = ("leave", "spin", "worker")
    assert _graded([f"once {act} {tmp_path / act}" for act in acts]) == [True] * 3
    assert all((tmp_path / act).exists() for act in acts)
    assert counts["again"] == before["again"] + 3
    assert sum(counts[kind] - before[kind] for kind in tally.SERIOUS) == 0


@pytest.mark.parametrize(("job", "found"), [("doomed", "ended by SIGKILL"), ("mistaken", "a known answer was judged")])
def test_a_broken_grader_is_no_verdict(job: str, found: str, hurt: Hurt) -> None:
    """Every process killed, or everything right: an accuracy of 0 or 1, and exit code 0."""
    hurt(job)
    if job == "mistaken":  # looked at where something else is wrong
        with pytest.raises(GraderError, match=found):
            pool().settle(Work(JOBS, "leave", grading.WORK.known), [[]])
        return
    with pytest.raises(GraderError, match=found):
        grade_all([rf"\boxed{{y+{n}+x}}" for n in range(50)], [f"x+y+{n}" for n in range(50)])


def test_workers_that_cannot_begin_are_broken_at_once(hurt: Hurt, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, found in ((f"{JOBS}.missing", "cannot import"), ("nothing_of_that_name.at_all", "no package")):
        monkeypatch.setattr(grading, "WORK", Work(module, "grade", (RIGHT,)))
        before = time.monotonic()
        with pytest.raises(GraderError, match=found):
            grade_all([rf"\boxed{{v+{n}+u}}" for n in range(50)], [f"u+v+{n}" for n in range(50)])
        assert time.monotonic() - before < 60


def test_limits_that_the_machine_already_has_are_no_fault() -> None:
    """setrlimit refuses more than a hard limit."""
    script = (
        "import resource\nfrom alp.tasks.grading import grade\nresource.setrlimit(resource.RLIMIT_AS, (1500 * 1024**2,)"
        " * 2)\nresource.setrlimit(resource.RLIMIT_CPU, (15, 15))\nprint(grade(r'\\boxed{a+b}', 'b+a'),"
        " grade(r'\\boxed{a+b}', 'b+c'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_broken_grader_ends_a_job_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> str:
        raise GraderError("grading is broken:\n\x1b[2J" + "everywhere")

    monkeypatch.setattr(commands, "verify", broken)
    assert cli.main(["verify", "manifest.json"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == r"alp: error: grading is broken: \x1b[2Jeverywhere"


def test_a_job_ends_with_what_it_met(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tally, "counts", Counter())
    monkeypatch.setattr(tally, "_examples", defaultdict(list))
    with caplog.at_level(logging.INFO):
        tally.log_summary()
        assert caplog.records == []
        for number in range(5):
            tally.note("large", f"{number}\x1b[2J" + "9" * 500, "a number of more than 20000 digits")
        tally.note("died", "\ud800\n", "ended by SIGSEGV")
        tally.log_summary()
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    large, died = (record.getMessage() for record in caplog.records)
    assert large.startswith(
        r"5 answers count as wrong, beyond the limits of grading: too large a formula: '0\x1b[2J9999"
    )
    assert large.count("20000 digits") == 3
    assert (
        died == r"1 answer counts as wrong, the grading process died, in a second try alone too: '\ud800\n' (ended by"
        r" SIGSEGV)"
    )


SHADOWS = [
    "math_verify",
    "sympy",
    "latex2sympy2_extended",
    "mpmath",
    "gmpy2",
    "antlr4",
]  # gmpy2: wanted, and often not there
GRADES = (
    "from alp.tasks.grading import grade, GraderError\nprint(grade(r'\\boxed{f(x)+1}', '1+f(x)'),"
    " grade(r'\\boxed{a+b}', 'b+c'))"
)


def _strew(folder: Path, names: list[str]) -> Path:
    mark = folder / "ran"
    for name in names:
        (folder / f"{name}.py").write_text(
            f"open({str(mark)!r}, 'a').write({name!r})\nraise ImportError('not the library')\n", encoding="utf-8"
        )
    return mark


def test_nothing_of_the_working_folder_or_the_environment_runs(tmp_path: Path) -> None:
    """A math_verify.py beside the data: it was run, or every formula was wrong in silence."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    marks = [_strew(here, [*SHADOWS, "random", "json", "resource", "select"]), _strew(there, SHADOWS)]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{there}",
        "PYTHONSTARTUP": str(there / "sympy.py"),
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", GRADES], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "False"], done.stderr
    assert not any(mark.exists() for mark in marks)


FAKE = """import sys
sys.path.remove(FOLDER)
del sys.modules["mpmath"]
import mpmath
mpmath.__file__ = FOLDER + "/mpmath.py"
"""
GRADES_OR_SAYS = """from alp.tasks.grading import grade, GraderError
try:
    print(grade(r"\\boxed{a+b}", "b+a"))
except GraderError as error:
    print(error)
"""


def test_another_library_than_the_installed_one_is_named(tmp_path: Path) -> None:
    """A .pth file puts it before the installed one, as an editable install might."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "mpmath.py").write_text(FAKE.replace("FOLDER", repr(str(fake))), encoding="utf-8")
    own = next(place for place in sys.path if place.endswith("site-packages"))
    (site / "order.pth").write_text(f"{fake}\n{own}\n", encoding="utf-8")
    python, environment = tmp_path / "venv" / "bin" / "python", os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, "-c", GRADES_OR_SAYS], env=environment, capture_output=True, text=True)
    assert f"imported mpmath from {fake}/mpmath.py, but it is installed in" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["", "python", "./python"])
def test_the_interpreter_is_found_whatever_it_was_called_by(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", name)
    assert interpreter().startswith(sys.prefix)
    assert os.access(interpreter(), os.X_OK)


def test_threads_share_a_pool_whose_workers_die(hurt: Hurt) -> None:
    hurt()
    found: list[list[bool]] = []
    acts = ["leave", None, "1", "2", "worker"]
    threads = [threading.Thread(target=lambda: found.append(_graded(acts))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[False, True, True, True, False]] * 2


def test_memory_is_limited_and_the_worker_stays() -> None:
    own = Pool(1)
    assert own.run(JOBS, "eat", []).fault == "memory"
    pid = own.workers[0].pid
    assert own.run(JOBS, "leave", []).detail == "ended by SIGKILL"
    assert own.run(JOBS, "spin", [], Limits(cpu_seconds=0.3)).fault == "time"
    assert own.workers[0].pid == pid
    assert own.run(JOBS, "sleep", [60], Limits(wall_seconds=0.5)).detail == "no answer in 0.5 s"
    assert own.run(*("alp.tasks.algebra", *RIGHT[:2])).value == RIGHT[2]
    own.close()
