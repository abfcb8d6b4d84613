"""What grading is worth: every gold answer against itself, five rewritings that mean the same, five near misses that do
not, and the question's own formulas (:mod:`benchmarks.grading_echo`).

    python -m benchmarks.grading [bench=<folder of JSONL files>] [limit=<answers per set>] [out=results/grading]

The generators below know nothing of the grader: they work on the text of the gold answer, and each says why what it
makes is the same or another answer. Where a kind does not fit an answer (there is no fraction in a name) nothing is
made, and the table says how many were.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

from alp.reproducibility import write_json, write_text
from alp.tasks.grading import counts, grade_all
from benchmarks import grading_echo

STYLES = {"minerva_math": "minerva"}  # every other set: math
EXACT = ("aime24", "gsm8k_test", "gsm8k_train", "math500", "math_lvl3to5_8k", "minerva_math", "olympiadbench")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_FRACTION = re.compile(r"\\frac\s*\{(\d+)\}\s*\{(\d+)\}")
_INTEGER = re.compile(r"(?<![\d.,_^{eE!\\])(?<!\\!)(?<!\\! )\d+(?![\d.,!:_]|\\!|\\circ|\^\{?\\circ|[eE]-?\d)")
Make = Callable[[str], str | None]


def value(text: str) -> Fraction | None:
    """The number that a plain gold answer is."""
    plain = text.strip().strip("$").replace(r"\!", "").replace(r"\$", "").strip()
    plain = plain.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\s*\d{3})+", plain) else plain
    if _NUMBER.fullmatch(plain):
        return Fraction(plain.rstrip(".") if not plain.endswith(".") else plain[:-1])
    found = re.fullmatch(r"(-?)\\d?frac\{(-?\d+)\}\{(\d+)\}", plain)
    return Fraction(int(found[2]), int(found[3])) * (-1 if found[1] else 1) if found else None


def is_words(text: str) -> bool:
    """Names, choices and sentences: no formula stands in them."""
    plain = re.sub(r"\\(text|mathrm|mbox|textbf)\s*", "", text)
    return bool(re.search(r"\\text\{\(?[A-Za-z]{1,}", text) and not re.search(r"\d|=|\+", text)) or bool(
        re.fullmatch(r"[{}() A-Za-z]{4,}", plain)
    )


def is_formula(text: str) -> bool:
    """One value: no list, relation, interval or words, so that arithmetic on the whole is well defined."""
    return not is_words(text) and not re.search(
        r"[,=<>;:]|\\(in|le|ge|cup|cap|pm|text|mbox|begin|geqslant|leqslant|quad|angle)(?![a-z])|\$.*\$.*\$|_\{?\d+\}?$|%",
        text,
    )


# ---- the same answer, written otherwise
# -----------------------------------------------------------------------------------


def spaced(gold: str) -> str:
    """LaTeX ignores spaces around operators; words and digits stay as they are."""
    parts = re.split(r"(\\(?:text|mbox|mathrm)\s*\{[^{}]*\})", gold)
    wide = [
        part if place % 2 else re.sub(r"(?<![eE_^{(\[])([-+=])(?![}])", r" \1 ", part)
        for place, part in enumerate(parts)
    ]
    return f" {''.join(wide)}\\, "


def displayed(gold: str) -> str:
    """A larger fraction is the same fraction."""
    return (
        re.sub(r"\\[dt]?frac(?![a-z])", lambda _: r"\dfrac", gold)
        if re.search(r"\\[dt]?frac", gold)
        else rf"\displaystyle {gold}"
    )


def sized(gold: str) -> str | None:
    """Brackets that grow with their content; a bracket around a single value where there is none."""
    opened, closed = len(re.findall(r"(?<!\\left)[(\[]", gold)), len(re.findall(r"(?<!\\right)[)\]]", gold))
    if r"\left" in gold or r"\sqrt[" in gold or r"\[" in gold or is_words(gold):
        return (
            rf"\left. {gold} \right."
            if r"\left" not in gold
            else gold.replace(r"\left", r"\Bigl").replace(r"\right", r"\Bigr")
        )
    if opened and opened == closed:
        return re.sub(r"([)\]])", r"\\right\1", re.sub(r"([(\[])", r"\\left\1", gold))
    bare = gold.strip().strip("$").rstrip(".")
    return rf"\left( {bare} \right)" if is_formula(gold) else rf"\left. {gold} \right."


def equivalent(gold: str) -> str | None:
    """A number as another fraction or decimal; in a formula its first fraction or first free integer."""
    number = value(gold)
    if number is not None:
        twos, rest = 0, number.denominator
        while rest % 2 == 0 or rest % 5 == 0:
            rest, twos = (rest // 2 if rest % 2 == 0 else rest // 5), twos + 1
        plain = gold.strip().strip("$")
        if number.denominator == 1 and abs(number) < 10**15:
            return f"{number.numerator}.0" if number.numerator % 2 else rf"\frac{{{3 * number.numerator}}}{{3}}"
        if r"frac" in plain and rest == 1 and twos < 9:
            digits = f"{number.numerator * 10**twos // number.denominator:0{twos + 2}d}" if number > 0 else None
            if digits:
                return f"{digits[:-twos]}.{digits[-twos:]}"
        sign = "-" if number < 0 else ""
        return rf"{sign}\frac{{{2 * abs(number.numerator)}}}{{{2 * number.denominator}}}"
    if is_words(gold):
        return None
    if found := _FRACTION.search(gold):
        return f"{gold[: found.start()]}\\frac{{{3 * int(found[1])}}}{{{3 * int(found[2])}}}{gold[found.end() :]}"
    if found := _free_integer(gold):
        return f"{gold[: found.start()]}\\frac{{{2 * int(found[0])}}}{{2}}{gold[found.end() :]}"
    return rf"\frac{{2 ({gold.strip().strip('$')})}}{{2}}" if is_formula(gold) else None


def surrounded(gold: str) -> str:
    """The box at the end of a worked solution."""
    worked = "First we set up the equations. Solving them step by step gives the result."
    return f"{worked}\n\nTherefore, the final answer is $\\boxed{{{gold}}}$. I hope it is correct."


def _free_integer(text: str) -> re.Match[str] | None:
    """An integer that is a factor, a summand or a coordinate: no index, base, digit group or part of a word."""
    for found in _INTEGER.finditer(text):
        before, after = text[: found.start()].rstrip(), text[found.end() :].lstrip()
        if before.endswith(("_", "^", "frac", "sqrt", r"\log_", "{", "!", "{ }")) or before.count("{") != before.count(
            "}"
        ):
            continue
        if re.search(r"\\frac\s*\\?[a-zA-Z]+$", before):  # the second argument of a fraction without braces
            continue
        if re.match(r"[\d!{(_^]|\\frac|\\!|,\s*\d{3}(?!\d)", after) or re.search(r"[\d}]$|\d,$|text\{[^}]*$", before):
            continue
        return found
    return None


# ---- another answer, nearly the same
# --------------------------------------------------------------------------------------


def near_misses(gold: str) -> list[str]:
    """Up to five answers that differ from ``gold`` in what they say."""
    number, bare = value(gold), gold.strip()
    if number is not None:
        return _near_numbers(bare.strip("$"), number)
    if is_words(gold):
        word = re.sub(r"\\(text|mbox|mathrm)\s*|[{}(),.]", "", gold).strip()
        if len(word) == 1:
            return [rf"\text{{({letter})}}" for letter in "ABCDEFGHIJ" if letter != word.upper()][:5]
        return [
            rf"\text{{{other}}}"
            for other in ("not " + word, word[:-1], word + word[-1] + "o", "Leonhard", word[::-1])
            if other != word
        ][:5]
    found: list[str | None] = [*_changed_integers(bare)]
    if is_formula(gold):
        core = bare.strip("$")
        zero_like = core in ("0",)
        found += [f"{core}+1", None if zero_like else f"-({core})", None if zero_like else f"2({core})"]
    found += [
        _flipped_sign(bare),
        _flipped_bracket(bare),
        _dropped(bare),
        _swapped(bare),
        _renamed(bare),
        _added(bare),
        f"{bare}, 7919",
    ]
    return [miss for miss in dict.fromkeys(found) if miss is not None and miss != bare][:5]


def _near_numbers(text: str, number: Fraction) -> list[str]:
    """One unit more in the last printed digit, the other sign, ten times, one more, half."""
    if "frac" in text:
        above, below = number.numerator, number.denominator
        sign = "-" if above < 0 else ""
        made = [(above + 1, below), (-above, below), (above, below + 1), (below, above), (2 * above, below)]
        return [
            rf"{'-' if (a < 0) != (b < 0) else ''}\frac{{{abs(a)}}}{{{abs(b)}}}"
            for a, b in made
            if b and Fraction(a, b) != number
        ] or [sign]
    plain = text.replace(r"\!", "").replace(r"\$", "").replace(",", "").replace(" ", "")
    mantissa, _, exponent = plain.partition("e")
    digits = len(mantissa.partition(".")[2])
    bumped = f"{float(mantissa) + 10.0**-digits:.{digits}f}"
    tail = f"e{exponent}" if exponent else ""
    shifted = f"{mantissa}e{int(exponent) + 1}" if exponent else _decimal(number * 10)
    made_texts = [
        bumped + tail,
        _decimal(-number),
        shifted,
        _decimal(number + 3 * max(1, abs(number))),
        _decimal(number / 2),
    ]
    if number == 0:
        made_texts = ["1", "-1", "10", r"\frac{1}{2}", r"\pi"]
    return made_texts


def _decimal(number: Fraction) -> str:
    """A fraction whose decimals end, or a LaTeX fraction."""
    if number.denominator == 1:
        return str(number.numerator)
    return rf"{'-' if number < 0 else ''}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def _changed_integers(text: str) -> list[str]:
    """The first and the last number that is a factor, a summand or a coordinate, one more."""
    places = [
        found
        for found in re.finditer(r"\d+", text)
        if not re.search(r"(_\{?|\\text\{[^}]*|\^\{?\\circ)$", text[: found.start()])
    ]
    wanted = [places[0], places[-1]] if len(places) > 1 else places
    return [f"{text[: found.start()]}{int(found[0]) + 1}{text[found.end() :]}" for found in wanted]


def _flipped_sign(text: str) -> str | None:
    """The first sum becomes a difference or the other way round (not in exponents, and not between a bracket and its
    content)."""
    found = re.search(r"(?<=[\w})])\s*([-+])\s*(?=[\w\\({])", text)
    if not found or found.group(1) not in "+-":
        return None
    if text[: found.start()].count("{") != text[: found.start()].count("}"):
        return None
    other = "-" if found[1] == "+" else "+"
    return f"{text[: found.start()]} {other} {text[found.end() :]}"


def _flipped_bracket(text: str) -> str | None:
    """An end of an interval that belongs to it or not. A comma within and infinity or a union beside it make it an
    interval."""
    if not re.search(r"\\infty|\\cup|\\in(?![a-z])|[(\[].*,.*[\])]", text) or not re.search(
        r"[\[\]]|\\infty|\\cup", text
    ):
        return None
    for place, char in enumerate(text):
        if char in "[(" and "infty" not in text[place : place + 8]:
            return text[:place] + ("(" if char == "[" else "[") + text[place + 1 :]
    return None


def _parts(text: str) -> tuple[str, list[str], str] | None:
    """Opening, elements and closing of a list or tuple without nested brackets."""
    core = text.strip()
    found = re.fullmatch(r"(\$?(?:\\left)?[(\[]|\$?\\\{|\$?)([^()\[\]]*?)((?:\\right)?[)\]]\$?|\\\}\$?|\$?)", core)
    if (
        not found
        or "," not in found[2]
        or re.search(r"\\frac|\\text|\d,\s*\\!|\d,\d{3}(?!\d)|\\infty|\\cup|\$", found[2])
    ):
        return None
    return found[1], [part.strip() for part in found[2].split(",")], found[3]


def _dropped(text: str) -> str | None:
    """One element fewer."""
    parts = _parts(text)
    return f"{parts[0]}{','.join(parts[1][:-1])}{parts[2]}" if parts and len(parts[1]) > 1 else None


def _added(text: str) -> str | None:
    """One element more, that is not there yet."""
    parts = _parts(text)
    return f"{parts[0]}{','.join([*parts[1], '7919'])}{parts[2]}" if parts else None


def _swapped(text: str) -> str | None:
    """The first two coordinates of a tuple the other way round, when they differ."""
    parts = _parts(text)
    if not parts or not parts[0].endswith("(") or parts[1][0] == parts[1][1]:
        return None
    return f"{parts[0]}{','.join([parts[1][1], parts[1][0], *parts[1][2:]])}{parts[2]}"


def _renamed(text: str) -> str | None:
    """A variable by another name, q by w, that occurs nowhere."""
    stripped = re.sub(r"\\[a-zA-Z]+|\\text\s*\{[^}]*\}", lambda m: " " * len(m[0]), text)
    found = re.search(r"(?<![a-zA-Z])[a-df-hj-zA-DF-HJ-Z](?![a-zA-Z])", stripped)
    if not found:
        return None
    return text[: found.start()] + r"\xi " + text[found.end() :] if stripped.count(found[0]) == 1 else None


# ---- the report
# -----------------------------------------------------------------------------------------------------------

REWRITINGS: dict[str, Make] = {
    "spacing": spaced,
    "dfrac": displayed,
    "left-right": sized,
    "equivalent": equivalent,
    "text": surrounded,
}


def cases(gold: str) -> list[tuple[str, str, bool]]:
    """(kind, response, expected) of one gold answer."""
    found = [("itself", rf"\boxed{{{gold}}}", True)]
    for kind, make in REWRITINGS.items():
        made = make(gold)
        if made is not None:
            found.append((kind, made if kind == "text" else rf"The answer is \boxed{{{made}}}.", True))
    return found + [("near miss", rf"The answer is \boxed{{{miss}}}.", False) for miss in near_misses(gold)]


def measure(golds: Mapping[str, str | None], style: str) -> dict[str, object]:
    """Rates and failures over gold answers, each with a question that it answers."""
    made = [(gold, *case) for gold in golds for case in cases(gold)]
    verdicts = grade_all(
        [case[2] for case in made],
        [case[0] for case in made],
        style=style,
        prompts=[golds[case[0]] for case in made],
    )
    rates: dict[str, list[int]] = {}
    failures = []
    for (gold, kind, response, expected), verdict in zip(made, verdicts, strict=True):
        counted = rates.setdefault(kind, [0, 0])
        counted[0] += verdict == expected
        counted[1] += 1
        if verdict != expected:
            failures.append({"kind": kind, "gold": gold, "response": response, "verdict": verdict})
    return {"answers": len(golds), "right": rates, "failures": failures}


def main(words: list[str]) -> None:
    """Measure every set of the folder and write report.md and report.json."""
    options = dict(word.split("=", 1) for word in words)
    unknown = set(options) - {"bench", "limit", "out"}
    if unknown:
        sys.exit(f"unknown option {sorted(unknown)[0]}; choose from bench, limit, out")
    bench, out = Path(options.get("bench", "../shared/data/bench")), Path(options.get("out", "results/grading"))
    files = sorted(bench.glob("*.jsonl"))
    if not files:
        sys.exit(f"no *.jsonl in {bench}: name the folder with make grading SETS=<folder>")
    report, echoed = {}, {}
    for path in files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        rows = rows[: int(options.get("limit", len(rows)))]
        style = STYLES.get(path.stem, "math")
        golds = {each["answer"]: each["problem"] for each in reversed(rows)}
        report[path.stem] = measure(golds, style)
        echoed[path.stem] = (len(rows), grading_echo.echoes(rows, style))
        print(row(path.stem, report[path.stem]), flush=True)
    echo = grading_echo.table(echoed)
    print(echo.partition("\n\n")[0], flush=True)
    write_json(out / "report.json", report | {"limits": dict(counts)})
    write_text(out / "report.md", f"{markdown(report)}\n## Echo: formulas of the question, boxed\n\n{echo}")
    print(f"{out}/report.md; {dict(counts)}")


KINDS = ("itself", *REWRITINGS, "near miss")


def row(name: str, entry: dict[str, object]) -> str:
    """One set of the table: accepted of made, refused of made for the near misses."""
    right: dict[str, list[int]] = entry["right"]  # type: ignore[assignment]
    shown = [f"{right[kind][0]} / {right[kind][1]}" if kind in right else "–" for kind in KINDS]
    rewritten = [sum(right[kind][place] for kind in REWRITINGS if kind in right) for place in (0, 1)]
    missed = right.get("near miss", [0, 0])
    shares = [f"{100 * good / made:.2f} %" if made else "–" for good, made in (rewritten, missed)]
    return "| " + " | ".join([name, str(entry["answers"]), *shown, *shares]) + " |"


def markdown(report: dict[str, dict[str, object]]) -> str:
    """The table and every failing case."""
    head = [
        "set",
        "different answers",
        *KINDS[:-1],
        "near misses refused",
        "rewritings accepted",
        "near misses refused",
    ]
    lines = ["# Grading of the gold answers", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [row(name, entry) for name, entry in report.items()]
    for name, entry in report.items():
        failures: list[dict[str, object]] = entry["failures"]  # type: ignore[assignment]
        lines += ["", f"## {name}: {len(failures)} failing cases", ""]
        lines += [
            f"- {item['kind']}: gold {json.dumps(item['gold'])}, response {json.dumps(item['response'])}, graded"
            f" {item['verdict']}"
            for item in failures
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
