"""Answers are judged as a careful person would, whatever they are made of, and nothing an answer holds hurts who judges it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alp.tasks import grading
from alp.tasks.bounded import Limits, Pool, pool
from alp.tasks.grading import final_answer, grade, grade_all
from benchmarks.grading import STYLES, cases, measure

BENCH = Path(os.environ.get("ALP_BENCH", Path(__file__).resolve().parents[3] / "shared" / "data" / "bench"))

# Written for the project: answers of every kind the benchmarks have.
OWN = {
    "math": [
        *("17", "-4", "0", "1234567", "12,500", r"\$12.40", "0.075", ".25", r"\frac{3}{8}", r"-\frac{7}{12}", r"\dfrac{5}{6}", r"\frac 57"),
        *(r"3\sqrt{7}", r"\frac{\sqrt{5}-1}{2}", r"2\pi", "x^2-3x+1", "(x-4)(x+9)", r"4 - 3i", r"2^{11}", r"\log_{3} 7", r"e^{-2}"),
        *(
            "(2,-5)",
            r"\left( \frac{1}{2}, 4 \right)",
            "(1,2,3)",
            "[0,4)",
            r"(-\infty,-1) \cup (2,\infty)",
            "3,-3",
            "1, 4, 9",
            r"2 \pm \sqrt{3}",
        ),
        *(r"y = 3x - 2", r"f(n)=n+5", r"\begin{pmatrix} 2 \\ -7 \end{pmatrix}", r"35^\circ", r"45\%", r"7.2 \text{ cm}", r"\text{Tuesday}"),
        *(r"\text{(D)}", "2041_5", r"\lfloor n/3 \rfloor", r"x \in [1,6]", "$\\sqrt{11}$,$2$", r"2\frac{1}{3}", "k^{2}+k m"),
    ],
    "minerva": [
        "6.2e18",
        "0.047",
        "9.81",
        "-1./7",
        "np.arctan(3/4)",
        r"\sqrt{3 \pi G \rho}",
        "4e5",
        r"\frac{d y}{d t}=a-b y",
        r"3 e^{-t / \tau}",
        "R T=q",
    ],
}


@pytest.mark.parametrize("style", OWN)
def test_own_answers_their_rewritings_and_near_misses(style: str) -> None:
    """A notation that is not understood, or one that is understood too well."""
    result = measure(OWN[style], style)
    assert result["failures"] == []
    assert sum(made for _, made in result["right"].values()) > 8 * len(OWN[style])  # type: ignore[attr-defined]


@pytest.mark.skipif(not BENCH.is_dir(), reason="the benchmark folder is not here; the project's own answers above are")
@pytest.mark.parametrize("name", ["aime24", "minerva_math", "math500", "olympiadbench"])
def test_a_sample_of_the_benchmarks(name: str) -> None:
    """`make grading` does all of them."""
    answers = list(
        dict.fromkeys(json.loads(line)["answer"] for line in (BENCH / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line)
    )
    result = measure(answers[7::24], STYLES.get(name, "math"))
    assert result["failures"] == []


SAME = [
    (r"\boxed{0.5}", r"\frac{1}{2}", "math"),
    (r"\boxed{x = 12}", "12", "math"),
    (r"\boxed{12\text{ dollars}}", "12", "math"),
    (r"\boxed{2, 3}", r"\{3,2\}", "math"),
    (r"so \boxed{8}, or rather \boxed{9}.", "9", "math"),
    (r"\boxed{9} is what goes into \boxed{}.", "9", "math"),
    (r"\boxed{\{1, 2\}}", "1,2", "math"),
    (r"\boxed{\frac{1-i}{2}}", r"\frac{1}{1+i}", "math"),
    (r"\boxed{sqrt(8)}", r"2\sqrt{2}", "math"),
    (r"\boxed{10x-2y=4}", "5x-y=2", "math"),
    (r"\boxed{2 \cdot 2^{4949}}", "2^{4950}", "math"),
    (r"\boxed{B}", r"\text{(B)}", "math"),
    (r"\boxed{4343}", "4343_6", "math"),
    (r"\boxed{50\%}", "0.5", "math"),
    (r"\boxed{4.5 \times 10^{33} \mathrm{~erg}}", "4.5e33", "minerva"),
    (r"\boxed{4.52 \cdot 10^{33}}", "4.5e33", "minerva"),
    (r"\boxed{\arcsin(10/13)}", "np.arcsin(10/13)", "minerva"),
    (r"\boxed{0.8776}", "np.arcsin(10/13)", "minerva"),
    (r"\boxed{300 K}", "300", "minerva"),
    (r"\boxed{-0.333}", "-1./3", "minerva"),
    ("The answer is 42.", "42", "math"),
    ("... which leaves 18.\n#### 18", "18", "math"),
    (r"\boxed{ Paris }", "Paris", "exact"),
]
DIFFERENT = [
    (r"\boxed{0.33}", r"\frac{1}{3}", "math"),
    (r"\boxed{0.0000671}", "0.0000672", "math"),
    (r"\boxed{[0,1]}", "(0,1)", "math"),
    (r"\boxed{(1,2)}", "(2,1)", "math"),
    (r"\boxed{2A}", "2a", "math"),
    (r"\boxed{\frac{2}{2004!}}", r"\frac{1}{2004!}", "math"),
    (r"\boxed{\frac{2}{3} \approx 0.68}", r"\frac{2}{3} \approx 0.67", "math"),
    (r"\boxed{5x}", "5", "math"),
    (r"\boxed{7 \text{ cm}}", r"7 \text{ kg}", "math"),
    (r"\boxed{4344_6}", "4343_6", "math"),
    (r"\boxed{9", "9", "math"),
    (r"\boxed{9} no, \boxed{8", "9", "math"),
    (r"\boxed{9} and \boxed{8}", "9", "math"),
    (r"\boxed{4.6 \times 10^{33}}", "4.5e33", "minerva"),
    (r"\boxed{4.5 \times 10^{32}}", "4.5e33", "minerva"),
    (r"\boxed{20.40}", "20.39", "minerva"),
    (r"\boxed{101}", "100", "minerva"),
    (r"\boxed{3.4}", "3", "minerva"),
    (r"\boxed{\arccos(10/13)}", "np.arcsin(10/13)", "minerva"),
    (r"\boxed{m \frac{d v}{d t}=f}", r"k \frac{d v}{d t}=f", "minerva"),
    (r"\boxed{0.5}", r"\frac{1}{2}", "exact"),
    ("", "0", "math"),
    (r"\boxed{}", "", "math"),
]


@pytest.mark.parametrize(("response", "answer", "style"), SAME)
def test_accepted(response: str, answer: str, style: str) -> None:
    assert grade(response, answer, style=style) is True


@pytest.mark.parametrize(("response", "answer", "style"), DIFFERENT)
def test_refused(response: str, answer: str, style: str) -> None:
    assert grade(response, answer, style=style) is False


def test_the_last_box_counts_whatever_stands_in_it() -> None:
    assert final_answer(r"\boxed{1} \boxed{\left\{ x : \frac{x}{2} \right.} done") == r"\left\{ x : \frac{x}{2} \right."
    assert final_answer(r"\boxed{\boxed{5}}") == "5"
    assert final_answer(r"\boxed {5}") == "5"
    assert final_answer("two lines\nand no answer") is None


def test_an_unknown_style_is_named() -> None:
    with pytest.raises(ValueError, match="style: 'maths' is no valid choice"):
        grade("1", "1", style="maths")


HOSTILE = {
    "tower": r"\boxed{10^{10^{10}}}",
    "factorials": r"\boxed{((9999!)!)!+x}",
    "braces": r"\boxed{" + "{" * 5000 + "1" + "}" * 5000 + "}",
    "fractions": r"\boxed{" + r"\frac{1}{" * 39 + "x" + "}" * 39 + "}",
    "unclosed": r"\boxed{" * 20000,
    "empty boxes": r"\boxed{}" * 100_000,
    "megabytes": r"\boxed{" + "9" * 5_000_000 + "}",
    "megabytes of prose": "x" * 10_000_000,
    "regex": r"\boxed{" + "^ " * 900 + "}",
    "spaces": r"\boxed{1" + " " * 1900 + "}",
    "commas": r"\boxed{" + ",".join("ab" * 3 for _ in range(280)) + "}",
    "control": "\\boxed{4\x00\x01\x1b[2J2\x7f\u2028}",
    "surrogate": "\\boxed{\ud800 7}",
    "matrix": r"\boxed{\begin{pmatrix}" + "1&" * 600 + r"\end{pmatrix}}",
    "integral": r"\boxed{\int_{0}^{\infty} e^{-x^{x^{x}}} dx}",
    "exponent": r"\boxed{1e999999999}",
    "power of a sum": r"\boxed{(a+b+c+d+f+g)^{400}}",
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Limits of a second, so that the tests are quick."""
    limits = Limits(cpu_seconds=1.0)
    monkeypatch.setattr(grading, "LIMITS", limits)
    return limits


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_cost_at_most_the_limit(name: str, short: Limits) -> None:
    """An answer that stops, kills or blinds the grader."""
    assert grade(r"\boxed{a+b}", "b+a") is True  # starts the workers
    before = time.process_time()
    assert grade(HOSTILE[name], "x^2+1") is False
    assert time.process_time() - before < 2 * short.cpu_seconds
    assert grade(r"\boxed{a+b+c}", "b+a+c") is True


