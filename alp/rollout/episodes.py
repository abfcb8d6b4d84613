"""From problems to graded trajectories: one loop for training, validation and evaluation, of one turn and of many
(``alp.rollout.play``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from alp.configuration.model_schema import Model
from alp.errors import UserError
from alp.rollout.contract import Limits, graded
from alp.rollout.ends import Ends
from alp.rollout.engine import Engine, Purpose, Sampling
from alp.rollout.play import Episode, Pause, Play, observation_ids
from alp.rollout.prompts import prompt_ids
from alp.rollout.stops import Stops
from alp.tasks.environment import Single
from alp.tasks.task import Problem, Task


@dataclass(frozen=True)
class ToolUse:
    """What became of the turns of one trajectory: programs (requests to a tool) and how many of them were valid,
    whether a turn was void, and the text that was graded, None where there was no answer."""

    turns: int
    programs: int
    valid: int
    void: bool
    graded: str | None


@dataclass(frozen=True)
class Trajectory:
    """One prompt and what followed it. Per-token lists cover ``response_ids``; single-turn responses are all turn 0.

    ``response_mask`` is 1 on tokens the policy sampled, 0 on what a tool said; ``turn_ids`` give an observation the
    turn that it answers. ``rollout_log_probs`` are under μ, 0 under the mask. ``finished``: no limit of tokens cut its
    last turn. ``left_out``: of the loss, not of its group's mean and std. ``tools`` is None where the task has none.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    rollout_log_probs: list[float]
    response_mask: list[int]
    turn_ids: list[int]
    finished: bool
    reward: float
    group: int
    left_out: bool = False
    tools: ToolUse | None = None

    @property
    def length(self) -> int:
        """Tokens that the policy sampled."""
        return sum(self.response_mask)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Trajectory:
        """The inverse of ``asdict``."""
        return cls(**(plain | {"tools": None if plain["tools"] is None else ToolUse(**plain["tools"])}))


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
    under_way: dict[str, Any] | None = None,
    pause: Pause = bool,
) -> list[Trajectory]:
    """``samples`` graded trajectories to each problem, those of one problem side by side (``group`` = its place in the
    list).

    ``model`` says how its prompts are put (``alp.rollout.prompts``). The random numbers of a turn follow from (purpose,
    seed, step, place of the problem, sample, turn) alone; ``first_problem`` is the place of ``problems[0]`` when a set
    is worked through in pieces. What the engine and the task give is checked here (``alp.rollout.contract``);
    ``vocabulary`` is the number of ids the model knows; ``ends`` judges the first batch it sees. ``pause`` is called
    between generations, and ``under_way`` is what an earlier call was stopped with there (``Play.run``).
    """
    play = Play(
        engine,
        task.environment or Single(),
        tokenizer,
        problems,
        sampling,
        key=(int(purpose), seed, step),
        first_problem=first_problem,
        vocabulary=vocabulary,
        ends=ends,
    )
    if under_way is not None:
        episodes = play.resume(under_way, pause)
    else:
        prompts = [prompt_ids(tokenizer, task, problem, model) for problem in problems]
        begun = [Episode(place, sample, prompt) for place, prompt in enumerate(prompts) for sample in range(samples)]
        episodes = play.run(begun, pause=pause)
    rewards = _rewards(task, problems, episodes)
    return [_trajectory(episode, reward, task) for episode, reward in zip(episodes, rewards, strict=True)]


def _rewards(task: Task, problems: list[Problem], episodes: list[Episode]) -> list[float]:
    """Of what was answered; an episode without an answer earns nothing."""
    answers = {place: episode.answer for place, episode in enumerate(episodes) if episode.answer is not None}
    given = graded(task, [problems[episodes[place].problem] for place in answers], list(answers.values()))
    rewards = dict(zip(answers, given, strict=True))
    return [rewards.get(place, 0.0) for place in range(len(episodes))]


def _trajectory(episode: Episode, reward: float, task: Task) -> Trajectory:
    environment = task.environment
    use = ToolUse(len(episode.turns), episode.programs, episode.valid, episode.void, episode.answer)
    return Trajectory(
        prompt_ids=episode.prompt_ids,
        response_ids=episode.response_ids,
        rollout_log_probs=episode.log_probs,
        response_mask=episode.mask,
        turn_ids=episode.turn_ids,
        finished=not episode.cut,
        reward=reward,
        group=episode.problem,
        left_out=environment is not None and environment.leave_out_void and episode.void,
        tools=None if environment is None else use,
    )


def stops_of(task: Task, tokenizer: PreTrainedTokenizerBase) -> Stops | None:
    """What ends a turn of the task besides an end token."""
    return None if task.environment is None else Stops.of(tokenizer, task.environment.forms)


def longest_of(task: Task, longest: int | None) -> int | None:
    """The tighter of an engine's bound on tokens and the task's, None where neither has one."""
    context = None if task.environment is None else task.environment.context
    return min((bound for bound in (longest, context) if bound is not None), default=None)


def check_environment(task: Task, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
    """Refuse, before anything is sampled, turns that this machine, model or engine cannot take. Raises UserError."""
    environment = task.environment
    if environment is None:
        return
    environment.check()
    if environment.context is not None and limits.positions is not None and environment.context > limits.positions:
        raise UserError(
            f"task.tools.context: {environment.context} tokens, and the model or the engine ends at"
            f" {limits.positions}: lower it"
        )
    frame = observation_ids(tokenizer, environment, "")
    if len(frame) >= environment.observation_tokens:
        raise UserError(
            f"task.tools.observation_tokens: {environment.observation_tokens} leave no room in a frame of {len(frame)}"
        )
    if str(tokenizer.decode(frame)).split() != (environment.before + environment.after).split():
        raise UserError(
            "task.tools: the model's tokenizer does not know the frame of an observation,"
            f" {environment.before + environment.after!r}"
        )


def response_text(tokenizer: PreTrainedTokenizerBase, trajectory: Trajectory, ends: tuple[int, ...]) -> str:
    """What followed the prompt as text, what tools said included, without the end token of the last turn."""
    ids = trajectory.response_ids
    return str(tokenizer.decode(ids[:-1] if ids and ids[-1] in ends else ids))
