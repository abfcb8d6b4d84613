"""Training with a tool between turns, end to end: log-probs that are recomputed, gradients that observations do not
touch, void trajectories, and exact continuation in the middle of a batch."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alp.configuration import compose
from alp.errors import Interrupted
from alp.evaluation.evaluate import evaluate
from alp.policy.objective import group_advantages
from alp.rollout import engine as engines
from alp.tasks.environment import CODE, Environment, Step, Turn, first
from alp.tasks.task import Problem
from alp.training.batch import Batch, collate
from alp.training.forward import token_log_probs
from alp.training.job import Job
from alp.training.loop import run, step, train
from alp.training.pretrain import pretrain
from alp.training.scoring import padded, sample, score

TASK = ["task=calculator", "task.digits=1", "task.terms=2", "task.train=40", "task.validation=6", "task.test=8"]
MODEL = ["model=calculator_tiny", "model.hidden=64", "model.heads=2", "model.intermediate=64", "model.layers=2"]
TRAINER = [
    *("trainer.steps=3", "trainer.prompts=4", "trainer.samples=6", "trainer.updates_per_batch=2", "trainer.lr=1e-3"),
    *("trainer.validate_every=2", "trainer.validation_samples=1", "trainer.probe_every=2"),
    *("trainer.checkpoint_every=1", "trainer.device=cpu", "trainer.threads=1"),
]
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bubblewrap here: make sandbox")
RECORDS = ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "model/model.safetensors")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Taught long enough to ask the tool now and then."""
    folder = tmp_path_factory.mktemp("calculator")
    words = ["pretrain.steps=120", "pretrain.batch=48", "pretrain.worked=0.5"]
    pretrain(compose.load("pretrain", [*TASK, *MODEL, *words, f"run.dir='{folder}'"]))
    return folder / "model"


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Make:
    """A tiny job; words come after the defaults."""

    def made(*words: str, folder: str = "run") -> Any:
        where = [f"model.path='{base}'", f"run.dir='{tmp_path / folder}'", "run.tracking=null"]
        return compose.load("train", [*TASK, *where, *TRAINER, *words])

    return made


class Abacus(Environment):
    """The calculator's rules without a sandbox: sums of digits, after a delay; ``calls`` lists what it was asked."""

    before, after = "\n```output\n", "\n```\n"

    def __init__(self, delay: Callable[[], float] = float) -> None:
        self.turns, self.context, self.observation_tokens, self.workers = 3, 80, 8, 3
        self.leave_out_void, self.forms, self.delay = True, (CODE,), delay
        self.calls: list[str] = []

    def step(self, problem: Problem, turns: Sequence[Turn]) -> Step:
        self.calls.append(problem.id)
        time.sleep(self.delay())
        turn = turns[-1]
        if (found := first(turn.text, self.forms)) is not None:
            program = found.content.removeprefix("print(").removesuffix(")")
            numbers = program.replace("-", "+-").split("+") if set(program) <= set("0123456789+-") else []
            known = bool(numbers) and all(number.lstrip("-").isdigit() for number in numbers)
            return Step(observation=str(sum(map(int, numbers)))[:4] if known else "error", valid=known)
        return Step(answer=turn.text if turn.ended and "#" in turn.text else None)


class Strict(Abacus):
    """Takes no even number for an answer: such a turn is void."""

    def step(self, problem: Problem, turns: Sequence[Turn]) -> Step:
        step = super().step(problem, turns)
        return Step() if step.answer is not None and step.answer[-1:] in set("02468") else step


def with_abacus(config: Any, environment: Environment | None = None) -> Job:
    job = Job(config, Path(config.run.dir))
    job.task.environment = environment or Abacus()  # type: ignore[attr-defined]
    Path(config.run.dir).mkdir(parents=True, exist_ok=True)
    return job


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in RECORDS}


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_recomputed_log_probs_are_the_engine_s_on_every_token_the_model_wrote(make: Make) -> None:
    job = with_abacus(make("rollout.dtype=float32"))
    job.start()
    trajectories = sample(job, 1)
    assert any(0 in item.response_mask for item in trajectories), "some must ask"
    whole = padded(job, [replace(item, left_out=False) for item in trajectories], 1)
    with torch.no_grad():
        log_probs, _ = token_log_probs(job.model, whole, 1.0)
    mask = whole.response_mask
    assert int(mask.sum()) == sum(item.length for item in trajectories)
    torch.testing.assert_close(log_probs[mask], whole.rollout_log_probs[mask], atol=2e-5, rtol=0)
    job.close()


