"""The page as a browser shows it, at a desk, on a phone, in print and in the dark, with its script and without."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from alp.configuration.grid import Grid
from alp.reporting.aggregate import aggregate
from alp.reporting.draw import figures
from alp.reporting.report import report

from ..browser import NAMES, Browser, program

pytestmark = pytest.mark.skipif(program() is None, reason=f"no browser here: {', '.join(NAMES)}")
DESK, PHONE, PAPER = 1400, 400, 703  # CSS pixels; the last is A4 without its margins
CUT = "[...document.querySelectorAll('.wide')].filter((box) => box.scrollWidth > box.clientWidth + 1).length"
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


WIDE = "[...document.images].every((image) => image.currentSrc === image.src)"


@pytest.fixture(scope="module")
def path(finished: tuple[Grid, Path]) -> Path:
    grid, results = finished
    aggregate(grid, results)
    figures(grid, results)
    return report(grid, results)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def test_at_a_desk_nothing_is_cut_and_nothing_complains(browser: Browser, path: Path) -> None:
    browser.open(path, width=DESK)
    assert browser.value("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert browser.value("document.images.length") > 8
    assert browser.value(CUT) == 0
    assert browser.value(SIDEWAYS) <= 0
    assert browser.value(WIDE)
    assert browser.complaints() == []


def test_on_a_phone_nothing_is_moved_sideways_to_see_a_figure(browser: Browser, path: Path) -> None:
    """Every figure is the one drawn for it, no smaller than it was drawn: text of 8 points is 10 pixels high or so."""
    browser.open(path, width=PHONE)
    browser.value("Promise.all([...document.images].map((image) => image.decode()))")
    assert browser.value(SIDEWAYS) <= 0
    assert browser.value("document.images.length") > 8
    assert browser.value("Math.max(...[...document.images].map((image) => image.naturalWidth))") <= PHONE
    assert browser.value("Math.min(...[...document.images].map((image) => image.width / image.naturalWidth))") > 0.98
    boxes = "[...document.querySelectorAll('.plot')]"
    assert browser.value(f"{boxes}.filter((box) => box.scrollWidth > box.clientWidth + 1).length") == 0
    assert browser.complaints() == []


def test_print_holds_every_column_and_what_was_folded(browser: Browser, path: Path) -> None:
    browser.open(path, width=PAPER, media="print")
    assert browser.value(CUT) == 0
    assert browser.value(SIDEWAYS) <= 0
    assert browser.value(WIDE)
    folded = "[...document.querySelectorAll('details')].filter((one) => !one.lastElementChild.checkVisibility()).length"
    assert browser.value(folded) == 0
    browser.send("Emulation.setEmulatedMedia", media="screen")
    assert browser.value(folded) > 5
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.value("getComputedStyle(document.querySelector('.filter')).display") == "none"


def test_a_phone_prints_the_figures_of_a_desk(browser: Browser, path: Path) -> None:
    browser.open(path, width=PHONE)
    assert not browser.value(WIDE)
    browser.open(path, width=PHONE, media="print")
    assert browser.value(WIDE)


def test_in_the_dark_figures_are_dark_too(browser: Browser, path: Path) -> None:
    browser.open(path, width=DESK, scheme="dark")
    browser.value("document.querySelector('#figure-accuracy').scrollIntoView()")
    pixels = imread(io.BytesIO(browser.screenshot()))[..., :3]
    assert float(np.median(pixels)) < 0.25
    assert float((pixels.mean(axis=-1) > 0.9).mean()) < 0.05


def test_headers_sort_and_words_filter(browser: Browser, path: Path) -> None:
    browser.open(path, width=DESK)
    table = "document.querySelector('#main ~ section table')"
    column = f"[...{table}.tHead.rows[0].cells].findIndex((head) => head.textContent.startsWith('Tokens'))"
    cells = f"[...{table}.tBodies[0].rows].map((row) => row.cells[{column}].textContent)"
    for expected in (sorted, lambda numbers: sorted(numbers, reverse=True)):
        browser.value(f"{table}.tHead.rows[0].cells[{column}].click()")
        numbers = [float(text) for text in browser.value(cells)]
        assert len(set(numbers)) > 2
        assert numbers == expected(numbers)
    rows = "document.querySelector('#table-ratio_tails tbody').rows"
    browser.value(
        "{const box = document.querySelector('#table-ratio_tails .filter'); box.value = 'grpo sequence';"
        " box.dispatchEvent(new Event('input'))}"
    )
    left = browser.value(f"[...{rows}].filter((row) => row.checkVisibility()).map((row) => row.cells[0].textContent)")
    assert left == ["GRPO"]
    assert browser.complaints() == []


def test_the_pointer_reads_the_numbers_of_the_files(browser: Browser, path: Path) -> None:
    """An arm's accuracy and interval from its dot, and every arm's validation accuracy at the nearest step."""
    rows = csv.DictReader(io.StringIO((path.parent / "tables/main.csv").read_text(encoding="utf-8")))
    grpo = next(row for row in rows if row["method"] == "grpo")
    mean, low, high = (f"{100 * float(grpo[f'accuracy_{part}']):.1f}" for part in ("mean", "low", "high"))
    for width in (PHONE, DESK):
        browser.open(path, width=width)
        _point(browser, "accuracy", 0)
        assert browser.value("document.querySelector('.tip').textContent") == f"GRPO: {mean} [{low}, {high}]"
    _point(browser, "validation", -1)
    said = browser.value("[...document.querySelectorAll('.tip div')].map((line) => line.textContent)")
    assert said[0] == "at 10"
    assert all(re.fullmatch(r".+: \d+\.\d+", line) for line in said[1:])
    assert len(said) == 1 + 4
    browser.point(2, 2)
    assert browser.value("document.querySelector('.tip').hidden")
    assert browser.complaints() == []


def _point(browser: Browser, name: str, place: int) -> None:
    """To a point of the figure's first named line, by the file's own places."""
    image = f"document.querySelector('#figure-{name} img')"
    browser.value(f"{image}.scrollIntoView({{block: 'center'}})")
    file = f"atob({image}.currentSrc.split(',')[1])"
    held = f"JSON.parse(new DOMParser().parseFromString({file}, 'image/svg+xml').getElementById('values').textContent)"
    across, down = browser.value(
        f"(() => {{ const area = {image}.getBoundingClientRect(), point = {held}[0].lines[0].points.at({place});"
        " return [area.left + point[0] * area.width, area.top + point[1] * area.height] })()"
    )
    browser.point(across - (1 if place else 0), down)


def test_a_click_on_an_arm_opens_its_settings_and_files(browser: Browser, path: Path) -> None:
    browser.open(path, width=DESK)
    card = "document.getElementById('arm-token_alp')"
    assert not browser.value(f"{card}.open")
    browser.value("document.querySelector('#main ~ section a[href=\"#arm-token_alp\"]').click()")
    assert browser.value(f"new Promise((done) => setTimeout(() => done({card}.open), 200))")
    assert "method.perturbation.std" in browser.value(f"{card}.innerText")
    assert abs(browser.value(f"{card}.getBoundingClientRect().top")) < 5


def test_all_of_it_is_read_without_the_script(browser: Browser, path: Path) -> None:
    count = "document.querySelectorAll('tbody tr').length"
    browser.open(path, width=DESK)
    with_script = browser.value(count)
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(path, width=DESK)
        assert browser.value(count) == with_script
        assert browser.value("document.querySelectorAll('.filter').length") == 0
        assert browser.value("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert browser.value("document.querySelector('details.card').checkVisibility()")
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
