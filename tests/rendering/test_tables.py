"""A table's four renderings: what each shows of the same frame, and what it escapes."""

from __future__ import annotations

import csv
import io
import math

import pytest

from alp.rendering.artefact import Artefact
from alp.rendering.numbers import number, percent, points, share, significant
from alp.rendering.tables import Column, Table, frame, to_csv, to_html, to_latex, to_markdown, words

TABLE = Table(
    frame(
        [["a_b, c < d", 0.5, 0.25, 0.75, None, 2, 1.23456789e-7], ["μ", None, None, None, 7, None, -0.0]],
        ["name", "mean", "low", "high", "step", "seeds", "kl"],
    ),
    [
        words("name", "Name"),
        Column("mean", "Accuracy", percent, "%", interval=("low", "high")),
        Column("kl", "KL", significant),
        Column("seeds", "Seeds", aside="step"),
    ],
    exported=["name", "mean", "low", "high", "seeds", "kl"],
    significant=frozenset({"kl"}),
    best=frozenset({(0, "mean")}),
)


def test_machines_get_every_exported_cell_exactly() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert rows[0] == {
        "name": "a_b, c < d",
        "mean": "0.500000",
        "low": "0.250000",
        "high": "0.750000",
        "seeds": "2",
        "kl": "1.23457e-07",
    }
    assert rows[1] == {"name": "μ", "mean": "", "low": "", "high": "", "seeds": "", "kl": "0"}


def test_sentences_quote_what_the_file_says() -> None:
    first, second = TABLE.rounded()
    assert first == {"name": "a_b, c < d", "mean": 0.5, "low": 0.25, "high": 0.75, "seeds": 2, "kl": 1.23457e-07}
    assert second["mean"] is None


def test_people_get_rounded_cells_with_intervals_and_asides() -> None:
    assert TABLE.shown() == [["a_b, c < d", "50.0 [25.0, 75.0]", "1.23e−07", "2 ()"], ["μ", "", "0", ""]]
    assert to_markdown(TABLE).splitlines() == [
        "| Name | Accuracy, % | KL | Seeds |",
        "| :--- | ---: | ---: | ---: |",
        "| a_b, c < d | **50.0 [25.0, 75.0]** | 1.23e−07 | 2 () |",
        "| μ |  | 0 |  |",
    ]


def test_a_mark_follows_the_interval_and_a_missing_end_leaves_no_brackets() -> None:
    cells = frame(
        [[0.1, 0.05, 0.2, True], [0.1, None, None, None], [0.1, 0.0, 0.2, False]], ["gap", "low", "high", "ok"]
    )
    table = Table(cells, [Column("gap", "Gap", points, interval=("low", "high"), mark="ok")])
    assert table.shown() == [["+10.0 [+5.0, +20.0] †"], ["+10.0"], ["+10.0 [0.0, +20.0]"]]
    assert [row["ok"] for row in table.exact()] == ["true", "", "false"]
    assert r"$\dagger$" in to_latex(table)


def test_html_and_latex_escape_what_is_theirs() -> None:
    assert '<td class="text">a_b, c &lt; d</td>' in to_html(TABLE)
    assert '<td class="number"><strong>50.0 [25.0, 75.0]</strong></td>' in to_html(TABLE)
    latex = to_latex(TABLE)
    assert r"a\_b, c $<$ d & \textbf{50.0 [25.0, 75.0]}" in latex
    assert r"\begin{tabular}{lrrr}" in latex
    assert r"Accuracy, \%" in latex


def test_a_table_without_rows_says_so_on_a_page() -> None:
    empty = Table(frame([], ["name"]), [words("name", "Name")])
    assert "nothing to compare" in to_html(empty)
    assert to_csv(empty) == "name\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (number(-0.04, 1), "0.0"),
        (number(None, 1), ""),
        (number(math.nan, 1), ""),
        (points(-0.1234), "−12.3"),
        (points(0.0), "0.0"),
        (significant(None), "–"),
        (significant(math.inf), "∞"),
        (share(1e-6), "< 0.01"),
        (share(0.999999), "> 99.99"),
        (share(1.0), "100"),
    ],
)
def test_numbers_as_people_read_them(text: str, shown: str) -> None:
    assert text == shown


@pytest.mark.parametrize("lacking", ["title", "caption"])
def test_an_artefact_without_words_cannot_be(lacking: str) -> None:
    texts = {"name": "x", "title": "X", "caption": "What it shows.", lacking: " "}
    with pytest.raises(ValueError, match=f"missing: {lacking}"):
        Artefact(make=str, **texts)
