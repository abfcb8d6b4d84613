"""Episodes of several turns under a scripted model: masks, turns, keys, limits, void turns, and a result that knows
nothing of time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from alp.configuration import compose
from alp.errors import Interrupted, SandboxError, UserError
from alp.rollout.contract import Limits
from alp.rollout.engine import Completion, Purpose, Request, Sampling, uniforms
from alp.rollout.episodes import Trajectory, check_environment, collect
from alp.rollout.play import PARTS
from alp.tasks.environment import BOX, CODE, Environment, Single, Step, Turn
from alp.tasks.task import Problem
from tests.rollout.scripted import Echo, Fixed, Scripted, sampling, tokenizer

ASK, WRONG = "```python\nprint(1+1)\n```", "```python\nprint(9)\n```"
MODEL = compose.load("evaluate", ["model=calculator_tiny", "task=calculator", "evaluation.max_new_tokens=24"]).model


def mixed(problem: int, sample: int, turn: int) -> str:
    """Sample 0 answers at once, 1 asks and answers, 2 asks to the end, 3 is void in its second turn, 4 at once."""
    return [
        ["#0$"],
        [ASK, f"#{problem}$"],
        [ASK, WRONG, ASK],
        [ASK, "3+4=$"],
        ["1=$"],
    ][sample][turn]


def play(
    script: Any = mixed, environment: Environment | None = None, samples: int = 5, **options: Any
) -> tuple[list[Trajectory], Scripted]:
    environment = environment or Echo()
    engine = options.pop("engine", None) or Scripted(script)
    task = Fixed(environment)
    found = collect(
        engine,
        task,
        tokenizer(),
        task.problems("train"),
        model=MODEL,
        samples=samples,
        sampling=sampling(environment, options.pop("most", 24)),
        purpose=Purpose.TRAINING,
        seed=3,
        step=2,
        **options,
    )
    return found, engine


def written(item: Trajectory) -> list[str]:
    """What the model wrote in each turn, from the mask alone."""
    turns = range(max(item.turn_ids) + 1)
    kept = [
        [
            token
            for token, m, t in zip(item.response_ids, item.response_mask, item.turn_ids, strict=True)
            if m and t == turn
        ]
        for turn in turns
    ]
    return [tokenizer().decode(ids) for ids in kept]


def test_masks_cover_exactly_what_the_model_wrote() -> None:
    found, _engine = play()
    for item in found:
        problem, sample = item.group, found.index(item) % 5
        script = [mixed(problem, sample, turn).replace("$", "<eos>") for turn in range(max(item.turn_ids) + 1)]
        assert written(item) == script
        assert item.turn_ids == sorted(item.turn_ids)
        said = [token for token, m in zip(item.response_ids, item.response_mask, strict=True) if not m]
        expected = (
            f"\n```output\n{problem}{len('print(1+1)')}\n```\n" if "print" in script[0] and len(script) > 1 else ""
        )
        assert tokenizer().decode(said).startswith(expected)
        assert (not said) == (not expected)
        assert [value for value, m in zip(item.rollout_log_probs, item.response_mask, strict=True) if not m] == [
            0.0
        ] * len(said)


def test_log_probs_stay_with_their_tokens() -> None:
    found, _ = play()
    for place, item in enumerate(found):
        by_turn: dict[int, list[float]] = {}
        for value, m, turn in zip(item.rollout_log_probs, item.response_mask, item.turn_ids, strict=True):
            by_turn.setdefault(turn, []).extend([value] if m else [])
        for values in by_turn.values():
            assert values == [-0.001 * (token + 1) - 0.1 * (place % 5) for token in range(len(values))]


def test_the_model_goes_on_from_its_own_ids_and_the_observation() -> None:
    found, engine = play()
    for place, item in enumerate(found):
        problem, sample = item.group, place % 5
        for turn in range(1, max(item.turn_ids) + 1):
            before = [token for token, at in zip(item.response_ids, item.turn_ids, strict=True) if at < turn]
            assert engine.contexts[0, 3, 2, problem, sample, turn] == (*item.prompt_ids, *before)


def test_figures_rewards_and_what_leaves_the_loss() -> None:
    found, _ = play()
    by_sample = [[item for place, item in enumerate(found) if place % 5 == sample] for sample in range(5)]
    uses = [[item.tools for item in items] for items in by_sample]
    for use, turns, programs, valid, void in zip(
        uses, (1, 2, 3, 2, 1), (0, 1, 3, 1, 0), (0, 1, 2, 1, 0), (False, False, False, True, True), strict=True
    ):
        assert {(u.turns, u.programs, u.valid, u.void) for u in use if u} == {(turns, programs, valid, void)}
    assert [item.reward for item in by_sample[0]] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert {item.reward for item in by_sample[1]} == {1.0}
    assert {item.reward for items in by_sample[2:] for item in items} == {0.0}
    assert [{item.left_out for item in items} for items in by_sample] == [{False}, {False}, {False}, {True}, {True}]
    assert all(item.finished for item in found)
    kept, _ = play(environment=Echo(leave_out_void=False))
    assert not any(item.left_out for item in kept)


def test_turns_do_not_share_random_numbers_and_the_first_has_those_of_a_response_alone() -> None:
    _, engine = play()
    _, alone = play(lambda problem, sample, turn: "#1$", environment=Single())
    first = {key for key in engine.contexts if len(key) == 5}
    assert first == set(alone.contexts)
    later = {key for key in engine.contexts if len(key) == 6}
    assert {key[5] for key in later} == {1, 2}
    assert {key[:5] for key in later} <= first
    draws = [tuple(uniforms(key, 4)) for key in engine.contexts]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("seed", range(3))
def test_random_delays_change_nothing(seed: int) -> None:
    expected, calm = play()
    generator = random.Random(seed)
    environment = Echo(delay=lambda: generator.random() * 0.02)
    found, engine = play(environment=environment)
    assert [asdict(item) for item in found] == [asdict(item) for item in expected]
    assert engine.batches == calm.batches


def test_batches_are_parts_of_whole_problems_in_turn() -> None:
    _, engine = play()
    problems = [sorted({key[3] for key in batch}) for batch in engine.batches]
    assert problems == [[0, 1, 2], [3, 4, 5]] * 3
    assert [{len(key) > 5 and key[5] for key in batch} for batch in engine.batches] == [{0}, {0}, {1}, {1}, {2}, {2}]
    _, one = play(lambda problem, sample, turn: "#1$", environment=Single())
    assert len(one.batches) == 1, "a response alone is one batch"


def test_tools_work_while_the_other_part_is_generated_for() -> None:
    """Each step of part 0 waits for the generation of part 1 to begin: beside each other, or never."""
    import threading

    begun = threading.Event()

    class Waiting(Echo):
        def step(self, problem: Problem, turns: Any) -> Step:
            if len(turns) == 1:
                assert int(problem.id) >= 3 or begun.wait(30)
            return super().step(problem, turns)

    class Telling(Scripted):
        def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
            if len(self.batches) == PARTS - 1:
                begun.set()
            return super().generate(requests, sampling)

    found, _ = play(environment=Waiting(workers=2), engine=Telling(mixed))
    assert len(found) == 30


@pytest.mark.parametrize("stop", range(1, 6))
def test_stopped_between_any_two_turns_and_continued_is_the_same(stop: int) -> None:
    """The tool is asked once for each turn: what it said before the stop is in the state."""
    expected, _ = play()
    environment, states = Echo(), []

    def pause(state: Callable[[], dict[str, Any]]) -> None:
        states.append(None)
        if len(states) == stop:
            states[-1] = state()
            raise Interrupted("now")

    with pytest.raises(Interrupted):
        play(environment=environment, pause=pause)
    before = environment.calls
    rest, engine = play(environment=environment, under_way=states[-1])
    assert [asdict(item) for item in rest] == [asdict(item) for item in expected]
    once = Echo()
    play(environment=once)
    assert (before > 0, environment.calls) == (True, once.calls)
    assert len(engine.batches) == 6 - stop


def test_the_state_of_a_batch_can_be_saved() -> None:
    import io

    import torch

    kept: list[dict[str, Any]] = []

    def pause(state: Callable[[], dict[str, Any]]) -> None:
        kept.append(state())

    play(pause=pause)
    for state in kept:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        assert torch.load(buffer, weights_only=True) == state


def test_an_engine_that_samples_on_behind_a_form_is_cut() -> None:
    expected, _ = play(lambda problem, sample, turn: [ASK, WRONG, ASK][turn])
    found, _ = play(engine=Scripted(lambda problem, sample, turn: [ASK, WRONG, ASK][turn], runs_on=True))
    assert [asdict(item) for item in found] == [asdict(item) for item in expected]


def test_the_context_limits_a_turn_and_ends_an_episode() -> None:
    prompt, ask = len(tokenizer().encode("0+0=")), len(tokenizer().encode(ASK))
    observation = len(tokenizer().encode("\n```output\n010\n```\n"))
    whole = prompt + ask + observation
    script = lambda problem, sample, turn: [ASK, "#12345$"][turn]  # noqa: E731
    room, _ = play(script, environment=Echo(context=whole + 7), samples=1)
    assert all(item.finished and len(item.turn_ids) == whole + 7 - prompt for item in room)
    tight, _ = play(script, environment=Echo(context=whole + 4), samples=1)
    for item in tight:  # its second turn gets 4 tokens, which is cut, and void
        assert (item.finished, len(item.prompt_ids) + len(item.response_ids)) == (False, whole + 4)
        assert item.tools is not None
        assert item.tools.void
    none, _ = play(script, environment=Echo(context=whole), samples=1)
    for item in none:  # the observation alone would fill it
        assert (item.finished, item.response_mask, item.left_out) == (False, [1] * ask, False)


def test_observations_are_cut_to_their_tokens_with_their_frame() -> None:
    class Talker(Echo):
        def step(self, problem: Problem, turns: Any) -> Step:
            step = super().step(problem, turns)
            return Step(observation="12345678901234567890") if step.observation else step

    found, _ = play(environment=Talker(observation_tokens=9), samples=2)
    said = [t for t, m in zip(found[1].response_ids, found[1].response_mask, strict=True) if not m]
    assert tokenizer().decode(said) == "\n```output\n1234567\n```\n"
    assert len(said) == 9


def test_what_a_tool_raises_stops_the_batch() -> None:
    class Broken(Echo):
        def step(self, problem: Problem, turns: Any) -> Step:
            if problem.id == "4":
                raise SandboxError("the sandbox is broken")
            return super().step(problem, turns)

    with pytest.raises(SandboxError, match="the sandbox is broken"):
        play(environment=Broken())


def test_what_the_tokenizer_does_not_know_is_no_observation() -> None:
    class Greek(Echo):
        def step(self, problem: Problem, turns: Any) -> Step:
            return Step(observation="αβγ")

    with pytest.raises(UserError, match="what the tool says cannot be put in the model's tokens"):
        play(environment=Greek())


def test_rules_that_cannot_hold_are_refused_before_anything() -> None:
    with pytest.raises(UserError, match=r"task.tools.context: 600 tokens, and the model or the engine ends at 512"):
        check_environment(Fixed(Echo(context=600)), tokenizer(), Limits(24, 512))
    with pytest.raises(UserError, match=r"observation_tokens: 2 leave no room in a frame of 2"):
        check_environment(Fixed(Echo(observation_tokens=2)), tokenizer(), Limits(24, 512))
    check_environment(Fixed(Echo(context=512)), tokenizer(), Limits(24, 512))


def test_a_turn_that_is_cut_is_void() -> None:
    found, _ = play(lambda problem, sample, turn: "#" + "1" * 40, samples=1, most=8)
    for item in found:
        assert (item.finished, item.reward, item.left_out, item.length) == (False, 0.0, True, 8)


def test_a_response_alone_that_is_cut_stays_in_the_loss() -> None:
    found, _ = play(lambda problem, sample, turn: "#" + "1" * 40, environment=Single(), samples=1, most=8)
    for item in found:
        assert (item.finished, item.reward, item.left_out, item.tools is None) == (False, 0.0, False, False)
    assert Single().step(Problem("", "", "", ""), [Turn("#1", True)]) == Step(answer="#1")
    assert (CODE.nested, BOX.nested) == (False, True)
