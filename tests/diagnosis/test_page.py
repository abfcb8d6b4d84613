"""The page of a diagnosis: a verdict on the first screen, figures that are legible at both widths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from alp.cli import main
from alp.diagnosis import checking, measures, readers
from alp.diagnosis.causes import causes
from alp.diagnosis.demo import DUMP
from alp.diagnosis.diagnosed import Diagnosed
from alp.diagnosis.dumps import FIELDS, Raw
from alp.diagnosis.figures import FIGURES
from alp.diagnosis.findings import verdict
from alp.rendering import plots

from ..browser import NAMES, Browser, program

ROWS, TOKENS = 16, 30


def _verdict(gap: float, tokens: int = TOKENS) -> str:
    """Of policies that are apart by noise of that size."""
    random = np.random.default_rng(0)
    old = -random.gamma(0.5, 1.0, size=ROWS * tokens) - 1.5  # none above 0 with its noise
    rollout = old + gap * random.normal(size=old.shape)
    fields = {"old_log_probs": old, "rollout_log_probs": rollout, "response_mask": np.ones(old.shape)}
    lengths = dict.fromkeys(fields, np.full(ROWS, tokens))
    dump = checking.check(Raw(fields, lengths, None, str, {name: name for name in FIELDS}))
    return verdict(dump, measures.diagnostics(dump), causes(dump))


def test_the_verdict_is_one_sentence_and_the_size() -> None:
    assert _verdict(0.003).startswith("No fault seen: π_old / μ shows rounding. Effective sample size: ")
    assert _verdict(0.3).startswith("Likely a fault: ")
    assert "% sure). Effective sample size: " in _verdict(0.3)
    assert _verdict(0.3, tokens=3).startswith("Too little to judge by. ")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["demo"]) == 0
    return folder / "results" / "demo" / "report.html"


def test_every_figure_says_what_a_healthy_one_looks_like(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert all(figure.healthy in text for figure in FIGURES)
    assert text.count("<strong>Healthy:</strong>") == text.count("<picture>") == len(FIGURES)


def test_ticks_have_room_on_a_phone() -> None:
    """Of the histograms of the demo's dump: 8 pixels between the labels, however the scale crowds them at 0."""
    dump = checking.check(readers.read(DUMP, {name: name for name in FIELDS}).raw)
    shown = Diagnosed(dump, measures.diagnostics(dump), [])
    with plots.style(), plots.narrow():
        for artefact in FIGURES[:2]:
            figure = artefact.make(shown)
            figure.draw_without_rendering()
            labels = [label for label in figure.axes[-1].get_xticklabels() if label.get_text()]
            places = [label.get_window_extent() for label in labels]
            assert len(places) >= 3
            assert all(one.x1 + 8 < other.x0 for one, other in itertools.pairwise(places)), artefact.name


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if program() is None:
        pytest.skip(f"no browser here: {', '.join(NAMES)}")
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (400, 800)])
def test_in_a_browser(browser: Browser, page: Path, width: int, height: int) -> None:
    """Nothing sideways; the verdict is on the first screen; a figure's letters are no smaller than they were drawn
    (8 points are 10.7 pixels)."""
    browser.open(page, width=width, height=height)
    browser.value("Promise.all([...document.images].map((image) => image.decode()))")
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("document.querySelector('.verdict').getBoundingClientRect().bottom") < height
    scale = "Math.min(...[...document.images].map((image) => image.clientWidth / image.naturalWidth))"
    assert browser.value(scale) > 0.98
    assert browser.complaints() == []
