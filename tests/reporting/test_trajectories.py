"""Trajectories on the page: by the rule, whole, and what a tool said without a shade; a bad file is one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from alp.configuration import compose
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.policy.method import Level
from alp.reporting import runs
from alp.reporting.aggregate import aggregate
from alp.reporting.draw import figures
from alp.reporting.report import report
from alp.reporting.trajectories import BOUNDS, LEVELS, classes, ratio_words, shown, visible

from .conftest import GRID, fabricate, trajectory, write_grid
from .test_report import Page

Finished = tuple[Grid, Path]


def _file(finished: Finished, arm: str, seed: int = 0) -> Path:
    return finished[0].run_dir(finished[1], arm, seed) / "trajectories.jsonl"


def _rewrite(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _tools(**changed: Any) -> dict[str, Any]:
    """Two turns with a tool's word between them; the second turn is clipped."""
    line = trajectory(5, 0, compose.load("train", ["method=grpo"]).method, np.random.default_rng(0))
    text = ["```python\n", "print(", "1", ")", "\n```", "\n```output\n", "<b>7</b>", "\n```\n", "#7"]
    return line | {
        "response_tokens": len(text),
        "text": text,
        "token_ids": list(range(len(text))),
        "turn_ids": [0] * 8 + [1],
        "log_ratio": [0.2, -0.04, 0.0, 0.5, -0.5, None, None, None, -0.4],
        "marks": ["loss"] * 5 + ["tool"] * 3 + ["clipped_low"],
        **changed,
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A grid whose arms show a tool, a long trajectory, a void one, and none at all; its figures are drawn."""
    root = tmp_path_factory.mktemp("drawn")
    finished = fabricate(write_grid(root, GRID), root / "results", steps=3)
    long = _tools(response_tokens=50, gap=41, gap_at=3)
    void = _tools(left_out=True, advantage=-0.5, log_ratio=[None] * 9, log_ratio_sum=None)
    void |= {"marks": ["left_out"] * 5 + ["tool"] * 3 + ["left_out"]}
    _rewrite(_file(finished, "grpo"), _tools(), _tools(step=6), long | {"step": 7}, void | {"step": 7})
    _rewrite(_file(finished, "token_alp"), _tools(step=4, advantage=0.0, finished=False))
    aggregate(*finished)
    figures(*finished)
    report(*finished)
    return finished


def _section(finished: Finished) -> str:
    text = (finished[0].folder(finished[1]) / "report.html").read_text(encoding="utf-8")
    return text[text.index('<h2 id="trajectories">') : text.index('<h2 id="settings">')]


def test_arms_steps_and_seed_follow_from_the_rule(drawn: Finished) -> None:
    arms = shown(runs.load(*drawn))
    assert [arm.name for arm in arms] == ["grpo", "token_alp"]
    assert [step for step, _ in arms[0].steps] == [5, 7]
    assert [len(cards) for _, cards in arms[0].steps] == [1, 2]
    assert arms[0].seed == 0


def test_the_section_is_well_formed_and_says_its_rule(drawn: Finished) -> None:
    parsed = Page((drawn[0].folder(drawn[1]) / "report.html").read_text(encoding="utf-8"))
    assert parsed.open == []
    assert "trajectories" in parsed.ids
    assert parsed.tags.count("script") == 1  # the page's own
    text = re.sub(r"<[^>]+>", "", _section(drawn))
    for said in ("Nobody picked these", "41 tokens are not shown", "Left out of the loss", "A = 0", "Cut at the limit"):
        assert said in text, said
    assert "&lt;b&gt;7&lt;/b&gt;" in text
    assert "r = π_θ / π_old, one r a token" in text
    assert "r = π_θ,δ / μ, one r a token" in text


def test_the_page_has_no_section_where_there_is_nothing(fresh: Finished, drawn: Finished) -> None:
    assert shown(runs.load(*fresh)) == []
    shutil.copytree(drawn[0].folder(drawn[1]) / "figures", fresh[0].folder(fresh[1]) / "figures")
    text = report(*fresh).read_text(encoding="utf-8")
    assert 'id="trajectories"' not in text
    assert 'href="#trajectories"' not in text


def test_what_a_tool_said_is_apart_and_never_shaded(drawn: Finished) -> None:
    blocks = re.findall(r'<pre class="(\w+)">\n(.*?)</pre>', _section(drawn), flags=re.DOTALL)
    assert {kind for kind, _ in blocks} == {"prompt", "model", "tool"}
    for kind, content in blocks:
        assert kind == "model" or "<i" not in content
    assert any(content.count("<i") >= 3 for kind, content in blocks if kind == "model")
    for value in (-1.0, 0.0, 1.0, None):
        assert classes(value, "tool") == ""
        assert classes(value, "left_out") == ""


@pytest.mark.parametrize(
    ("value", "mark", "expected"),
    [
        (0.0, "loss", ""),
        (0.0099, "loss", ""),
        (0.01, "loss", "u1"),
        (-0.01, "loss", "d1"),
        (-0.05, "loss", "d2"),
        (0.29, "loss", "u3"),
        (-3.0, "clipped_low", "d4 cl"),
        (0.3, "clipped_high", "u4 ch"),
        (0.002, "dual_clipped", "cd"),
        (None, "masked", "ma"),
    ],
)
def test_classes(value: float | None, mark: str, expected: str) -> None:
    assert classes(value, mark) == expected


def test_every_class_has_its_look(drawn: Finished) -> None:
    style = (drawn[0].folder(drawn[1]) / "report.html").read_text(encoding="utf-8").partition("</style>")[0]
    for name in [f"{sign}{depth}" for sign in "ud" for depth in range(1, len(BOUNDS) + 1)] + ["cl", "ch", "cd", "ma"]:
        assert re.search(rf"i\.{name}\b", style), name


def test_what_cannot_be_shown_is_spelled_out() -> None:
    assert visible("a\n\x00\u202eb", tool=False) == "a↵\n\\x00\\u202eb"
    assert visible("a\n", tool=True) == "a\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "no .*trajectories.jsonl: build it with"),
        ({"text": ["1"]}, "counts its tokens differently"),
        ({"response_tokens": 7}, "counts its tokens differently"),
        ({"turn_ids": [1] * 8 + [0]}, "counts its turns differently"),
        ({"level_log_ratio": [0.1, 0.2], "turn_ids": [0] * 8 + [2]}, "counts its turns differently"),
        ({"marks": ["unknown"] * 9}, r"has 'marks\.0'"),
        ({"log_ratio": ["0.1"] * 9}, r"has 'log_ratio\.0"),
        ({"reward": None}, "has 'reward"),
    ],
)
def test_a_missing_or_damaged_file_is_one_line_with_its_command(
    fresh: Finished, change: dict[str, Any] | None, message: str
) -> None:
    path = _file(fresh, "token_bypass")
    path.unlink() if change is None else _rewrite(path, _tools(), _tools(**change))
    with pytest.raises(UserError, match=message) as caught:
        shown(runs.load(*fresh))
    said = str(caught.value)
    assert str(path) in said
    assert "snakemake --cores 2" in said
    assert "\n" not in said
    assert change is None or "line 2" in said


def test_a_line_that_is_no_json_is_one_line_too(fresh: Finished) -> None:
    _file(fresh, "grpo").write_text('{"step": 1', encoding="utf-8")
    with pytest.raises(UserError, match="is no valid JSON at line 1"):
        shown(runs.load(*fresh))


@pytest.mark.parametrize("preset", compose.choices("method"))
def test_every_preset_s_ratio_has_words(preset: str) -> None:
    """A level that the method knows and the page does not would cost the report of a finished grid."""
    method = compose.load("train", [f"method={preset}"]).method
    assert ratio_words(method).startswith("r = π_θ")


def test_every_level_has_words() -> None:
    assert set(LEVELS) == set(get_args(Level))
