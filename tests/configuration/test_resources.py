"""What jobs ask of a scheduler: two of the embedded model beside each other, a GPU where one is needed."""

from __future__ import annotations

import pytest

from alp.configuration import compose, grid, grid_file, resources


@pytest.mark.parametrize("name", grid_file.names())
def test_every_job_of_the_shipped_grids_states_what_it_needs(name: str) -> None:
    asked = grid.load(name)
    for verb in ("prepare", "train", "evaluate"):
        config = compose.load(verb, asked.overrides(verb, "results", arm=asked.arms[0].name, seed=0))
        assert resources.threads(verb, config) >= 1
        assert resources.memory_mb(verb, config, 2) > resources.memory_mb(verb, config) >= 2000
        assert resources.minutes(verb, 2) > resources.minutes(verb) > 0


@pytest.mark.parametrize(
    ("verb", "words", "needed"),
    [
        ("train", [], 0),
        ("train", ["trainer.device=cuda"], 1),
        ("train", ["model=qwen2_5_7b"], 1),
        ("train", ["model=qwen2_5_7b", "trainer.device=cpu"], 0),
        ("train", ["rollout=vllm"], 0),
        ("train", ["rollout=vllm", "rollout.quantization=fp8"], 1),
        ("train", ["rollout=vllm", "rollout.tensor_parallel=2", "trainer.device=cuda"], 2),
        ("train", ["model=qwen2_5_7b", "trainer.devices=8"], 8),
        ("evaluate", ["evaluation.device=cuda"], 1),
        ("evaluate", ["model=qwen3_4b"], 1),
        ("prepare", [], 0),
    ],
)
def test_gpus(verb: str, words: list[str], needed: int) -> None:
    assert resources.gpus(verb, compose.load(verb, words)) == needed


def test_threads_are_those_of_the_configuration() -> None:
    assert resources.threads("train", compose.load("train", [])) == 1
    assert resources.threads("train", compose.load("train", ["rollout=vllm", "rollout.threads=4"])) == 4
    assert resources.threads("train", compose.load("train", ["trainer.devices=2", "trainer.threads=3"])) == 6
    assert resources.threads("pretrain", compose.load("pretrain", ["pretrain.threads=3"])) == 3
    assert resources.threads("evaluate", compose.load("evaluate", ["evaluation.threads=2"])) == 2


def test_of_several_machines_each_gives_its_part() -> None:
    sixteen = compose.load("train", ["model=qwen2_5_7b", "trainer.devices=16", "trainer.threads=3"])
    nodes = resources.nodes(sixteen, 8)
    assert (nodes, resources.nodes(sixteen, None)) == (2, 1)
    assert resources.threads("train", sixteen, nodes) == 24
    eight = compose.load("train", ["model=qwen2_5_7b", "trainer.devices=8"])
    assert resources.memory_mb("train", sixteen, 1, nodes) == resources.memory_mb("train", eight)
    assert resources.gpus("train", sixteen) == 16


def test_memory_grows_with_the_model() -> None:
    small, large = (compose.load("train", [f"model={name}"]) for name in ("arithmetic_tiny", "qwen2_5_7b"))
    assert resources.memory_mb("train", small) < 2100
    assert 150_000 < resources.memory_mb("train", large) < 400_000
    eight = compose.load("train", ["model=qwen2_5_7b", "trainer.devices=8"])
    assert resources.memory_mb("train", large) < resources.memory_mb("train", eight) < 1_000_000


def test_a_job_that_is_planned_longer_gets_more_time() -> None:
    usual = resources.minutes("evaluate")
    assert resources.minutes("evaluate", planned=usual / 2) == usual
    assert resources.minutes("evaluate", planned=usual) == usual * 3 // 2
    assert resources.minutes("evaluate", 2, planned=usual) == usual * 3
