"""Episodes as they are played, turn by turn: generation and tools beside each other, with a result that knows nothing
of time.

A batch is cut into parts, whole problems each, which take their turns one after the other: part 0's first turn, part
1's first turn, part 0's second … While one part is generated for, the tools of the others work. Which episodes a
generation holds follows from part and turn and from what was said before, never from what was ready first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from alp.errors import UserError
from alp.foreign import reason
from alp.rollout.contract import check_completions
from alp.rollout.ends import Ends
from alp.rollout.engine import Engine, Request, Sampling
from alp.rollout.stops import closes, cut
from alp.tasks.environment import Environment, Step, Turn
from alp.tasks.task import Problem

Pause = Callable[[Callable[[], dict[str, Any]]], object]
PARTS = 2  # of a batch with a tool: one is generated for while the other's tools work


@dataclass
class Episode:
    """One trajectory on its way; plain data, so that a checkpoint holds it as it is.

    ``problem`` is a place in the batch. ``response_ids`` and the lists beside it cover turns and observations;
    ``mask`` is 1 on what the model wrote. ``cut``: its last turn met a limit of tokens.
    """

    problem: int
    sample: int
    prompt_ids: list[int]
    response_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    turn_ids: list[int] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    answer: str | None = None
    over: bool = False
    cut: bool = False
    void: bool = False
    programs: int = 0
    valid: int = 0

    @property
    def length(self) -> int:
        """Tokens so far, the prompt's among them."""
        return len(self.prompt_ids) + len(self.response_ids)

    def add(self, ids: Sequence[int], log_probs: Sequence[float], *, turn: int, written: bool) -> None:
        """More tokens, by the model (``written``) or by the environment."""
        self.response_ids += ids
        self.log_probs += log_probs
        self.mask += [int(written)] * len(ids)
        self.turn_ids += [turn] * len(ids)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Episode:
        """The inverse of ``asdict``."""
        return cls(**(plain | {"turns": [Turn(**turn) for turn in plain["turns"]]}))


