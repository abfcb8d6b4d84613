"""docs/roadmap.md: every command in it exists, and its grid file composes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from alp.cli import named
from alp.configuration import compose, grid
from alp.verbs import VERBS

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "roadmap.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for kind, block in BLOCKS if not kind for line in block.splitlines()]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def _of(program: str) -> list[list[str]]:
    found = [words[1:] for words in COMMANDS if words[0] == program]
    assert found
    return found


def test_no_other_programs_are_named() -> None:
    assert {words[0] for words in COMMANDS} == {"alp", "snakemake", "make", "python"}


@pytest.mark.parametrize("words", _of("alp"), ids=" ".join)
def test_verbs_and_keys_exist(words: list[str]) -> None:
    verb, *rest = words
    if rest[-2:] == ["--cfg", "job"]:
        rest = rest[:-2]
    if verb == "methods":
        assert not rest
        return
    concrete = [word.replace("model=ours", "model=smollm2_135m").replace("<folder>", "somewhere") for word in rest]
    compose.load(verb, named(VERBS[verb], concrete))
    if name := next((word.removeprefix("grid=") for word in rest if word.startswith("grid=")), None):
        assert name == "ours" or grid.load(name)


@pytest.mark.parametrize("words", _of("snakemake"), ids=" ".join)
def test_grids_and_profiles_exist(words: list[str]) -> None:
    name = words[words.index("--config") + 1].removeprefix("grid=")
    assert name == "ours" or grid.load(name)
    if "--profile" in words:
        assert (ROOT / words[words.index("--profile") + 1] / "profile.yaml").is_file()


def test_targets_and_scripts_exist() -> None:
    for target, *settings in _of("make"):
        assert target in TARGETS
        for name in (word.removeprefix("BENCH=") for word in settings if word.startswith("BENCH=")):
            assert (ROOT / "benchmarks" / f"{name}.py").is_file()
    for (script,) in _of("python"):
        assert (ROOT / script).is_file()


def test_the_grid_file_composes(tmp_path: Path) -> None:
    (block,) = (block for kind, block in BLOCKS if kind == "yaml")
    plain = yaml.safe_load(block) | {"model": "smollm2_135m"}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    loaded = grid.load(str(tmp_path / "ours.yaml"))
    assert [arm.name for arm in loaded.arms] == ["grpo", "seq_bypass", "seq_alp-sigma0"]
    for arm in loaded.arms:
        compose.load("train", loaded.overrides("train", "results", arm=arm.name))
