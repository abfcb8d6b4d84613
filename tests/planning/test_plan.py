"""``alp plan`` against counts made by hand from the grid files, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from alp.configuration import compose
from alp.configuration import grid as grids
from alp.configuration.plan_schema import PlanConfig
from alp.errors import UserError
from alp.planning import work
from alp.planning.plan import make, plan
from alp.planning.size import GIB, Size, size_of
from alp.planning.work import Lengths

ROOT = Path(__file__).resolve().parents[2]
GRIDS = sorted(path.stem for path in (ROOT / "configs" / "grid").glob("*.yaml"))


def planned(*words: str, results: Path | None = None) -> PlanConfig:
    place = [] if results is None else [f"results='{results}'"]
    config: PlanConfig = compose.load("plan", [*words, *place])
    return config


def job(plan_: Any, stage: str, arm: str | None) -> Any:
    (found,) = (one for one in plan_.jobs if (one.stage, one.arm) == (stage, arm))
    return found


def test_the_paper_s_grid_by_hand(tmp_path: Path) -> None:
    """512 prompts x 8 samples, 16 updates, 100 steps, validation of 200 every 20; 1507 problems x 33 answers."""
    made = make(planned("grid=single_turn", results=tmp_path))
    assert sum(one.count for one in made.jobs) == 1 + 1 + 2 * 8 * 3
    training = job(made, "train", "seq_alp").work
    assert training.samples == 100 * 512 * 8 + 5 * 200
    assert training.tokens == (100 * 512 * 8 + 5 * 200) * 2048
    assert training.updates == 1600
    assert job(made, "evaluate", "seq_alp").work.samples == (500 + 272 + 675 + 30 + 30) * 33
    attention, mlp = 2 * 1536 * 1536 + 2 * 1536 * 256, 3 * 1536 * 8960
    parameters = 28 * (attention + mlp) + 151936 * 1536
    assert made.size.parameters == parameters
    length = 256 + 2048
    forward = 2 * parameters + 2 * 28 * 1536 * length
    assert training.flops["score"] == pytest.approx(100 * 2 * 4096 * length * forward)  # π_old and the reference
    assert training.flops["update"] == pytest.approx(100 * 4 * 4096 * length * forward)  # checkpointed: one more pass
    prompts = 100 * 512 * 256 + 5 * 200 * 256
    assert training.flops["sample"] == pytest.approx((prompts + training.tokens) * forward)
    hours = (training.flops["sample"] / 0.04 + (training.flops["score"] + training.flops["update"]) / 0.4) / 989e12
    assert job(made, "train", "grpo").seconds == pytest.approx(hours)
    assert [one.name for one in made.critical] == ["fetch", "train grpo", "evaluate grpo"]
    assert all(one.fits for one in made.jobs)


def test_seven_billion_parameters_trained_whole_fit_on_no_one_card(tmp_path: Path) -> None:
    """Weights, gradients and moments in float32 and the engine's copy: 18 bytes a parameter; an adapter takes less."""
    text = yaml.safe_load((ROOT / "configs" / "grid" / "single_turn.yaml").read_text(encoding="utf-8"))
    text["model"] = "qwen2_5_7b"
    path = tmp_path / "seven.yaml"
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    said = plan(planned(f"grid='{path}'", results=tmp_path))
    assert "! Does not fit on one h100 (80 GiB): train grpo, seq_bypass, 6 more: " in said
    made = make(planned(f"grid='{path}'", results=tmp_path))
    assert made.size.parameters == pytest.approx(7.6e9, rel=0.01)
    assert job(made, "train", "grpo").work.memory > 16 * made.size.parameters
    text["overrides"] |= {"model": ["model.lora={rank: 16, alpha: 32}"]}
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    adapted = make(planned(f"grid='{path}'", results=tmp_path))
    assert job(adapted, "train", "grpo").work.memory < 0.5 * job(made, "train", "grpo").work.memory
    assert job(adapted, "train", "grpo").fits


