"""From problems to graded trajectories: one loop for training, validation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from alp.configuration.model_schema import Model
from alp.rollout.contract import check_completions, graded
from alp.rollout.ends import Ends
from alp.rollout.engine import Completion, Engine, Purpose, Request, Sampling
from alp.rollout.prompts import prompt_ids
from alp.tasks.task import Problem, Task


@dataclass(frozen=True)
class Trajectory:
    """One prompt and what followed it. Per-token lists cover ``response_ids``; single-turn responses are all turn 0.

    ``response_mask`` is 1 on tokens the policy sampled (tool output would be 0); ``rollout_log_probs`` are under μ.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    rollout_log_probs: list[float]
    response_mask: list[int]
    turn_ids: list[int]
    finished: bool
    reward: float
    group: int


def collect(
    engine: Engine,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    *,
    model: Model,
    samples: int,
    sampling: Sampling,
    purpose: Purpose,
    seed: int,
    step: int = 0,
    first_problem: int = 0,
    vocabulary: int | None = None,
    ends: Ends | None = None,
) -> list[Trajectory]:
    """``samples`` graded responses to each problem, those of one problem side by side (``group`` = its place in the
    list).

    ``model`` says how its prompts are put (``alp.rollout.prompts``). The random numbers of a response follow from
    (purpose, seed, step, place of the problem, sample) alone; ``first_problem`` is the place of ``problems[0]`` when a
    set is worked through in pieces. What the engine and the task give is checked here (``alp.rollout.contract``);
    ``vocabulary`` is the number of ids the model knows; ``ends`` judges the first batch it sees.
    """
    prompts = [tuple(prompt_ids(tokenizer, task, problem, model)) for problem in problems]
    requests = [
        Request(prompt, (int(purpose), seed, step, first_problem + number, sample))
        for number, prompt in enumerate(prompts)
        for sample in range(samples)
    ]
    completions = engine.generate(requests, sampling)
    check_completions(completions, requests, sampling, vocabulary)
    if ends is not None:
        ends.judge(completions)
    # An answer cut at the length limit was never finished: it earns nothing, whatever it says so far.
    finished = [number for number, completion in enumerate(completions) if completion.finished]
    texts = [response_text(tokenizer, completions[number].token_ids, finished=True) for number in finished]
    answered = [problems[number // samples] for number in finished]
    rewards = dict(zip(finished, graded(task, answered, texts), strict=True))
    return [
        _single_turn(request, completion, rewards.get(number, 0.0), number // samples)
        for number, (request, completion) in enumerate(zip(requests, completions, strict=True))
    ]


def _single_turn(request: Request, completion: Completion, reward: float, group: int) -> Trajectory:
    ids = completion.token_ids
    return Trajectory(
        prompt_ids=list(request.prompt_ids),
        response_ids=ids,
        rollout_log_probs=completion.log_probs,
        response_mask=[1] * len(ids),
        turn_ids=[0] * len(ids),
        finished=completion.finished,
        reward=reward,
        group=group,
    )


def response_text(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, finished: bool) -> str:
    """What is graded: the response without the end token it was finished with."""
    return str(tokenizer.decode(ids[:-1] if finished else ids))
