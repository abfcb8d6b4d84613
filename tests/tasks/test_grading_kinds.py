"""Kinds of answers that fooled a grader, or that it would not take: each a property; and the table of docs/tasks.md."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alp.tasks.extraction import final_answer
from alp.tasks.grading import grade
from alp.tasks.lexicon import BASE_NAMES
from alp.tasks.notation import tokens
from alp.tasks.values import differ

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
ALL = os.environ.get("FAULTS") == "all"
quick = settings(max_examples=300 if ALL else 12, deadline=None, derandomize=not ALL)
digits = st.text("0123456789", min_size=1, max_size=5)
whole = st.integers(1, 99_999)
small = st.integers(2, 99)


def _section() -> str:
    text = DOCS.read_text("utf-8")
    return text[text.index("\nAccepted and refused (") : text.index("\nBesides right and wrong")]


def _table() -> list[tuple[str, str, str | None, bool]]:
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) ?\| (accepted|refused) \| .+ \|$", _section(), re.MULTILINE)
    return [
        (response.strip("`"), gold.strip("`"), prompt.strip("` ") or None, verdict == "accepted")
        for response, gold, prompt, verdict in rows
    ]


def boxed(text: object) -> str:
    return rf"\boxed{{{text}}}"


@pytest.mark.parametrize(("response", "gold", "prompt", "accepted"), _table())
def test_the_table_of_the_docs(response: str, gold: str, prompt: str | None, accepted: bool) -> None:
    assert grade(response, gold, prompt=prompt) is accepted


def test_the_table_is_read_whole() -> None:
    assert len(_table()) == len(re.findall(r"^\| .+ \|$", _section(), re.MULTILINE)) - 2 > 30


@quick
@given(
    whole=st.integers(0, 99),
    fixed=st.text("0123456789", max_size=3),
    block=digits,
    command=st.sampled_from(["overline", "bar"]),
)
def test_repeating_decimals_are_their_fractions_and_no_others(whole: int, fixed: str, block: str, command: str) -> None:
    """``0.`` read as a factor made every 0.\\overline{…} equal to 0."""
    value = (
        whole
        + Fraction(int(fixed or 0), 10 ** len(fixed))
        + Fraction(int(block), (10 ** len(block) - 1) * 10 ** len(fixed))
    )
    text = rf"{whole}.{fixed}\{command}{{{block}}}"
    exact = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    assert grade(boxed(text), exact)
    assert grade(boxed(exact), text)
    assert not grade(boxed(text), rf"\frac{{{value.numerator + 1}}}{{{value.denominator}}}")
    assert grade(boxed(text), str(whole)) == (value == whole)


@quick
@given(
    number=st.text("0123456", min_size=2, max_size=5).filter(lambda text: text[0] != "0"),
    one=st.integers(7, 16),
    other=st.integers(7, 16),
)
def test_a_base_is_part_of_a_numeral(number: str, one: int, other: int) -> None:
    names = {number: name for name, number in BASE_NAMES.items() if name.islower() and number in range(7, 17)}
    forms = [
        f"{number}_{{{one}}}",
        rf"{number}_{{\text{{{names[one]}}}}}",
        f"{number}_{{({one})}}",
        rf"{number}\text{{ base }}{one}",
    ]
    for form in forms:
        assert grade(boxed(form), f"{number}_{{{other}}}") == (one == other)
        assert grade(boxed(form), number)
        assert not grade(boxed(f"{number}1_{{{one}}}"), form)
        assert not grade(boxed(f"{form}-0_{{{one}}}"), form), "arithmetic in a base is left undone"


@quick
@given(
    a=small,
    b=small,
    sign=st.sampled_from(["\\cdot", "\\times", "*", "×"]),
    of=st.sampled_from(["{}", "{}x", "\\frac{{{}}}{{7}}"]),
)
def test_a_product_sign_before_a_sign_or_a_fraction_stays(a: int, b: int, sign: str, of: str) -> None:
    factor = of.format(b)
    assert grade(boxed(f"{a} {sign} -{factor}"), f"-{factor.replace(str(b), str(a * b), 1)}")
    assert not grade(boxed(f"{a} {sign} -{factor}"), f"{a}-{factor}")


@quick
@given(a=small, above=st.integers(1, 40), below=st.integers(41, 90))
def test_a_number_before_a_fraction_is_mixed_and_times_a_fraction_a_product(a: int, above: int, below: int) -> None:
    fraction = rf"\frac{{{above}}}{{{below}}}"
    mixed, product = rf"\frac{{{a * below + above}}}{{{below}}}", rf"\frac{{{a * above}}}{{{below}}}"
    for text in (f"{a}{fraction}", f"{a} {above}/{below}", f"-(-{a}{fraction})"):
        assert grade(boxed(text), mixed)
        assert not grade(boxed(text), product)
    for sign in ("\\cdot", "\\times"):
        assert grade(boxed(f"{a} {sign} {fraction}"), product)
        assert not grade(boxed(f"{a} {sign} {fraction}"), mixed)


GAPS = [",", "{,}", r"\,", r"{,}\!", r",\!", " ", r"\ ", "~", "\u202f", r"\;"]


@quick
@given(
    first=st.integers(1, 999), groups=st.lists(st.integers(0, 999), min_size=1, max_size=3), gap=st.sampled_from(GAPS)
)
def test_groups_of_three_digits_are_one_number(first: int, groups: list[int], gap: str) -> None:
    text = gap.join([str(first), *(f"{group:03d}" for group in groups)])
    number = "".join([str(first), *(f"{group:03d}" for group in groups)])
    assert grade(boxed(text), number)
    assert grade(boxed(number), text)
    assert not grade(boxed(text), str(int(number) + 1))
    stripped = "".join([str(first), *map(str, groups)])
    assert grade(boxed(text), stripped) == (int(stripped) == int(number))


@quick
@given(
    parts=st.lists(digits, min_size=2, max_size=3),
    gap=st.sampled_from([g for g in GAPS if g not in (",", "{,}", r",\!", r"{,}\!")]),
)
def test_digits_side_by_side_are_no_number(parts: list[str], gap: str) -> None:
    grouped = parts[0][0] != "0" and len(parts[0]) <= 3 and all(len(part) == 3 for part in parts[1:])
    assert grade(boxed(gap.join(parts)), "".join(parts)) == grouped


@quick
@given(a=st.integers(1, 99), b=st.integers(100, 999), ends=st.sampled_from(["()", "[)", "(]", "[]"]))
def test_a_comma_in_brackets_groups_no_digits(a: int, b: int, ends: str) -> None:
    pair = f"{ends[0]}{a},{b}{ends[1]}"
    assert not grade(boxed(f"{a}{b}"), pair)
    assert not grade(boxed(pair), f"{a}{b}")
    assert not grade(boxed(rf"\{{{a},{b}\}}"), f"{a}{b}")
    assert not grade(boxed(rf"(1,2) \cup {a}{b}"), rf"(1,2) \cup {pair}")
    assert grade(boxed(pair), pair.replace(",", ", "))


WORDS = [
    *(
        "or 9",
        "or less",
        "or more",
        "squared",
        "cubed",
        "factorial",
        "is wrong",
        "million",
        "thousand",
        "hundred",
        "dozen",
    ),
    *(
        "thirds",
        "halves",
        "times",
        "plus 1",
        "minus 1",
        "maybe",
        "not",
        "at most",
        "too small",
        "approximately",
        "half",
    ),
    *("percent of 10", "base", "and 9", "if x", "doubles", "tenths", "negative", "per", "to the power"),
]


@quick
@given(number=whole, said=st.sampled_from(WORDS), command=st.sampled_from(["text", "mathrm", "mbox", "textbf"]))
def test_words_that_say_another_answer_are_no_unit(number: int, said: str, command: str) -> None:
    assert not grade(boxed(rf"{number} \{command}{{ {said}}}"), str(number))
    assert not grade(boxed(rf"\text{{{number} {said}}}"), str(number))


UNITS = [
    "cm",
    "miles",
    "square feet",
    "apples",
    "red marbles",
    "dollars",
    "hours",
    "m/s",
    "units",
    "people",
    "km/h",
    "kg",
    "ways",
]


@quick
@given(number=whole, unit=st.sampled_from(UNITS), other=st.sampled_from(UNITS))
def test_units_may_be_left_out_and_not_exchanged(number: int, unit: str, other: str) -> None:
    with_unit = rf"{number}\text{{ {unit}}}"
    assert grade(boxed(with_unit), str(number))
    assert grade(boxed(number), with_unit)
    assert not grade(boxed(with_unit), str(number + 1))
    assert not grade(boxed(f"-{with_unit}"), with_unit)
    if "units" not in (unit, other):
        assert grade(boxed(with_unit), rf"{number}\text{{ {other}}}") == (unit == other)


@quick
@given(number=st.integers(2, 999), letter=st.sampled_from("iex"), command=st.sampled_from(["mathrm", "text"]))
def test_an_upright_letter_is_no_unit(number: int, letter: str, command: str) -> None:
    assert grade(boxed(rf"{number}\{command}{{{letter}}}"), f"{number}{letter}")
    assert not grade(boxed(rf"{number}\{command}{{{letter}}}"), str(number))


@quick
@given(one=st.sampled_from("<>="), other=st.sampled_from("<>="), number=whole, text=st.booleans())
def test_signs_of_a_relation_count(one: str, other: str, number: int, text: bool) -> None:
    left, right = (rf"\text{{x {sign} {number}}}" if text else f"x {sign} {number}" for sign in (one, other))
    assert grade(boxed(left), right) == (one == other)


@quick
@given(name=st.sampled_from(["sin", "cos", "tan"]), angle=st.integers(1, 89))
def test_degrees_are_no_radians(name: str, angle: int) -> None:
    degrees = rf"\{name} {angle}^\circ"
    assert not grade(boxed(rf"\{name} {angle}"), degrees)
    assert grade(boxed(rf"\{name}({angle}^{{\circ}})"), degrees)
    assert grade(boxed(rf"\{name} \frac{{{angle} \pi}}{{180}}"), degrees)
    assert grade(boxed(f"{angle}"), rf"{angle}^\circ")


OPERATORS = [
    *(
        r"\int_0^{@} 1 \, dx",
        r"\sum_{k=1}^{@} 1",
        r"∑_{k=1}^{@} 1",
        r"\prod_{k=@}^{@} k",
        r"\lim_{x \to @} x",
        r"\gcd(@, @)",
    ),
    *(
        r"\operatorname{lcm}(@, @)",
        r"lcm(@,@)",
        r"\max(1, @)",
        r"\max\{1, @\}",
        r"\lfloor @ \rfloor",
        r"⌈@⌉",
        r"@ \bmod 1000000",
    ),
    *(r"\frac{d}{dx}(@x)", r"\text{gcd}(@, @)", r"\underset{x \to @}{\lim} x", r"\begin{vmatrix} @ \end{vmatrix}"),
    *(r"\begin{cases} x = @ \end{cases}", r"@ + 0 + \cdots + 0", r"\min(@, 1000000)", r"\mathrm{max}(1, @)"),
]


@quick
@given(number=whole, form=st.sampled_from(OPERATORS))
def test_what_is_left_undone_earns_nothing(number: int, form: str) -> None:
    undone = form.replace("@", str(number))
    assert not grade(boxed(undone), str(number))
    assert not grade(boxed(f"0 + {undone}"), str(number))
    assert grade(boxed(undone), undone)


# A formula of a question, and its value written without it.
FORMULAS = [
    (r"\sqrt{@}", lambda n: rf"\frac{{\sqrt{{{4 * n}}}}}{{2}}"),
    (r"\frac{@}{7}", lambda n: rf"\frac{{{3 * n}}}{{21}}"),
    ("3^{@}", lambda n: rf"9 \cdot 3^{{{n - 2}}}"),
    (r"\log_2 @", lambda n: rf"\frac{{\ln {n}}}{{\ln 2}}"),
    ("@ + 17", lambda n: str(n + 17)),
    (r"\sin @", lambda n: rf"\cos(\frac{{\pi}}{{2}} - {n})"),
    ("(@ - 1)(@ + 1)", lambda n: str(n * n - 1)),
    (r"@ \div 13", lambda n: rf"\frac{{{2 * n}}}{{26}}"),
    ("|@ - 3|", lambda n: str(n - 3)),
]
ORNAMENTS = [
    "{}",
    "({})",
    "0 + {}",
    r"1 \cdot ({})",
    r"\frac{{2({})}}{{2}}",
    "x = {}",
    r"\{{ {} \}}",
    r"{} + 0",
    "{} = {}",
    r"\sqrt{{({})^2}}",
]


@quick
@given(
    number=st.integers(20, 60),
    form=st.sampled_from(FORMULAS),
    ornament=st.sampled_from(ORNAMENTS),
    maths=st.sampled_from(["${}$", r"\({}\)", "$$x = {}$$"]),
)
def test_a_formula_of_the_question_earns_nothing(
    number: int, form: tuple[str, Callable[[int], str]], ornament: str, maths: str
) -> None:
    formula, gold = form[0].replace("@", str(number)), form[1](number)
    assert grade(boxed(formula), gold), "without the question it is a right answer"
    copied = boxed(ornament.format(formula, formula))
    question = f"What is {maths.format(formula)}, in simplest form?"
    assert not grade(copied, gold, prompt=question)
    assert grade(copied, formula, prompt=question), "a gold answer that is written with it"
    assert grade(boxed(number), str(number), prompt=question), "a number of the question may be the answer"


@quick
@given(before=st.text(max_size=30), number=whole)
def test_what_is_before_the_answer_moves_nothing(before: str, number: int) -> None:
    """An index computed on lower-cased text: İ has two letters there."""
    before = re.sub(r"[\\#<{}]|answer", "", before).replace("\n", " ")
    assert final_answer(f"{before}İİ The ANSWER IS {number}.") == str(number)


@quick
@given(
    number=whole,
    clause=st.sampled_from(["because 2+3=5", ", since 1 < 2", "as we saw: 1=1", ", not 7", "(by 3=3)", "where x=3"]),
)
def test_a_clause_behind_the_answer_is_no_part_of_it(number: int, clause: str) -> None:
    assert final_answer(f"The answer is {number} {clause}") == str(number)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{5} and then \boxed{}", "5"),
        (r"\boxed{5} and then \boxed{\ }", "5"),
        (r"\boxed{5} and then \boxed{\text{}}", "5"),
        (r"\boxed{5} or \boxed{?}", "5"),
        (r"\boxed 5", "5"),
        (r"\boxed5.", "5"),
        (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
        (r"\fbox{63}", "63"),
        ("<answer> 12 </answer>", "12"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("The answer is **B**.", "B"),
        ("the answer is\n$$\n\\frac{1}{2}.\n$$", r"\frac{1}{2}"),
        (r"The answer is: \[ 42 \]", "42"),
        ("#### 1,234", "1,234"),
        ("#### Step 3: conclude\nThe answer is 9.", "9"),
        ("#### Conclusion\nnothing", None),
        (r"\boxed{9", None),
    ],
)
def test_where_the_final_answer_stands(response: str, answer: str | None) -> None:
    assert final_answer(response) == answer


@quick
@given(
    st.recursive(
        st.sampled_from(["x", "y", "2", "7", r"\pi", "0.5"]),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda two: f"({two[0]}+{two[1]})"),
            st.tuples(inner, inner).map(lambda two: rf"\frac{{{two[0]}}}{{{two[1]}+3}}"),
            inner.map(lambda one: rf"\sqrt{{{one}+2}}"),
            inner.map(lambda one: rf"\cos({one})"),
            inner.map(lambda one: f"({one})^{{3}}"),
        ),
        max_leaves=8,
    )
)
def test_values_call_no_formula_different_from_itself(formula: str) -> None:
    """Rewritten, it has the same values; one more is another formula, as long as one is more than rounding of it."""
    one = tokens(formula)
    for same in (rf"\frac{{2({formula})}}{{2}}", f"({formula})+1-1", f"-(-({formula}))", rf"\sqrt{{({formula})^2}}"):
        assert not differ(one, tokens(same)) or (same.startswith(r"\sqrt") and r"\cos" in formula)
    assert differ(one, tokens(f"2({formula})+1")) or "^{3}" in formula


@pytest.mark.parametrize("ornament", [r"|@|", r"\sqrt{(@)^2}", r"\frac{(@)^2}{@}", r"-(-@)", r"@ + @ - @"])
def test_ornaments_that_change_no_positive_value_earn_nothing(ornament: str) -> None:
    asked, gold = r"\sin 60^\circ", r"\frac{\sqrt{3}}{2}"
    copied = boxed(ornament.replace("@", asked))
    assert grade(copied, gold), "without the question it is a right answer"
    assert not grade(copied, gold, prompt=f"Compute ${asked}$.")
    assert grade(boxed(r"\frac{\sqrt{12}}{4}"), gold, prompt=f"Compute ${asked}$.")
