"""The page: well-formed, self-contained, whole, the same bytes twice, and findings that say what the tables say."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from alp.configuration import compose
from alp.configuration.grid import Grid
from alp.configuration.power_schema import PowerConfig
from alp.errors import UserError
from alp.rendering.numbers import points
from alp.rendering.tables import Row
from alp.reporting import arms, power, registry, runs
from alp.reporting.aggregate import aggregate, build
from alp.reporting.arms import label
from alp.reporting.draw import figures
from alp.reporting.findings import headline
from alp.reporting.leakage import LEAKAGE
from alp.reporting.report import report

from .conftest import GRID, fabricate, write_grid

Finished = tuple[Grid, Path]
VOID = {"meta", "img", "br", "link", "source"}


class Page(HTMLParser):
    """Collects what a page refers to and checks that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[str] = []
        self.sources: list[str] = []  # of the same images, for a phone
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.images += [found["src"] or ""] if tag == "img" else []
        self.sources += [found["srcset"] or ""] if tag == "source" else []
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
    assert parsed.tags.count("script") == 1
    assert "link" not in parsed.tags
    assert len(parsed.ids) == len(set(parsed.ids))
    assert len(page) < 4 * 2**20
    assert all(image.startswith("data:image/svg+xml;base64,") for image in parsed.images + parsed.sources)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))


def test_every_link_leads_somewhere(finished: Finished, page: str) -> None:
    """To a place of the page, or to a file of the results beside it: tables, figures, and every run's own."""
    grid, results = finished
    parsed = Page(page)
    inner = {link[1:] for link in parsed.links if link.startswith("#")}
    assert inner <= set(parsed.ids)
    assert {"arm-base", *(f"arm-{arm.name}" for arm in grid.arms)} <= inner
    files = {link for link in parsed.links if not link.startswith("#")}
    assert all((grid.folder(results) / file).is_file() for file in files)
    run = grid.run_dir(results, "token_alp", 1).relative_to(grid.folder(results)).as_posix()
    assert "figures/accuracy.png" in files
    assert not any("_phone" in file for file in files)
    assert {f"{run}/config.yaml", f"{run}/metrics.jsonl", f"{run}/evaluation/test.json", "tables/main.csv"} <= files


def test_an_arm_says_what_its_configuration_has_differently(page: str) -> None:
    card = page[page.index('id="arm-token_alp-sigma0"') :]
    card = card[: card.index("</details>")]
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td>(.*?)</td><td>(.*?)</td></tr>", card)
    settings = {key: (there, here) for key, there, here in rows}
    assert settings["method.name"] == ("grpo", "token_alp")
    assert settings["method.perturbation.std"] == ("–", "0.0")
    assert settings["method.clip_high"] == ("0.28", "3.0")
    assert not any(key.startswith(("run.", "model.path", "task.data", "trainer.seed")) for key in settings)


def test_the_answer_comes_first(page: str) -> None:
    """Findings, then every arm's accuracy and difference drawn, then the table, then the rest."""
    places = [page.index(mark) for mark in ('id="findings"', 'id="figure-accuracy"', 'id="main"', 'id="figures"')]
    assert places == sorted(places)


def test_page_holds_every_figure_and_table(finished: Finished, page: str) -> None:
    grid, results = finished
    parsed = Page(page)
    embedded, narrow = (
        [base64.b64decode(image.partition(",")[2]) for image in images] for images in (parsed.images, parsed.sources)
    )
    shown = [name for name in registry.names("figures", grid) if name != "limit"]  # nothing was cut to speak of
    assert "1.0 % of a step&#39;s training responses were cut" in page
    assert embedded == [(grid.folder(results) / "figures" / f"{name}.svg").read_bytes() for name in shown]
    assert narrow == [(grid.folder(results) / "figures" / f"{name}_phone.svg").read_bytes() for name in shown]
    for svg in embedded + narrow:  # nothing to fetch from inside a figure either
        references = re.findall(rb'(?:xlink:)?href="([^"]*)"', svg)
        assert all(one.startswith((b"#", b"data:")) for one in references)
    assert parsed.tags.count("table") == 6 + 3 + 3