def test_observations_change_no_gradient_but_through_context(make: Make) -> None:
    """Other log-probs and advantages under the mask: the same gradient. Other observations: another one."""
    job = with_abacus(make("method=token_bypass"))
    job.start()
    batch, _ = score(job, padded(job, sample(job, 1), 1))
    outside = ~batch.response_mask & batch.attention_mask.bool()
    observed = outside & (batch.turn_ids >= 0) & (torch.arange(outside.shape[1]) > 8)
    assert observed.any()

    def gradient(changed: Batch) -> torch.Tensor:
        job.model.zero_grad()
        from alp.policy.method import LossInputs

        log_probs, _ = token_log_probs(job.model, changed, 1.0)
        inputs = LossInputs(
            log_probs=log_probs,
            rollout_log_probs=changed.rollout_log_probs,
            response_mask=changed.response_mask,
            advantages=torch.linspace(-1, 1, len(changed)),
            turn_ids=changed.turn_ids,
        )
        job.config.method.loss(inputs).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in job.model.parameters()])

    expected = gradient(batch)
    noise = torch.where(batch.response_mask, batch.rollout_log_probs, torch.full_like(batch.rollout_log_probs, -7.0))
    assert torch.equal(gradient(batch.with_(rollout_log_probs=noise)), expected)
    digits = job.tokenizer.convert_tokens_to_ids(list("0123456789"))
    shown = observed & torch.isin(batch.input_ids, torch.tensor(digits))
    other = torch.where(shown, torch.full_like(batch.input_ids, digits[7]), batch.input_ids)
    assert not torch.equal(other, batch.input_ids)
    assert not torch.allclose(gradient(batch.with_(input_ids=other)), expected)
    job.close()


def test_a_void_trajectory_leaves_the_loss_and_stays_in_its_group(make: Make) -> None:
    job = with_abacus(make(), Strict())
    job.start()
    trajectories = sample(job, 1)
    void = [place for place, item in enumerate(trajectories) if item.left_out]
    assert void
    batch, _ = score(job, padded(job, trajectories, 1))
    assert not batch.response_mask[void].any()
    assert not batch.loss_mask[void].any()
    kept = [place for place in range(len(trajectories)) if place not in void]
    assert batch.response_mask[kept].any(-1).all()
    rewards = torch.tensor([item.reward for item in trajectories], dtype=torch.float64)
    groups = torch.tensor([item.group for item in trajectories])
    torch.testing.assert_close(batch.advantages.double(), group_advantages(rewards, groups).float().double())
    job.close()


def test_trajectories_on_record_tell_the_tool_s_tokens_from_the_model_s(make: Make) -> None:
    """What a tool said is marked so and has no log-ratio; a void trajectory is out of the loss, and its turns are
    still told apart."""
    job = with_abacus(make("method=token_bypass", "method.level=turn"), Strict())
    job.start()
    trajectories = {(item.group, place % 6): item for place, item in enumerate(sample(job, 2))}
    step(job, 2)
    job.close()
    found = lines(job.run_dir, "trajectories.jsonl")
    last = max(group for group, _ in trajectories)
    assert [line["sample"] for line in found] == [0, 1, 0, 1]
    for line, key in zip(found, [(0, 0), (0, 1), (last, 0), (last, 1)], strict=True):
        item = trajectories[key]
        assert (line["token_ids"], line["turn_ids"]) == (item.response_ids, item.turn_ids)
        assert "".join(line["text"]) == job.tokenizer.decode(item.response_ids)
        assert [mark != "tool" for mark in line["marks"]] == [bool(one) for one in item.response_mask]
        assert line["left_out"] == item.left_out == ("left_out" in line["marks"])
        counted = [bool(one) and not item.left_out for one in item.response_mask]
        assert [value is not None for value in line["log_ratio"]] == counted
        assert len(line["level_log_ratio"]) == (0 if item.left_out else item.turn_ids[-1] + 1)
        sums = [
            sum(value for value, at in zip(line["log_ratio"], item.turn_ids, strict=True) if value and at <= turn)
            for turn in range(len(line["level_log_ratio"]))
        ]
        assert line["level_log_ratio"] == pytest.approx(sums, abs=1e-5)
    assert {mark for line in found for mark in line["marks"]} >= {"loss", "tool"}


def test_levels_turn_and_prefix_see_the_turns(make: Make) -> None:
    """A two-turn row by hand: log-ratios at level turn are summed to the end of a token's turn."""
    job = with_abacus(make())
    job.start()
    trajectories = [item for item in sample(job, 1) if item.tools is not None and item.tools.turns > 1]
    batch = collate(trajectories[:1], pad_token_id=0, first_sequence=0, device=torch.device("cpu"))
    from alp.policy.ratio import log_ratio

    numerator = torch.randn(batch.input_ids.shape, generator=torch.Generator().manual_seed(0)).double() * 0.1 - 1
    zeros = torch.zeros_like(numerator)
    mask = batch.response_mask[0]
    for level in ("turn", "prefix"):
        found = log_ratio(numerator, zeros, batch.response_mask, level=level, turn_ids=batch.turn_ids)[0]
        for place in mask.nonzero().flatten().tolist():
            turn = int(batch.turn_ids[0, place])
            inside = [
                at
                for at in mask.nonzero().flatten().tolist()
                if (int(batch.turn_ids[0, at]) <= turn if level == "turn" else at <= place)
            ]
            assert float(found[place]) == pytest.approx(float(numerator[0, inside].sum()))
    job.close()


