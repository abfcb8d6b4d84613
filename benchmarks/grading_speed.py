"""How many answers a second one core refuses: answers as an untrained policy writes them, and hostile ones.

    python -m benchmarks.grading_speed [bench=<folder of JSONL files>] [before=<commit>] [answers=400]

For every gold answer of a set, in turn: another problem's gold answer, a number, a text that breaks off. Gold answers
are parsed beforehand. With ``before`` the same answers go through the grader of that commit too, in the same run on the
same core; rates are answers a second, each answer graded once.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STYLES = {"minerva_math": "minerva"}
HOSTILE = (
    r"\binom{1000000000}{500000000}",
    r"\sum_{k=1}^{10000000} \frac{1}{k^{2}+1}",
    r"\int_{0}^{1} \frac{\sin(x^{5})}{\sqrt{1+x^{7}}} dx",
    r"\lfloor \pi^{\pi^{\pi^{\pi}}} \rfloor",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{1000000}",
    r"\sin(" * 39 + "x" + ")" * 39,
    "9" * 900 + "^{" + "9" * 900 + "}",
    "10^{10^{10}}",
    "((9999!)!)!+x",
    r"\frac{1}{" * 39 + "x" + "}" * 39,
    "(a+b+c+d+f+g)^{400}",
    "x^" * 900 + "2",
    "+".join(f"x^{{{power}}}" for power in range(200)),
    r"\sqrt{" * 30 + "x" + "}" * 30,
)


def wrong_answers(golds: list[str], count: int) -> list[tuple[str, str]]:
    """(response, gold) as an untrained policy would be wrong."""
    drawn = random.Random(0)
    made: list[tuple[str, str]] = []
    while len(made) < count:
        gold, other = drawn.choice(golds), drawn.choice(golds)
        number = str(drawn.randrange(1000))
        kinds = (rf"\boxed{{{other}}}", rf"\boxed{{{number}}}", rf"\boxed{{{other[: len(other) // 2]}}}")
        made += [(response, gold) for response in kinds if gold not in response]
    return made[:count]


def measured(cases: dict[str, list[tuple[str, str]]]) -> dict[str, float]:
    """Answers a second of every set, and the slowest hostile answer in seconds, in this process on one core."""
    from alp.tasks.grading import grade_all

    found = {}
    for name, pairs in cases.items():
        style = STYLES.get(name, "math")
        golds = list(dict.fromkeys(gold for _, gold in pairs))
        grade_all([rf"\boxed{{({gold}) + 7919}}" for gold in golds], golds, style=style)
        started = time.perf_counter()
        right = grade_all([response for response, _ in pairs], [gold for _, gold in pairs], style=style)
        found[name] = (len(pairs) - sum(right)) / (time.perf_counter() - started)
    seconds = []
    for text in HOSTILE:
        started = time.perf_counter()
        grade_all([rf"\boxed{{{text}}}"], ["x^2+1"])
        seconds.append(time.perf_counter() - started)
    return found | {"slowest hostile answer, s": max(seconds)}


def _elsewhere(commit: str, cases: str) -> dict[str, float]:
    """The same measurement by the grader of another commit."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["git", "archive", commit, "alp"], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], check=True, input=packed)
        return _run(folder, cases)


def _run(root: str, cases: str) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).resolve().parents[1]}"}
    command = [sys.executable, "-m", "benchmarks.grading_speed", "measure"]
    done = subprocess.run(
        command, check=True, input=cases, text=True, stdout=subprocess.PIPE, env=environment, cwd=root
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(words: list[str]) -> None:
    """Print the table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if words == ["measure"]:
        print(json.dumps(measured(json.load(sys.stdin))))
        return
    options = dict(word.split("=", 1) for word in words)
    if unknown := set(options) - {"bench", "before", "answers"}:
        sys.exit(f"unknown option {sorted(unknown)[0]}; choose from bench, before, answers")
    files = sorted(Path(options.get("bench", "../shared/data/bench")).glob("*.jsonl"))
    if not files:
        sys.exit("no *.jsonl: name the folder with bench=<folder>")
    cases = {}
    for path in files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        cases[path.stem] = wrong_answers([row["answer"] for row in rows], int(options.get("answers", 400)))
    text = json.dumps(cases)
    now = _run(str(Path(__file__).resolve().parents[1]), text)
    before = _elsewhere(options["before"], text) if "before" in options else {}
    print("| set | wrong answers a second, before | now | ratio |\n|---|---:|---:|---:|")
    for name, rate in now.items():
        ratio = f"{rate / before[name]:.1f}" if name in before else "–"
        print(f"| {name} | {before.get(name, float('nan')):.4g} | {rate:.4g} | {ratio} |")


if __name__ == "__main__":
    main(sys.argv[1:])
