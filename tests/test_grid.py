"""Grid files: what is accepted, and one line for what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from alp import config, grid
from alp.errors import UserError

GOOD: dict[str, Any] = {
    "title": "T",
    "description": "D",
    "task": "arithmetic",
    "model": "arithmetic_tiny",
    "seeds": [0, 1],
    "arms": [{"method": "grpo"}, {"method": "token_alp", "variant": "small", "overrides": ["method.perturbation.std=0.001"]}],
}


def _write(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (GOOD | changes).items() if value is not None}))
    return str(path)


@pytest.mark.parametrize("name", grid.names())
def test_shipped_grids_compose(name: str) -> None:
    loaded = grid.load(name)
    for arm in loaded.arms:
        for verb in ("train", "evaluate"):
            config.load(verb, loaded.overrides(verb, "results", arm=arm.name, seed=loaded.seeds[-1]))


def test_quick_is_the_grid_of_the_readme() -> None:
    arms = {arm.name for arm in grid.load("quick").arms}
    assert arms == {"grpo", "gspo", "seq_bypass", "token_mis", "seq_mis", "token_alp", "seq_alp", "token_alp-sigma0"}
    assert len(grid.load("quick").seeds) == 3


def test_folders_and_labels(tmp_path: Path) -> None:
    loaded = grid.load(_write(tmp_path))
    assert [arm.name for arm in loaded.arms] == ["grpo", "token_alp-small"]
    assert loaded.run_dir("results", "grpo", 1) == Path("results/mine/arithmetic/arithmetic_tiny/grpo/seed1")
    words = loaded.overrides("train", "results", arm="token_alp-small", seed=1)
    job = config.load("train", words)
    assert (job.method.perturbation.std, job.trainer.seed, job.run.arm, job.run.grid) == (0.001, 1, "token_alp-small", "mine")


def test_a_model_of_one_s_own_replaces_the_embedded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    configs = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, configs)
    text = (configs / "model" / "arithmetic_tiny.yaml").read_text(encoding="utf-8")
    mine = text.replace("path: null", "path: /models/mine").replace("name: arithmetic_tiny", "name: mine")
    (configs / "model" / "mine.yaml").write_text(mine)
    monkeypatch.setattr(config, "CONFIGS", configs)
    config._selected.cache_clear()
    loaded = grid.load(_write(tmp_path, model="mine"))
    assert loaded.model_dir("results") == Path("/models/mine")
    for verb, arm in (("train", "grpo"), ("evaluate", None)):
        assert config.load(verb, loaded.overrides(verb, "results", arm=arm)).model.path == "/models/mine"
    config._selected.cache_clear()


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
        ({"arms": [{"method": "token_alp", "variant": "sigmo0"}]}, "unknown variant 'sigmo0' without overrides; did you mean 'sigma0'?"),
        ({"arms": [{"method": "grpo", "overrides": ["trainer.stpes=3"]}]}, "unknown key 'trainer.stpes'; did you mean 'trainer.steps'?"),
        ({"overrides": {"train": ["trainer.samples=1"]}}, "trainer.samples: Input should be greater than or equal to 2"),
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