def test_the_page_of_eight_arms_stays_small(tmp_path: Path) -> None:
    methods = "grpo", "gspo", "token_bypass", "seq_bypass", "token_tis", "seq_mis", "token_alp", "seq_alp"
    text = GRID.partition("arms:")[0] + "arms:\n" + "".join(f"  - method: {name}\n" for name in methods)
    grid, results = fabricate(write_grid(tmp_path, text), tmp_path / "results", steps=30)
    figures(grid, results)
    assert report(grid, results).stat().st_size < 4 * 2**20


def test_figures_beyond_the_room_are_shown_from_their_files(
    finished: Finished, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a grid of many arms: the first figures are in the page, the others beside it, and the page says so."""
    grid, results = finished
    first = Page(page).images[0], Page(page).sources[0]
    monkeypatch.setattr("alp.reporting.report.ROOM", sum(map(len, first)))
    path = report(grid, results)
    short = Page(path.read_text(encoding="utf-8"))
    monkeypatch.undo()
    report(grid, results)
    assert (short.images[0], short.sources[0]) == first
    assert len(short.images) == len(Page(page).images)
    for image in short.images[1:] + short.sources[1:]:
        assert (path.parent / image).is_file()
    assert path.read_text(encoding="utf-8") == page


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
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    table = (
        r"Accuracy minus GRPO's, 3 arms: ",
        r"Token-ALP minus Token-ALP \(σ₀ = 0\), which differs in the noise alone: (\S+) points",
    )
    assert all(re.search(pattern, text) for pattern in table)
    assert "4 arms × 2 seeds" in text
    assert "40 test problems 16 times" in text


def test_findings_have_no_preferred_sign(finished: Finished) -> None:
    loaded = runs.load(*finished)
    names = ["base", *(arm.name for arm in loaded.arms)]
    main: list[Row] = [
        {
            "method": name,
            "accuracy_mean": 0.5,
            "accuracy_low": 0.4,
            "accuracy_high": 0.6,
            "difference_to_reference": None,
            "clear": None,
        }
        for name in names
    ]
    loss: Row = {"difference_low": -0.2, "difference_high": -0.05}
    main[2] |= {"difference_to_reference": 0.3, "difference_low": -0.1, "difference_high": 0.7, "clear": False}
    main[3] |= {"difference_to_reference": -0.1, **loss, "clear": True}
    control: Row = {
        "method": "token_alp",
        "control": "token_alp-sigma0",
        "changed": "noise",
        "difference": -0.1,
        "clear": True,
        **loss,
    }
    found = headline(loaded, {"main": main, "controls": [control, control | {"changed": "clip range"}]})
    clear = "Accuracy minus GRPO's, 2 arms: clear of zero over all 2 comparisons of the table at once:"
    shown = f"{label('token_alp')} (−10.0 [−20.0, −5.0])"
    rest = "the others at +30.0 points, with zero inside the interval"
    assert f"{clear} {shown}; {rest}." in found
    alone = "differs in the noise alone: −10.0 points [−20.0, −5.0]; the interval excludes zero, and"
    at_once = "clear of it over all 2 comparisons of the controls table at once."
    assert any(f"{alone} stays {at_once}" in one for one in found)
    main[3] |= {"clear": False}
    control["clear"] = False
    singly = headline(loaded, {"main": main, "controls": [control, control | {"changed": "clip range"}]})
    none = "none stays clear of zero over all 2 comparisons of the table at once"
    assert f"Accuracy minus GRPO's, 2 arms: {none}; taken singly, {shown}; {rest}." in singly
    assert any(f"{alone} does not stay {at_once}" in one for one in singly)
    assert any("No control for the noise alone" in one for one in headline(loaded, {"main": main, "controls": []}))


def test_one_seed_is_said_to_tell_nothing_from_chance(tmp_path: Path) -> None:
    grid, results = fabricate(write_grid(tmp_path, GRID.replace("[0, 1]", "[0]")), tmp_path / "results", steps=3)
    aggregate(grid, results)
    figures(grid, results)
    text = html.unescape(re.sub(r"<[^>]+>", "", report(grid, results).read_text(encoding="utf-8")))
    assert re.search(r"Accuracy minus GRPO's, 3 arms: \S+ to \S+ points, without intervals\.", text)
    assert "no difference can be told from chance" in text
    assert "the interval excludes" not in text


@pytest.mark.parametrize(
    ("lost", "command"),
    [
        ("arithmetic/data/leakage.json", "alp prepare task=arithmetic"),
        ("figures/tails.svg", "alp figures grid="),
        ("figures/tails_phone.svg", "alp figures grid="),
        ("active", "snakemake --cores 2"),
    ],
)
def test_a_missing_part_is_one_line_with_its_command(
    fresh: Finished, page: str, finished: Finished, lost: str, command: str
) -> None:
    grid, results = fresh
    source = finished[0].folder(finished[1])
    (grid.folder(results) / "figures").mkdir()  # drawn for the larger fabrication; the page shows them as they are
    for path in (source / "figures").iterdir():
        (grid.folder(results) / "figures" / path.name).write_bytes(path.read_bytes())
    path = grid.run_dir(results, "grpo", 0) / "active.json" if lost == "active" else grid.folder(results) / lost
    path.unlink()
    with pytest.raises(UserError) as caught:
        report(grid, results)
    assert str(path) in str(caught.value)
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_page_is_made_from_the_result_files(finished: Finished, page: str) -> None:
    """Whatever somebody wrote into the files of the tables, or without them."""
    grid, results = finished
    folder = grid.folder(results) / "tables"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        for path in before:
            path.unlink()
        (folder / "main.csv").write_text("method,accuracy_mean\nbase,no number\n", encoding="utf-8")
        report(grid, results)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert (grid.folder(results) / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no JSON object"),
        ("{}", "missing: sets"),
        ('{"sets": {"test": {"problems": 3}}}', "cannot be read"),
    ],
)
def test_a_damaged_leakage_report_is_one_line(fresh: Finished, content: str, message: str) -> None:
    grid, results = fresh
    (grid.data_dir(results) / "leakage.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        LEAKAGE.make(fresh)


def test_leakage_is_that_of_the_data(several: Finished) -> None:
    grid, results = several
    printed = (grid.data_dir(results) / "leakage.md").read_text(encoding="utf-8").splitlines()[2:]
    assert [f"| {' | '.join(cells)} |" for cells in LEAKAGE.make(several).shown()] == printed


def test_an_arm_of_ones_own_gets_its_sentence_and_one_point_its_seeds(tmp_path: Path) -> None:
    own = "  - {method: token_alp, variant: mine, overrides: [method.clip_high=2.0]}\n"
    grid, results = fabricate(write_grid(tmp_path, GRID + own), tmp_path / "results", steps=3)
    loaded = runs.load(grid, results)
    said = headline(loaded, {name: table.rounded() for name, table in build(loaded).items()})
    arm = loaded.find("token_alp-mine")
    assert arm is not None
    parts = []
    for name in ("grpo", "token_alp"):
        other = loaded.find(name)
        assert other is not None
        gap = loaded.difference(arm.accuracy, other.accuracy)
        assert gap.low is not None
        assert gap.high is not None
        does = "includes" if gap.low <= 0 <= gap.high else "excludes"
        ends = f"[{points(gap.low)}, {points(gap.high)}]"
        parts.append(f"{points(gap.mean)} points {ends} to {label(name)}, an interval that {does} zero")
    assert f"Token-ALP (mine), of this grid's own: {'; '.join(parts)}." in said
    reference = loaded.find("grpo")
    assert reference is not None
    others = [one for one in loaded.arms if one is not reference]
    config = PowerConfig(grid="tiny", results=str(results), effect=1, power=0.8)
    needed = power.make(loaded, reference, others, config).rounded()[-1]["seeds_here"]
    assert isinstance(needed, int)
    assert sum(f"; {needed - 2} more seeds an arm would resolve one point" in one for one in said) == 1


def test_the_presets_that_are_no_users_own_are_there() -> None:
    assert set(compose.choices("method")) >= arms.SHIPPED