@dataclass(frozen=True)
class Play:
    """What a batch is played with. ``key`` is (purpose, seed, step); ``first_problem`` is the place of the first
    problem in its set."""

    engine: Engine
    environment: Environment
    tokenizer: PreTrainedTokenizerBase
    problems: list[Problem]
    sampling: Sampling
    key: tuple[int, int, int]
    first_problem: int = 0
    vocabulary: int | None = None
    ends: Ends | None = None

    def run(self, episodes: list[Episode], place: int = 0, pause: Pause = bool) -> list[Episode]:
        """Play until all are over, from generation number ``place`` on (turn by turn, part by part in each).

        ``pause`` is called between two generations; the function that it is given waits for the tools and returns what
        :meth:`resume` goes on from.
        """
        parts = self._parts(episodes)
        pending: list[list[tuple[Episode, Future[Step]]]] = [[] for _ in parts]
        with ThreadPoolExecutor(max(1, self.environment.workers), thread_name_prefix="tools") as threads:
            try:
                for number in range(place, self.environment.turns * len(parts)):
                    turn, part = divmod(number, len(parts))
                    self._settle(pending[part])
                    if not (going := [episode for episode in parts[part] if not episode.over]):
                        continue
                    if number > place:
                        pause(partial(self._state, episodes, pending, number))
                    self._generate(going, turn)
                    pending[part] = [(episode, self._begin_step(threads, episode)) for episode in going]
                for waiting in pending:
                    self._settle(waiting)
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise
        return episodes

    def resume(self, state: dict[str, Any], pause: Pause = bool) -> list[Episode]:
        """Go on from what :meth:`run` was stopped with: the same as if it had not been."""
        return self.run([Episode.of(plain) for plain in state["episodes"]], state["place"], pause)

    def _state(
        self, episodes: list[Episode], pending: list[list[tuple[Episode, Future[Step]]]], number: int
    ) -> dict[str, Any]:
        for waiting in pending:
            self._settle(waiting)
        return {"place": number, "episodes": [asdict(episode) for episode in episodes]}

    def _parts(self, episodes: list[Episode]) -> list[list[Episode]]:
        """Whole problems each; one part where there is no tool to wait for."""
        count = min(PARTS, len(self.problems)) if self.environment.workers else 1
        bounds = [len(self.problems) * part // count for part in range(count + 1)]
        return [[episode for episode in episodes if low <= episode.problem < high] for low, high in pairwise(bounds)]

    # ---- a turn ------------------------------------------------------------------------------------------------------

    def _generate(self, going: list[Episode], turn: int) -> None:
        """One turn of each."""
        requests = [self._request(episode, turn) for episode in going]
        completions = cut(self.engine.generate(requests, self.sampling), requests, self.sampling)
        check_completions(completions, requests, self.sampling, self.vocabulary)
        for episode, request, made in zip(going, requests, completions, strict=True):
            episode.add(made.token_ids, made.log_probs, turn=turn, written=True)
            whole = made.finished or closes(made, self.sampling)
            episode.cut = not whole and len(made.token_ids) == request.most(self.sampling)
            text = str(self.tokenizer.decode(made.token_ids[:-1] if made.finished else made.token_ids))
            episode.turns.append(Turn(text, made.finished))
        if self.ends is not None:  # a form is an end as good as any
            self.ends.judge([made for made in completions if made.finished or not closes(made, self.sampling)])

    def _request(self, episode: Episode, turn: int) -> Request:
        """The first turn's key has no turn in it, so that a response alone is one whatever follows it."""
        key = (*self.key, self.first_problem + episode.problem, episode.sample, *([turn] if turn else []))
        context = self.environment.context
        limit = None if context is None else context - episode.length
        return Request((*episode.prompt_ids, *episode.response_ids), key, limit)

    # ---- what comes of it --------------------------------------------------------------------------------------------

    def _begin_step(self, threads: ThreadPoolExecutor, episode: Episode) -> Future[Step]:
        problem, turns = self.problems[episode.problem], tuple(episode.turns)
        if self.environment.workers:
            return threads.submit(self.environment.step, problem, turns)
        done: Future[Step] = Future()
        done.set_result(self.environment.step(problem, turns))
        return done

    def _settle(self, waiting: list[tuple[Episode, Future[Step]]]) -> None:
        """Wait for these steps, and forget them."""
        for episode, step in waiting:
            self._take(episode, step.result())
        waiting.clear()

    def _take(self, episode: Episode, step: Step) -> None:
        if step.observation is None:
            episode.answer, episode.void, episode.over = step.answer, step.void, True
            return
        episode.programs += 1
        episode.valid += step.valid
        if len(episode.turns) == self.environment.turns:
            episode.over = True
            return
        ids = observation_ids(self.tokenizer, self.environment, step.observation)
        if self.environment.context is not None and episode.length + len(ids) >= self.environment.context:
            episode.over = episode.cut = True  # there is no room to read it, let alone to go on
            return
        episode.add(ids, [0.0] * len(ids), turn=len(episode.turns) - 1, written=False)


def observation_ids(tokenizer: PreTrainedTokenizerBase, environment: Environment, text: str) -> list[int]:
    """Ids of an observation in its frame, cut to the environment's limit; nothing in it is a special token."""
    before, after = (_plain(tokenizer, frame) for frame in (environment.before, environment.after))
    room = environment.observation_tokens - len(before) - len(after)
    return [*before, *_plain(tokenizer, text)[: max(0, room)], *after]


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which special tokens are text like any other. Raises UserError for what the tokenizer does not
    know."""
    try:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
    except Exception as error:  # the library in Rust has no class of its own for it
        raise UserError(
            f"task.tools: what the tool says cannot be put in the model's tokens ({reason(error)}): {text[:80]!r}"
        ) from error
