"""``alp check``: what two configurations make of the same batch, from the same weights."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from alp.cli import main
from alp.configuration import compose
from alp.diagnosis import check_updates
from alp.diagnosis.changes import ROUNDING, Difference, Update, difference, layer_of
from alp.rollout.episodes import Trajectory
from alp.training.scoring import sample
from tests.conftest import TINY_MODEL, TINY_TASK, TINY_TRAINER

TINY = [*TINY_TASK, *TINY_TRAINER, *TINY_MODEL, "rollout.dtype=float32"]
TRL = {
    "trl": "GRPOTrainer",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "num_iterations": 2,
    "learning_rate": 1e-3,
}


def _files(folder: Path, first: dict[str, object], second: dict[str, object]) -> list[str]:
    for name, plain in (("first.yaml", first), ("second.yaml", second)):
        (folder / name).write_text(yaml.safe_dump(plain), encoding="utf-8")
    return [str(folder / "first.yaml"), "against", str(folder / "second.yaml")]


def test_an_option_that_acts_and_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no model at hand, on the embedded one with random weights; nothing is written."""
    monkeypatch.chdir(tmp_path)
    hot = [*(word for word in TINY if not word.startswith("trainer.lr")), "trainer.lr=1e-2"]
    assert main(["check", *hot, "against", "method.clip_high=0.9"]) == 0
    verdict, batch, *lines = capsys.readouterr().out.splitlines()
    assert verdict.startswith("active: method.clip_high (0.28 → 0.9) changes loss or gradient in ")
    assert not verdict.endswith("in 4 of 4 updates")  # the first of a rollout batch is on-policy: no clip acts
    assert "embedded model with random weights" in batch
    assert any(line.lstrip().startswith("layers: ") for line in lines)

    assert main(["check", *hot, "against", "trainer.validate_every=1"]) == 1
    assert capsys.readouterr().out.startswith("no difference: trainer.validate_every (2 → 1) changes neither")
    assert main(["check", *hot, "against", "trainer.weight_decay=0.5"]) == 0
    assert "changes the optimizer's step alone" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_another_engine_is_another_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *TINY, "against", "rollout.weight_noise=0.5"]) == 0
    assert "sequences hold other tokens" in capsys.readouterr().out


def test_differences_are_lengths_and_counts() -> None:
    here = {"model.layers.0.w.weight": torch.tensor([3.0, 0.0]), "lm_head.weight": torch.tensor([4.0])}
    there = {"model.layers.0.w.weight": torch.tensor([0.0, 0.0]), "lm_head.weight": torch.tensor([4.0])}
    pushes = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    moved = torch.tensor([[1.0, 0.0], [0.5, 0.1]])
    found = difference(Update(1.0, here, here, pushes), Update(0.5, there, here, moved))
    assert found.gradient == pytest.approx(3 / 5)
    assert found.cosine == pytest.approx(16 / 20)
    assert found.layers == {"layer 0": 1.0, "lm_head": 0.0}
    assert (found.step, found.loss) == (0, 0.5)
    tokens = found.tokens
    assert tokens is not None
    assert (tokens.hit, tokens.total, tokens.sequences, tokens.worst) == (1, 3, 1, (1, 1))
    only = difference(Update(0.0, {}, {}, None), Update(0.0, {"noise": torch.ones(1)}, {}, None))
    assert (only.gradient, only.layers, only.tokens) == (1.0, {"noise": 1.0}, None)
    assert difference(Update(0.0, {}, {}), Update(0.0, {}, {})).size == 0
    assert layer_of("transformer.h.11.attn.c_proj.bias") == "layer 11"


def test_every_preset_is_an_update_of_its_own(base_model: Path, tmp_path: Path) -> None:
    """On rollouts of an engine that is off by all that a correction looks for, under weights that lie far from those
    that sampled: no two presets update alike."""
    words = [
        *TINY_TASK,
        *(word for word in TINY_TRAINER if not word.startswith(("trainer.lr", "trainer.updates"))),
        *("trainer.lr=2e-2", "trainer.updates_per_batch=4", "rollout.dtype=float32"),
        f"model.path='{base_model}'",
    ]
    names = ["grpo", *(name for name in compose.choices("method") if name != "grpo")]
    near = {"grpo": ["method.dual_clip=1.5"]}  # its ceiling of 10, all that it has over DAPO, is out of reach here
    configs = {name: compose.load("train", [*words, f"method={name}", *near.get(name, [])]) for name in names}
    jobs = {}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        jobs[name] = check_updates.Job(config, tmp_path / name, scratch=tmp_path / name)
    leader = jobs["grpo"]
    leader.start()
    sampled = [_off(one, row) for row, one in enumerate(sample(leader, 1))]
    batches = {name: check_updates.scored(job, sampled, 1) for name, job in jobs.items()}
    _stir(leader)
    made: dict[str, list[Update]] = {name: [] for name in names}
    for index in range(4):
        for name in reversed(names):  # the leader steps last
            check_updates.follow(leader, jobs[name])
            made[name].append(
                check_updates.updated(jobs[name], check_updates.part(jobs[name], batches[name], index), index)
            )
    alike = [
        (one, two)
        for one, two in itertools.combinations(names, 2)
        if max(_own(first, second) for first, second in zip(made[one], made[two], strict=True)) <= ROUNDING
    ]
    assert not alike


