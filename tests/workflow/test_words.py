"""Every word that reaches a shell: folders and grids of any name are carried whole, or refused by name; none is ever
run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alp.configuration import compose, grid
from alp.errors import UserError
from tests.faults.conftest import ALL

ROOT = Path(__file__).resolve().parents[2]
TITLES = "title: t\ndescription: d\ntask: arithmetic\nmodel: arithmetic_tiny\nseeds: [0]\narms: [{method: grpo}]\n"
SPOKEN = [  # one run holds every character that a shell, Hydra or Snakemake could take for its own
    'my results $(touch CANARY) `touch CANARY`;touch CANARY & it\'s "so" \\ * [ab] ~ <é> | !x#h $HOME %41, a=b',
    *(
        [
            *(
                "my results",
                "a$(touch CANARY)b",
                "a&touch CANARY",
                "`touch CANARY`",
                "x;touch CANARY;",
                "it's",
                "back\\slash",
            ),
            *(
                "end\\",
                "\\'q",
                "-dash",
                "--cores",
                "*",
                "[ab]",
                "~",
                "é ü 日本",
                "a|b>c<d",
                "$HOME",
                "a,b",
                "deep/$(touch CANARY)/x",
            ),
        ]
        if ALL
        else []
    ),
]


def _prepare(house: Path, grid_path: Path, results: str) -> subprocess.CompletedProcess[str]:
    words = [
        "--cores",
        "1",
        "--until",
        "prepare",
        "--retries",
        "0",
        "--config",
        f"grid={grid_path}",
        f"results={results}",
    ]
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(ROOT / "Snakefile"),
        "--profile",
        str(ROOT / "profiles" / "default"),
        *words,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("results", SPOKEN)
def test_a_folder_of_any_name_is_used_and_never_run(results: str, tmp_path: Path) -> None:
    house, place = tmp_path / "house", tmp_path / "grids $(touch CANARY) it's & {here}"
    house.mkdir()
    place.mkdir()
    (place / "mine.yaml").write_text(TITLES)
    done = _prepare(house, place / "mine.yaml", results)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (house / results / "mine/arithmetic/data/summary.json").is_file()
    assert (house / results / "mine/logs/prepare.log").read_text(encoding="utf-8").startswith("alp prepare ")
    assert {path.name for path in house.iterdir()} == {".snakemake", Path(results).parts[0]}
    assert not list(tmp_path.rglob("CANARY"))


def test_what_snakemake_cannot_carry_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TITLES)
    done = _prepare(tmp_path, tmp_path / "mine.yaml", "a{seed}$(touch CANARY)")
    assert done.returncode == 2
    said = (
        "alp: error: --config: results: 'a{seed}$(touch CANARY)' holds '{', which Snakemake reads as a wildcard; choose"
        " another folder\n"
    )
    assert done.stderr.endswith(said)
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "results is empty"),
        ("", "results is empty"),
        (7, "Snakemake reads the value as a number (7)"),
        (True, "Snakemake reads the value as a truth value (True)"),
        (["a"], "Snakemake reads the value as a list"),
        ({"a": "b"}, "Snakemake reads the value as a mapping"),
        ("a\nb", r"holds '\n'"),
        ("a\x1b[2Jb", r"holds '\x1b'"),
        ("a\u2028b", r"holds '\u2028'"),
        ("a\udcffb", r"holds '\udcff'"),
        ("{x", "holds '{'"),
    ],
)
def test_values_that_are_no_folder(value: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        grid.results_root(value)
    assert message in str(caught.value)


def test_every_placeholder_of_a_shell_command_is_quoted() -> None:
    """``params.words`` is joined by shlex, ``params.share`` a word of ours; everything else asks Snakemake to quote."""
    seen = 0
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for command in re.findall(r"shell:\n\s+(\".*\")", path.read_text(encoding="utf-8")):
            for word in re.findall(r"\{([^}]*)\}", command):
                assert word in ("params.words", "params.share") or word.endswith(":q"), f"{path.name}: {command}"
                seen += 1
    assert seen >= 22


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    | st.text("\\'\"${}, =:a\n", min_size=1, max_size=8)
)
def test_hydra_gives_back_what_was_quoted(text: str) -> None:
    assert compose.load("prepare", [f"run.dir={grid.quoted(text)}"]).run.dir == text


def test_a_checkout_with_a_colon_is_refused() -> None:
    with pytest.raises(UserError, match="a colon parts folders in PATH"):
        grid.check_checkout(Path("/a"), Path("/b:c"))
