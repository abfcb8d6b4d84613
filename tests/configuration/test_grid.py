"""Grid files: what is accepted, and one line for what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alp.configuration import compose, grid, grid_file
from alp.errors import UserError

GOOD: dict[str, Any] = {
    "title": "T",
    "description": "D",
    "task": "arithmetic",
    "model": "arithmetic_tiny",
    "seeds": [0, 1],
    "arms": [
        {"method": "grpo"},
        {"method": "token_alp", "variant": "small", "overrides": ["method.perturbation.std=0.001"]},
    ],
}


def _write(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (GOOD | changes).items() if value is not None}))
    return str(path)


@pytest.mark.parametrize("name", grid_file.names())
def test_shipped_grids_compose(name: str) -> None:
    loaded = grid.load(name)
    for arm in loaded.arms:
        for verb in ("train", "evaluate"):
            compose.load(verb, loaded.overrides(verb, "results", arm=arm.name, seed=loaded.seeds[-1]))


def test_quick_is_the_grid_of_the_readme() -> None:
    arms = {arm.name for arm in grid.load("quick").arms}
    assert arms == {"grpo", "gspo", "seq_bypass", "token_mis", "seq_mis", "token_alp", "seq_alp", "token_alp-sigma0"}
    assert len(grid.load("quick").seeds) == 5


def test_folders_and_labels(tmp_path: Path) -> None:
    loaded = grid.load(_write(tmp_path))
    assert [arm.name for arm in loaded.arms] == ["grpo", "token_alp-small"]
    assert loaded.run_dir("results", "grpo", 1) == Path("results/mine/arithmetic/arithmetic_tiny/grpo/seed1")
    words = loaded.overrides("train", "results", arm="token_alp-small", seed=1)
    job = compose.load("train", words)
    assert (job.method.perturbation.std, job.trainer.seed, job.run.arm, job.run.grid) == (
        0.001,
        1,
        "token_alp-small",
        "mine",
    )


@pytest.fixture
def the_project_s_configs() -> Iterator[Path]:
    configs = compose.CONFIGS
    yield configs
    compose.read_from(configs)


def test_a_model_of_one_s_own_replaces_the_embedded_one(tmp_path: Path, the_project_s_configs: Path) -> None:
    import shutil

    configs = tmp_path / "configs"
    shutil.copytree(the_project_s_configs, configs)
    text = (configs / "model" / "arithmetic_tiny.yaml").read_text(encoding="utf-8")
    mine = text.replace("path: null", "path: /models/mine").replace("name: arithmetic_tiny", "name: mine")
    (configs / "model" / "mine.yaml").write_text(mine)
    compose.read_from(configs)
    loaded = grid.load(_write(tmp_path, model="mine"))
    assert loaded.model_dir("results") == Path("/models/mine")
    for verb, arm in (("train", "grpo"), ("evaluate", None)):
        assert compose.load(verb, loaded.overrides(verb, "results", arm=arm)).model.path == "/models/mine"


def test_a_grid_extends_another_field_by_field(tmp_path: Path) -> None:
    _write(tmp_path, overrides={"train": ["trainer.steps=3"]})
    own = tmp_path / "own.yaml"
    own.write_text("extends: mine.yaml\ntitle: Own\nseeds: [7]\n", encoding="utf-8")
    third = tmp_path / "third.yaml"
    third.write_text("extends: own.yaml\narms: [{method: gspo}]\n", encoding="utf-8")
    other, loaded, last = (grid.load(str(path)) for path in (tmp_path / "mine.yaml", own, third))
    assert (loaded.name, loaded.title, loaded.seeds, loaded.arms) == ("own", "Own", (7,), other.arms)
    assert ([arm.name for arm in last.arms], last.seeds, last.title) == (["gspo"], (7,), "Own")
    assert "trainer.steps=3" in last.overrides("train", "results", arm="gspo")
    assert loaded.content_hash == grid.load(_whole_file(tmp_path, "own", seeds=[7], title="Own")).content_hash


def _whole_file(tmp_path: Path, name: str, **changes: Any) -> str:
    """The same grid, all of it in one file of the same name."""
    folder = tmp_path / "whole"
    folder.mkdir()
    written = Path(_write(folder, overrides={"train": ["trainer.steps=3"]}, **changes))
    return str(written.rename(folder / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "extends: quik\n"}, "a.yaml: extends: unknown grid 'quik'; did you mean 'quick'?"),
        ({"a": "extends: none.yaml\n"}, "a.yaml: extends: no grid file at"),
        ({"a": "extends: 3\n"}, "a.yaml: extends: 3 is no name of a grid"),
        ({"a": "extends: a.yaml\n"}, "a.yaml: extends: a.yaml extends this grid itself"),
        ({"a": "extends: b.yaml\n", "b": "extends: a.yaml\n"}, "b.yaml: extends: a.yaml extends this grid itself"),
        ({"a": "extends: b.yaml\n", "b": "[1]\n"}, "a.yaml: top level: [1] is not of type 'object'"),
        ({"a": "extends: quick\nsedes: [1]\n"}, "a.yaml: unknown field 'sedes' at top level"),
        ({"a": "extend: quick\n"}, "a.yaml: unknown field 'extend' at top level; did you mean 'extends'?"),
        ({"a": "extends: [quick]\n"}, "a.yaml: extends: "),
        ({"a": "extends: quick\narms: []\n"}, "a.yaml: arms: [] should be non-empty"),
    ],
)
def test_what_cannot_be_extended_is_one_line(texts: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        grid.load(str(tmp_path / "a.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_content_hash_follows_content(tmp_path: Path) -> None:
    first = grid.load(_write(tmp_path)).content_hash
    assert grid.load(_write(tmp_path)).content_hash == first
    assert grid.load(_write(tmp_path, title="Other")).content_hash != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "unknown field 'sedes' at top level; did you mean 'seeds'?"),
        ({"seeds": [0.5]}, "seeds.0: 0.5 is not of type 'integer'"),
        ({"seeds": []}, "seeds: [] should be non-empty"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] has non-unique elements"),
        ({"arms": None}, "'arms' is a required property"),
        ({"arms": [{"methd": "grpo"}]}, "unknown field 'methd' at arms.0; did you mean 'method'?"),
        ({"arms": [{"method": "gropo"}]}, "unknown method 'gropo'; did you mean 'grpo'?"),
        ({"arms": [{"method": "grpo"}, {"method": "grpo"}]}, "'grpo' stands twice"),
        (
            {"arms": [{"method": "token_alp", "variant": "sigmo0"}]},
            "unknown variant 'sigmo0' without overrides; did you mean 'sigma0'?",
        ),
        (
            {"arms": [{"method": "grpo", "overrides": ["trainer.stpes=3"]}]},
            "unknown key 'trainer.stpes'; did you mean 'trainer.steps'?",
        ),
        (
            {"overrides": {"model": ["model.lora.rank=4"]}},
            "model.lora is null here: to set model.lora.rank, give all of it: model.lora={rank: …, alpha: …, targets",
        ),
        (
            {"overrides": {"train": ["trainer.samples=1"]}},
            "trainer.samples: Input should be greater than or equal to 2",
        ),
        ({"overrides": {"trian": []}}, "unknown field 'trian' at overrides; did you mean 'train'?"),
        ({"overrides": {"train": ["model.path=/mine"]}}, "the grid decides model.path itself"),
        ({"overrides": {"evaluate": ["evaluation.set=validation"]}}, "the grid decides evaluation.set itself"),
        ({"overrides": {"train": ["task.digits=1"]}}, "must hold for every job: put it under overrides.task"),
        ({"arms": [{"method": "grpo", "overrides": ["method=gspo"]}]}, "the grid decides method itself"),
        ({"arms": [{"method": "token_alp", "overrides": ["variant=sigma0"]}]}, "the grid decides variant itself"),
        (
            {"arms": [{"method": "token_alp", "variant": "deep", "overrides": ["method.perturbation.layers='2:9'"]}]},
            "outside the model's 3 layers",
        ),
        ({"task": "arithmetik"}, "unknown task 'arithmetik'; did you mean 'arithmetic'?"),
        ({"published": "single"}, "unknown published setting 'single'; did you mean 'single_turn'?"),
    ],
)
def test_faulty_grid_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        grid.load(_write(tmp_path, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_NAMES = [
    "'grpo'",
    "grpo ",
    "grpo\n",
    "../grpo",
    "..",
    "a/grpo",
    "",
    "g" * 101,
    "ｇrpo",
    "grpо",
    "-grpo",
    ".grpo",
    "grpo\x00",
    "$(grpo)",
    "{grpo}",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_a_name_wherever_it_comes_from(tmp_path: Path, name: str) -> None:
    """A raw text that Hydra would strip or parse never becomes a folder; the nearest choice is named."""
    places: list[dict[str, Any]] = [
        {"arms": [{"method": name}]},
        {"task": name},
        {"model": name},
        {"arms": [{"method": "grpo", "variant": name, "overrides": ["trainer.steps=3"]}]},
    ]
    for changes in places:
        with pytest.raises(UserError, match=r"is no name of a (method|task|model|variant)") as caught:
            grid.load(_write(tmp_path, **changes))
        assert len(str(caught.value)) < 700
        if "method" in str(changes) and "variant" not in str(changes) and 0 < len(name) < 12 and name != "..":
            assert "did you mean 'grpo'?" in str(caught.value), name
    if name:
        with pytest.raises(UserError, match="unknown grid"):
            grid.load(name)


@pytest.mark.parametrize("stem", ["my grid", "'quick'", "grid{seed}", "-x", "é", "g" * 101, "a$(touch x)"])
def test_a_grid_is_called_as_its_file(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    with pytest.raises(UserError, match="is no name"):
        grid.load(str(path))


def test_parts_that_are_short_make_no_long_arm(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no name of an arm"):
        grid.load(_write(tmp_path, arms=[{"method": "grpo", "variant": "v" * 99, "overrides": ["trainer.steps=3"]}]))


def test_a_seed_is_written_as_an_integer(tmp_path: Path) -> None:
    assert (
        grid.load(_write(tmp_path, seeds=[1.0]))
        .run_dir("results", "grpo", grid.load(_write(tmp_path, seeds=[1.0])).seeds[0])
        .name
        == "seed1"
    )


@pytest.mark.parametrize(
    "text",
    [
        b"title: \xe9",
        b"[" * 5000,
        b"".join(
            b"%c: &%c [%s]\n" % (97 + n, 97 + n, b",".join([b"*%c" % (96 + n) if n else b"x"] * 9)) for n in range(9)
        )
        + b"title: *i\n",
        b"title: &a [*a]",
        b"title: 1999-13-45",
        b"\x00",
        b"- 1",
        b"",
    ],
    ids=["Latin-1", "deep", "aliases", "loop", "date", "NUL", "list", "empty"],
)
def test_a_file_that_is_no_grid_is_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(UserError) as caught:
        grid.load(str(tmp_path / "mine.yaml"))
    assert len(str(caught.value)) < 700


def test_the_names_of_the_schema_are_those_of_the_configuration() -> None:
    """The pattern of the grid schema and alp.configuration.fields.Name accept the same texts."""
    import json
    import re

    from hypothesis import given, settings
    from hypothesis import strategies as st

    from alp.configuration.fields import is_name

    rule = json.loads(grid_file.SCHEMA.read_text(encoding="utf-8"))["$defs"]["name"]

    @settings(max_examples=300, deadline=None)
    @given(st.text("aZ09_.-\n /'", max_size=6) | st.text(max_size=4) | st.from_regex(rule["pattern"]))
    def same(text: str) -> None:
        assert is_name(text) == (re.search(rule["pattern"], text) is not None and len(text) <= rule["maxLength"])

    same()
