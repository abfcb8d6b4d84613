"""Ranks of a job as processes of a test, forked from a server that has done the imports."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from alp import models
from alp.rollout import episodes
from alp.training import distributed, job, scoring
from alp.training.loop import train

_LIMIT = 300.0  # seconds; a rank that hangs is a failure
_ranks = multiprocessing.get_context("forkserver")
_ranks.set_forkserver_preload([__name__])


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function`` returns on each of ``size`` ranks; an exception of one of them is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _ranks.Process(target=_rank, args=(rank, size, folder, function, arguments)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_LIMIT)
        left = [process for process in processes if process.is_alive()]
        for process in left:
            process.kill()
        assert not left, f"{len(left)} of {size} ranks hang"
        answers = [pickle.loads((Path(folder) / f"{rank}.pkl").read_bytes()) for rank in range(size)]
    for answer in answers:
        if isinstance(answer, Failure):
            raise AssertionError(f"rank {answers.index(answer)}: {answer}")
    return answers


class Failure(str):
    """What a rank said before it ended."""


def _rank(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        os.environ |= {distributed.RENDEZVOUS: f"file://{folder}/store", "GLOO_SOCKET_IFNAME": "lo"}
    try:
        answer = function(*arguments)
    except BaseException:
        answer = Failure(traceback.format_exc())
    (Path(folder) / f"{rank}.pkl").write_bytes(pickle.dumps(answer))
    os._exit(0)


# ---- what ranks do in tests ------------------------------------------------------------------------------------------


def trained(folder: str, jobs: dict[str, list[str]], doubled: tuple[str, ...] = ()) -> None:
    """Train every job of words into ``folder``/<name>, those in ``doubled`` in float64. Rewards are made up, so that
    every group has some of both whatever the model writes."""
    from alp.configuration import compose

    episodes.__dict__["_rewards"] = _made_up
    meeting = os.environ.get(distributed.RENDEZVOUS)
    for name, words in jobs.items():
        if meeting is not None:
            os.environ[distributed.RENDEZVOUS] = f"{meeting}-{name}"  # a file that nobody has met in
        with _doubled() if name in doubled else nullcontext():
            train(compose.load("train", [*words, f"run.dir='{folder}/{name}'"]))


def _made_up(_task: Any, _problems: Any, played: list[Any]) -> list[float]:
    return [float((episode.sample + len(episode.response_ids)) % 2) for episode in played]


@contextmanager
def _doubled() -> Iterator[None]:
    """Models in float64: what is left of a difference is then no rounding."""
    load, shape, check, collate = models.load_model, models.skeleton, job.check_active, scoring.collate

    def wide(*arguments: Any, **named: Any) -> Any:
        batch = collate(*arguments, **named)
        floats = {name: value for name, value in vars(batch).items() if value.dtype is torch.float32}
        return batch.with_(**{name: value.double() for name, value in floats.items()})

    models.load_model = lambda *arguments: load(*arguments).double()
    models.skeleton = lambda *arguments: shape(*arguments).double()
    job.check_active = lambda *_: None  # which asks for float32
    scoring.collate = wide
    try:
        yield
    finally:
        models.load_model, models.skeleton, job.check_active, scoring.collate = load, shape, check, collate