def test_seven_billion_parameters_fit_on_eight_cards(tmp_path: Path) -> None:
    """The multi-turn grid: its states in shards are an eighth, an engine's copy and activations are each device's."""
    text = yaml.safe_load((ROOT / "configs" / "grid" / "multi_turn.yaml").read_text(encoding="utf-8"))
    made = {}
    for devices in (1, 8):
        text["overrides"]["train"] = [*text["overrides"]["train"], f"trainer.devices={devices}"]
        path = tmp_path / f"on_{devices}.yaml"
        path.write_text(yaml.safe_dump(text), encoding="utf-8")
        made[devices] = make(planned(f"grid='{path}'", results=tmp_path))
    one, eight = (job(made[devices], "train", "seq_alp") for devices in (1, 8))
    assert not one.fits
    assert eight.fits
    states = made[1].size.parameters * (4 + 8 + 4)  # weights, moments, gradients
    assert states / 8 < eight.work.memory < 80 * GIB
    assert eight.work.flops == one.work.flops
    assert made[8].as_json()["critical_hours"] < made[1].as_json()["critical_hours"]


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_can_be_planned_before_anything_is_there(name: str, tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    said = plan(planned(f"grid={name}", f"output='{output}'", results=tmp_path))
    kept = json.loads(output.read_text(encoding="utf-8"))
    grid = grids.load(name)
    assert sum(one["jobs"] for one in kept["jobs"]) == 2 + 2 * len(grid.arms) * len(grid.seeds)
    assert kept["hours"] == pytest.approx(sum(one["jobs"] * one["hours"] for one in kept["jobs"]))
    assert kept["critical_hours"] <= kept["hours"]
    assert all(one["memory_gib"] > 0 and math.isfinite(one["hours"]) for one in kept["jobs"])
    assert ("Does not fit" in said) == any(not one["fits"] for one in kept["jobs"])
    assert "Critical path" in said


def test_runs_of_the_grid_are_believed_before_assumptions(tmp_path: Path) -> None:
    """Two runs of an arm, of 2 s and 4 s a step; an evaluation by the speed of all rollouts. A damaged file is said."""
    grid = grids.load("smoke")
    for seed, seconds in ((0, 2.0), (1, 4.0)):
        folder = grid.run_dir(tmp_path, "grpo", seed)
        folder.mkdir(parents=True)
        line = {"step": 1, "seconds/rollout": seconds / 2, "seconds/update": seconds / 2, "response_tokens": 300}
        (folder / "timings.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    made = make(planned("grid=smoke", results=tmp_path))
    training, other = job(made, "train", "grpo"), job(made, "train", "seq_alp")
    assert (training.measured, training.seconds) == (True, 3 * 3.0)
    assert not other.measured
    evaluated = job(made, "evaluate", "seq_alp")
    assert evaluated.measured
    assert evaluated.seconds == pytest.approx(evaluated.work.tokens * 3.0 / 600)
    path = grid.run_dir(tmp_path, "grpo", 0) / "timings.jsonl"
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no timings"):
        make(planned("grid=smoke", results=tmp_path))


def test_a_model_that_is_here_is_read_from_its_own_file(tmp_path: Path) -> None:
    config = compose.load("train", ["model=smollm2_135m"]).model
    shapes = planned().shapes
    named = size_of(config, shapes, tmp_path, taught=False)
    own = {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(own), encoding="utf-8")
    assert size_of(config, {}, tmp_path, taught=False) == named
    assert named.parameters == pytest.approx(134.5e6, rel=0.01)
    (tmp_path / "config.json").write_text(json.dumps(own | {"hidden_size": None}), encoding="utf-8")
    with pytest.raises(UserError, match="does not say the model's sizes"):
        size_of(config, shapes, tmp_path, taught=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("device=h10",), "did you mean 'h100'"),
        (("grid=single_turn", "problems={math500: 500}"), "how many problems the set 'minerva_math' has"),
        (("grid=smol", "shapes={}"), "how many tokens the model smollm2_135m knows"),
        (("fill=0",), "fill"),
        (("grid=quik",), "quick"),
        (("devices={}",), "no device 'cpu_core'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        plan(planned(*words, results=tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "mine\n", "{}", '{"grid": "quick"}', "[1]"])
def test_a_plan_overwrites_plans_alone(content: str | None, tmp_path: Path) -> None:
    """A folder, and any file of somebody else's, stay as they are."""
    path = tmp_path / "plan.json"
    words = ("grid=quick", f"output='{path}'")
    plan(planned(*words, results=tmp_path))
    plan(planned(*words, results=tmp_path))
    path.unlink()
    path.mkdir() if content is None else path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="is no plan"):
        plan(planned(*words, results=tmp_path))
    assert path.is_dir() if content is None else path.read_text(encoding="utf-8") == content


@given(st.integers(1, 400), st.integers(0, 60))
def test_validations_are_those_of_the_loop(steps: int, every: int) -> None:
    asked = [step for step in range(1, steps + 1) if every and (step % every == 0 or step == steps)]
    assert work.validations(steps, every) == len(asked)


SIZES = st.builds(
    lambda layers, heads, inner, vocabulary, tied: Size(
        layers, 64 * heads, inner, 64 * heads, 64 * heads, vocabulary, tied
    ),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 20000),
    st.integers(2, 200_000),
    st.booleans(),
)


@settings(deadline=None)  # composing a configuration takes its time on a busy machine
@given(SIZES, st.integers(1, 3), st.floats(0.1, 1.0))
def test_more_work_never_costs_less(size: Size, times: int, fill: float) -> None:
    words = ["trainer.steps=4", "trainer.validate_every=2"]
    config = compose.load("train", words)
    longer = compose.load("train", [*words, f"trainer.samples={8 * times}"])
    first, second = (work.training(one, size, Lengths(8, fill)) for one in (config, longer))
    assert second.all_flops >= first.all_flops
    assert second.memory >= first.memory
    assert second.samples - first.samples == 4 * 48 * 8 * (times - 1)
    assert first.memory >= 16 * size.parameters
    assert size.forward_flops(100) > 2 * size.in_layers
    assert size.cache_bytes(1) * 2**10 / GIB > 0