def test_hostile_gold_answers_are_no_danger_either(short: Limits) -> None:
    assert grade_all([r"\boxed{1}"] * 3, ["10^{10^{10}}", "{" * 9000, "\ud800"]) == [False] * 3


PIECES = [*"0123456789abxE+-*/^_{}()[],.=$ %'\\√²\x00\ud800", r"\frac", r"\boxed{", r"\text{", r"\pm"]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_no_text_makes_it_raise(pieces: list[str]) -> None:
    text = "".join(pieces)
    for style in ("math", "minerva", "exact"):
        assert grade(text, r"\frac{1}{2}", style=style) in (True, False)
        assert grade(rf"\boxed{{{text}}}", "17", style=style) in (True, False)


def test_a_limit_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    before = grading.counts["time"]
    assert grade(r"\boxed{7^{7^{7^{7}}}+q}", "5") is False
    assert grading.counts["time"] == before + 1
    assert "hit a limit of grading and count as wrong" in caplog.text


def test_any_thread_may_grade_and_order_is_kept() -> None:
    """A timeout that needs the main thread, or answers that come back for another question."""
    responses = [rf"\boxed{{{n}+y}}" for n in range(24)]
    golds = [f"y+{n if n % 3 else n + 1}" for n in range(24)]
    found: list[list[bool]] = []
    threads = [threading.Thread(target=lambda: found.append(grade_all(responses, golds))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[bool(n % 3) for n in range(24)]] * 3


def test_a_dead_worker_costs_one_answer() -> None:
    own = Pool(1)
    assert own.run("alp.tasks.algebra", "grade", ["a+b", "b+a", "math"]).value is True
    worker = own._idle.get()
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    own._idle.put(worker)
    assert own.run("alp.tasks.algebra", "grade", ["a+b", "b+a", "math"]).value is True  # started again
    outcome = own.run("tests.tasks.jobs", "sleep", [60], Limits(wall_seconds=1.0))
    assert outcome.fault == "time"  # killed from outside
    assert own.run("tests.tasks.jobs", "spin", [], Limits(cpu_seconds=0.5)).fault == "time"  # the fork alone
    assert own.run("alp.tasks.algebra", "grade", ["a+b", "b+a", "math"]).value is True
    assert own.faults == {"time": 2}
    own.close()


def test_memory_is_limited() -> None:
    outcome = pool().run("tests.tasks.jobs", "eat", [], Limits(cpu_seconds=20, memory_bytes=2 * 1024**3))
    assert outcome.fault == "memory"
    assert pool().run("tests.tasks.jobs", "leave", [], Limits()).fault == "died"


def test_workers_end_with_their_parent() -> None:
    script = (
        "import os, signal\nfrom alp.tasks.grading import grade\nfrom alp.tasks.bounded import pool\n"
        "grade(r'\\boxed{a+b}', 'b+a')\nprint(*[w._process.pid for w in pool()._idle.queue if w._process], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 1
    for _ in range(100):
        if not Path(f"/proc/{workers[0]}").exists() or "Z (zombie)" in Path(f"/proc/{workers[0]}/status").read_text(encoding="utf-8"):
            return
        time.sleep(0.1)
    pytest.fail("the worker goes on without its parent")


def test_a_fork_has_workers_of_its_own() -> None:
    grade(r"\boxed{a+b}", "b+a")
    child = os.fork()
    if child == 0:
        os._exit(0 if grade(r"\boxed{c+b}", "b+c") and not grade(r"\boxed{c+b}", "b+d") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert grade(r"\boxed{a+b+c}", "b+a+c") is True


def test_generators_of_rewritings_keep_their_word() -> None:
    """What the measurement calls equal or different is so by arithmetic, whatever the grader says."""
    from benchmarks.grading import equivalent, near_misses, value

    for text in ("17", "-4", "0", "0.075", r"\frac{3}{8}", r"-\frac{7}{12}", "12,500", "6.2e18", "4e5"):
        number = value(text)
        assert number is not None
        rewritten = equivalent(text)
        assert rewritten is not None
        assert rewritten != text
        assert value(rewritten) == number
        misses = near_misses(text)
        assert len(misses) == 5
        assert number not in [value(miss) for miss in misses]
    assert [kind for kind, _, _ in cases("17")][:6] == ["itself", "spacing", "dfrac", "left-right", "equivalent", "text"]