def _off(one: Trajectory, row: int) -> Trajectory:
    """What an engine would say that is off: by little in some sequences and by much in others, to one side or to both,
    and at one token by more than a veto's one in ten thousand; with rewards of both kinds in every group."""
    size = (0.0, 0.002, 0.05, 0.16, 0.5, 2.0)[row % 6]
    side = (-1, 1, 0)[row % 4 % 3]
    gaps = [size * (side or (-1) ** place) for place in range(len(one.rollout_log_probs))]
    if size == 2.0:
        gaps[0] = 10.0
    off = [value + gap for value, gap in zip(one.rollout_log_probs, gaps, strict=True)]
    return replace(one, rollout_log_probs=off, reward=float(7 * row % 5 > 2))


@torch.no_grad()
def _stir(job: check_updates.Job) -> None:
    """Move the weights by as much as their size."""
    random = torch.Generator().manual_seed(0)
    for weight in job.model.parameters():
        weight.add_(weight.std(correction=0) * torch.randn(weight.shape, generator=random))


def _own(first: Update, second: Update) -> float:
    found: Difference = difference(first, second)
    return found.own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "two configurations with the word against between them"),
        (["method=grpo", "agianst", "method=gspo"], "('agianst' is not it)"),
        (["method=grpo", "against"], "nothing behind against"),
        (["method=grpo", "against", "method.clip_low=0.2"], "both configurations are the same"),
        (["method=grpo", "against", "method=gspoo"], "check: unknown method 'gspoo'; did you mean 'gspo'?"),
        (["method=grpo", "against", "second.yaml"], "'second.yaml' is a file: give two of them"),
        (["first.yaml", "against", "second.yaml"], "check: first.yaml cannot be read"),
        (["method=grpo", "against", "model=calculator_tiny"], "makes another model"),
        (["--cfg", "job"], "unknown option '--cfg'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.rstrip().splitlines()[-1].startswith("alp: error: check: ")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (TRL, {key: value for key, value in TRL.items() if key != "trl"}, "only one of both files has trl"),
        ({**TRL, "trl": "DPOTrainer"}, TRL, "'DPOTrainer' is no trainer that is known; choose from GRPOTrainer"),
        (TRL, {**TRL, "top_k": 3}, "top_k is not tried here"),
        (TRL, TRL, "both configurations are the same"),
    ],
)
def test_trl_pairs_that_cannot_be_compared(
    first: dict[str, object],
    second: dict[str, object],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", *_files(tmp_path, first, second)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.xdist_group("trl")
def test_trl_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The clip acts from the second pass on; an importance-sampling cap without an engine does not act at all."""
    pytest.importorskip("trl", reason="install the extra 'parity'")
    assert main(["check", *_files(tmp_path, {**TRL, "epsilon": 0.02}, {**TRL, "epsilon": 0.2})]) == 0
    assert "changes loss or gradient in 2 of 4 updates" in capsys.readouterr().out
    cap = {"vllm_importance_sampling_clip_max": 1.5}
    assert main(["check", *_files(tmp_path, TRL, {**TRL, **cap})]) == 1
    assert "no difference" in capsys.readouterr().out
    used = {**TRL, "use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"}
    assert main(["check", *_files(tmp_path, used, {**used, **cap})]) == 0
    capsys.readouterr()
    assert main(["check", *_files(tmp_path, TRL, {**TRL, "epsilonn": 1})]) == 2
    assert "did you mean 'epsilon'?" in capsys.readouterr().err


def test_trl_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alp.diagnosis.check_trl.importlib.util.find_spec", lambda name: None)
    assert main(["check", *_files(tmp_path, TRL, {**TRL, "epsilon": 0.1})]) == 2
    assert "TRL is not installed here" in capsys.readouterr().err
