"""The page: well-formed, self-contained, whole, the same bytes twice, and findings that say what the tables say."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.reporting import runs
from alp.reporting.aggregate import aggregate
from alp.reporting.figures import figures
from alp.reporting.report import CAPTIONS, headline, markdown_table, report

Finished = tuple[Grid, Path]
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects what a page refers to and checks that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.images += [found["src"] or ""] if tag == "img" else []
        self.links += [found["href"] or ""] if "href" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag]
        self.open.pop()


@pytest.fixture(scope="module")
def page(finished: Finished) -> str:
    grid, results = finished
    aggregate(grid, results)
    figures(grid, results)
    report(grid, results)
    return (grid.folder(results) / "report.html").read_text(encoding="utf-8")


def test_page_is_well_formed_and_self_contained(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert all(image.startswith("data:image/svg+xml;base64,") for image in parsed.images)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))


def test_page_holds_every_figure_and_table(finished: Finished, page: str) -> None:
    grid, results = finished
    parsed = Page(page)
    embedded = [base64.b64decode(image.partition(",")[2]) for image in parsed.images]
    on_disk = [(grid.folder(results) / "figures" / f"{name}.svg").read_bytes() for name in runs.figure_names(grid)]
    assert embedded == on_disk
    for svg in embedded:  # nothing to fetch from inside a figure either
        references = re.findall(rb'(?:xlink:)?href="([^"]*)"', svg)
        assert all(one.startswith((b"#", b"data:")) for one in references)
    assert parsed.tags.count("table") == 5 + 3


def test_page_says_where_it_comes_from(finished: Finished, page: str) -> None:
    """What each run was trained with, by its own record, not what is checked out when the page is made."""
    _, results = finished
    for text in ("c0ffee" * 6, "no uncommitted changes", "ab" * 32, "torch 2.13.0", "cd" * 32, "ef" * 32, "(8 runs)"):
        assert text in page
    assert str(results) not in page


def test_settings_are_those_that_were_active(page: str) -> None:
    assert "σ₀ = 0.02, learned, layers 0–2" in page
    assert "[0.8, 1.28]" in page
    assert "[0.5, 4]" in page
    row = re.search(r"<tr><td>Token-ALP \(σ₀ = 0\)</td>.*?</tr>", page)
    assert row is not None
    assert "<td>none</td><td>none</td>" in row.group()


def test_bytes_are_stable(finished: Finished, page: str) -> None:
    grid, results = finished
    report(grid, results)
    assert (grid.folder(results) / "report.html").read_text(encoding="utf-8") == page


def test_findings_repeat_the_tables(page: str) -> None:
    text = re.sub(r"<[^>]+>", "", page)
    table = (
        r"Token-ALP minus GRPO: (\S+) points",
        r"Token-ALP minus Token-ALP \(σ₀ = 0\), which differs in the noise alone: (\S+) points",
    )
    assert all(re.search(pattern, text) for pattern in table)
    assert "4 arms × 2 seeds" in text
    assert "40 test problems 16 times" in text


def test_findings_have_no_preferred_sign(finished: Finished) -> None:
    loaded = runs.load(*finished)
    names = ["base", *(arm.name for arm in loaded.arms)]
    main = [
        {
            "method": name,
            "accuracy_mean": "0.5",
            "accuracy_low": "0.4",
            "accuracy_high": "0.6",
            "difference_to_grpo": "",
        }
        for name in names
    ]
    loss = {"difference_low": "-0.200000", "difference_high": "-0.050000"}
    main[3] |= {"difference_to_grpo": "-0.100000", **loss}
    control = {
        "method": "token_alp",
        "control": "token_alp-sigma0",
        "changed": "noise",
        "difference": "-0.100000",
        **loss,
    }
    tail = {"method": "token_alp", "level": "token", "reference": "token_bypass", "width_reduction": "-0.500000"}
    found = headline(loaded, {"main": main, "controls": [control], "ratio_tails": [tail]})
    assert "Token-ALP minus GRPO: −10.0 points [−20.0, −5.0]; the interval excludes zero." in found
    assert any(
        "differs in the noise alone: −10.0 points [−20.0, −5.0]; the interval excludes zero" in one for one in found
    )
    assert any("50 % wider than Token-Bypass's" in one for one in found)
    without = headline(loaded, {"main": main, "controls": [], "ratio_tails": []})
    assert any("No control for the noise alone" in one for one in without)


@pytest.mark.parametrize(
    ("lost", "command"),
    [
        ("arithmetic/data/leakage.md", "alp prepare task=arithmetic"),
        ("tables/controls.md", "alp aggregate grid="),
        ("figures/tails.svg", "alp figures grid="),
        ("active", "snakemake --cores 2"),
    ],
)
def test_a_missing_part_is_one_line_with_its_command(
    fresh: Finished, page: str, finished: Finished, lost: str, command: str
) -> None:
    grid, results = fresh
    source = finished[0].folder(finished[1])
    for part in ("tables", "figures"):  # made for the larger fabrication; the report reads them as they are
        (grid.folder(results) / part).mkdir()
        for path in (source / part).iterdir():
            (grid.folder(results) / part / path.name).write_bytes(path.read_bytes())
    path = grid.run_dir(results, "grpo", 0) / "active.json" if lost == "active" else grid.folder(results) / lost
    path.unlink()
    with pytest.raises(UserError) as caught:
        report(grid, results)
    assert str(path) in str(caught.value)
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)


def test_markdown_becomes_html() -> None:
    found = markdown_table("| A | B |\n| :--- | ---: |\n| a < b | **1** |\n")
    assert '<td class="text">a &lt; b</td><td class="number"><strong>1</strong></td>' in found
    assert "nothing to compare" in markdown_table("| A |\n| :--- |\n")


@pytest.mark.parametrize("name", sorted({*runs.FIGURES, *runs.TABLES}))
def test_captions_are_plain_text(name: str) -> None:
    text = (CAPTIONS / f"{name}.rst").read_text(encoding="utf-8")
    assert not re.search(r"[{}*`|]|\w_\s", text)
    docutils = pytest.importorskip("docutils.core")
    assert docutils.publish_string(text, settings_overrides={"halt_level": 2, "report_level": 5})