@pytest.mark.parametrize(
    "words",
    [["seq_alp"], ["token_mis"], ["token_bypass", "method.level=turn"], ["token_bypass", "method.level=prefix"]],
    ids=lambda words: "-".join(words),
)
def test_figures_of_turns_are_logged_and_lengths_are_the_model_s(make: Make, words: list[str]) -> None:
    config = make(f"method={words[0]}", *words[1:])
    job = with_abacus(config)
    with job.stop:
        run(job)
    for line in lines(job.run_dir)[1:]:
        assert 0 < line["tools/use_rate"] <= 1
        assert 0 <= line["tools/valid_rate"] <= 1
        assert 1 <= line["tools/turns"] <= 3
        assert 0 <= line["tools/void_rate"] < 1
        assert line["response/length"] < 3 * 24
    active = json.loads((job.run_dir / "active.json").read_text(encoding="utf-8"))
    assert active["tools"]["turns"] == 3
    job.close()


def test_random_delays_give_the_same_bytes(make: Make) -> None:
    chance = random.Random(5)
    found = []
    for name, delay in (("calm", float), ("late", lambda: chance.random() * 0.01)):
        job = with_abacus(make(folder=name), Abacus(delay))
        with job.stop:
            run(job)
        job.close()
        found.append(digests(job.run_dir))
    assert found[0] == found[1]


class Asked(Exception):
    """Ends the process between two turns, as a kill would."""


@pytest.mark.parametrize("how", ["signal", "kill"])
@pytest.mark.parametrize("call", [2, 4])
def test_stopped_in_the_middle_of_a_batch_and_continued_gives_the_same_bytes(make: Make, how: str, call: int) -> None:
    """Between two generations of the second step. A signal keeps the turns that are there: the tool is asked for none
    of them again; after a kill the whole batch is played again."""
    whole = with_abacus(make("method=seq_alp", folder="whole"))
    with whole.stop:
        run(whole)
    whole.close()
    config = make("method=seq_alp", folder="broken")
    job = with_abacus(config)
    calls = 0
    generate = job.engine.generate

    def counted(requests: list[engines.Request], sampling: engines.Sampling) -> list[engines.Completion]:
        nonlocal calls
        second_step = bool(requests) and requests[0].key[0] == engines.Purpose.TRAINING and requests[0].key[2] == 2
        calls += second_step
        if second_step and calls == call:
            if how == "kill":
                raise Asked
            job.stop.signal = signal.SIGTERM.name
        return generate(requests, sampling)

    job.engine.generate = counted  # type: ignore[method-assign]
    with pytest.raises(Asked if how == "kill" else Interrupted), job.stop:
        run(job)
    asked_before = list(job.task.environment.calls)
    job.close()
    again = with_abacus(config)
    with again.stop:
        run(again)
    again.close()
    assert digests(again.run_dir) == digests(whole.run_dir)
    if how == "signal":
        # What the whole job asked, once each: the first step and the validation before it are not played again.
        assert sorted(asked_before + again.task.environment.calls) >= sorted(whole.task.environment.calls)
        kept = len(asked_before) + len(again.task.environment.calls) - len(whole.task.environment.calls)
        assert kept == 0, "what was said before the signal was asked again"


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bubblewrap here: make sandbox")
def test_the_whole_way_with_the_sandbox(make: Make, base: Path, tmp_path: Path) -> None:
    """Train, killed in between, and evaluate: the same bytes; samples carry mask, turns and what was graded."""
    config = make(folder="whole")
    train(config)
    broken, count = make(folder="broken"), iter(range(1, 9))

    def kill() -> None:
        if next(count) == 2:
            raise Asked

    with pytest.raises(Asked):
        train(broken, kill)
    train(broken)
    assert digests(tmp_path / "broken") == digests(tmp_path / "whole")
    words = [f"model.path='{tmp_path}/whole/model'", f"run.dir='{tmp_path}/whole'", "evaluation.samples=3"]
    path = evaluate(compose.load("evaluate", [*TASK, *words, "evaluation.device=cpu"]))
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert set(figures["tools"]) == {"use_rate", "valid_rate", "turns", "void_rate"}
    with gzip.open(path.with_name("test.samples.jsonl.gz"), "rt") as file:
        samples = [json.loads(line) for line in file]
    assert len(samples) == 8 * 4
    for item in samples:
        assert len(item["token_ids"]) == len(item["response_mask"]) == len(item["turn_ids"]) == len(item["log_probs"])
        assert (item["graded"] is None) <= (item["reward"] == 0.0)
        assert item["turns"] == max(item["turn_ids"]) + 1
        assert (0 in item["response_mask"]) <= (item["programs"] > 0)
    sampled = [item for item in samples if item["sample"] is not None]
    assert figures["response_length"] == sum(sum(item["response_mask"]) for item in sampled) / len(sampled)
