"""The results in docs/evidence.md are what docs/evidence/*.json makes of them, and nothing else is typed
there."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import evidence
from benchmarks.evidence_blocks import BLOCKS, difference, paired_table
from benchmarks.regime import judge

ROOT = Path(__file__).resolve().parents[1]
RESULT = re.compile(r"[+−-]?\d+\.\d+ ?%|[+−]\d+\.\d+|\d+\.\d points?\b")  # 96.0 %, −2.4, 3.1 points


@pytest.mark.parametrize("document", evidence.DOCUMENTS)
def test_every_block_is_what_its_files_make(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert evidence.BLOCK.search(text), document
    assert evidence.rendered(text, evidence.load_all()) == text, "python -m benchmarks.evidence write"


@pytest.mark.parametrize("document", evidence.DOCUMENTS)
def test_no_result_is_typed_by_hand(document: str) -> None:
    text = evidence.BLOCK.sub("", (ROOT / document).read_text(encoding="utf-8"))
    assert not RESULT.findall(text)


def test_every_block_is_one_that_is_made_and_is_closed() -> None:
    for document in evidence.DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        names = [found[2] for found in evidence.BLOCK.finditer(text)]
        assert set(names) <= set(BLOCKS)
        assert len(names) == text.count("<!-- evidence:") == text.count("<!-- end of evidence -->")


def test_a_changed_number_is_noticed() -> None:
    """The comparison can fail."""
    kept = evidence.load_all()
    kept["regime"]["candidates"]["short"]["signal"] += 1
    text = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert evidence.rendered(text, kept) != text


def test_a_difference_is_student_s_over_the_seeds() -> None:
    """Against scipy's paired test, a measure that a seed lacks, and a table of pairs."""
    first, second = [0.9, 0.8, 0.85], [0.7, 0.75, 0.8]
    found = {
        "arms": {
            "seq_alp": {"accuracy": first, "entropy": [1.0, None, 2.0]},
            "seq_bypass": {"accuracy": second, "entropy": [1.0, 1.0, 1.0]},
        },
        "noise_alone": [["seq_alp", "seq_bypass"]],
        "labels": {"seq_alp": "Seq-ALP", "seq_bypass": "Seq-Bypass"},
    }
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    text = difference(found, "seq_alp", "seq_bypass", "accuracy")
    expected = (
        f"{100 * np.mean(np.subtract(first, second)):+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
    )
    assert text == expected.replace("-", "\N{MINUS SIGN}")
    assert difference(found, "seq_alp", "seq_bypass", "entropy") == ""
    table = paired_table(found, found["noise_alone"], ("accuracy", "entropy"))
    assert table.count("Seq-ALP") == 1
    assert "Entropy" not in table


@pytest.mark.parametrize("name", sorted(set(evidence.load_all()) - {"regime", "matched"}))
def test_kept_numbers_are_whole(name: str) -> None:
    """Every arm has a number for every seed of what every arm has, and pairs differ in the noise alone."""
    found = evidence.load_all()[name]
    for arm, measures in found["arms"].items():
        assert len(measures["accuracy"]) == found["seeds"], arm
        assert all(0 <= value <= 1 for value in measures["accuracy"])
    for arm, control in found["noise_alone"]:
        assert arm.startswith(("token_alp", "seq_alp"))
        assert control.endswith("-sigma0") or control == "seq_bypass"


def test_the_signal_of_a_regime_is_that_of_a_two_way_layout() -> None:
    """Against scipy's own variance analysis of arms once the seeds' common part is off, whatever the arms' order."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 4)) + np.arange(5)[:, None] + rng.normal(size=4)
    settings = {"wanted": [0.0, 1.0], "collapsed": 0.1}
    found = judge(table, 0.0, settings)
    centred = table - table.mean(0)
    f_ratio = stats.f_oneway(*centred).statistic * (3 * 4) / (5 * 3)  # residual freedoms (a-1)(s-1), not a(s-1)
    assert math.isclose(found["signal"], (f_ratio - 1) / 4, rel_tol=1e-9)
    assert judge(table[::-1], 0.0, settings) == pytest.approx(found)
