"""Raw samples of an evaluation: the file that keeps them, and the chunks an interrupted evaluation continues from.

A chunk holds some problems with all their samples. It is written whole or not at all, and belongs to one identity
(configuration, code, model, problems): chunks of another are removed, damaged ones are computed again. The final file
is all chunks end to end, so it is the same bytes whether the evaluation was interrupted or not.
"""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alp.reproducibility import json_line, write_file
from alp.rollout.episodes import Trajectory
from alp.tasks.task import Problem

logger = logging.getLogger(__name__)
USE = ("turns", "programs", "valid", "void")


@dataclass(frozen=True)
class Sample:
    """What the figures need of one response; ``sample`` None is the greedy answer."""

    problem_id: str
    sample: int | None
    reward: float
    finished: bool
    tokens: int  # that the model sampled
    tools: dict[str, int] | None = None  # turns, programs, valid, void, where the task has tools


def record(problem: Problem, sample: int | None, trajectory: Trajectory, text: str) -> str:
    """One line of a samples file (docs/results.md). Log-probs are float32, in the fewest digits that give the same
    float32."""
    line = {
        "problem_id": problem.id,
        "sample": sample,
        "reward": trajectory.reward,
        "finished": trajectory.finished,
        "response": text,
        "token_ids": trajectory.response_ids,
        "log_probs": [float(str(np.float32(value))) for value in trajectory.rollout_log_probs],
    }
    if (use := trajectory.tools) is not None:
        line |= {"response_mask": trajectory.response_mask, "turn_ids": trajectory.turn_ids, "graded": use.graded}
        line |= {"turns": use.turns, "programs": use.programs, "valid": use.valid, "void": use.void}
    return json_line(line)


class Chunks:
    """The chunks of one evaluation, below ``folder``/<identity>."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._root, self._folder = folder, folder / identity[:16]
        for stale in folder.glob("*"):
            if stale != self._folder:
                logger.warning("%s belongs to another configuration, other code, weights or problems: removed", stale)
                shutil.rmtree(stale, ignore_errors=True)

    def write(self, number: int, lines: list[str]) -> None:
        """Keep chunk number ``number``. gzip without a time of day: equal samples are equal bytes."""
        write_file(self._path(number), [gzip.compress("".join(lines).encode(), compresslevel=6, mtime=0)])

    def read(self, number: int, expected: Sequence[tuple[str, int | None]]) -> list[Sample] | None:
        """The samples of a finished chunk; None where there is none, or not exactly the ``expected`` (problem, sample)
        pairs in it."""
        path = self._path(number)
        if path.exists() and not path.is_file():
            logger.warning("%s is no file: its problems are sampled again", path)
            return None
        try:
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            samples = [_sample(json.loads(line)) for line in lines]
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged file makes of its readers
            logger.warning("%s is damaged (%s): its problems are sampled again", path, error)
            return None
        if [(item.problem_id, item.sample) for item in samples] != list(expected):
            logger.warning("%s does not hold its problems: they are sampled again", path)
            return None
        return samples

    def join(self, count: int, path: Path) -> None:
        """All ``count`` chunks end to end as one file: gzip allows that, and every reader of it reads on."""
        write_file(path, (self._path(number).read_bytes() for number in range(count)))

    def remove(self) -> None:
        """After the final files are there."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.jsonl.gz"


def _sample(plain: dict[str, object]) -> Sample:
    ids, log_probs = plain["token_ids"], plain["log_probs"]
    if not isinstance(ids, list) or not isinstance(log_probs, list) or len(ids) != len(log_probs):
        raise ValueError("as many token ids as log-probs expected")
    sample, reward = plain["sample"], plain["reward"]
    assert sample is None or isinstance(sample, int)
    assert isinstance(reward, float | int)
    if not 0 <= reward <= 1:
        raise ValueError(f"a reward from 0 to 1 expected, not {reward}")
    mask, tools = plain.get("response_mask"), None
    if mask is not None:
        if not isinstance(mask, list) or len(mask) != len(ids):
            raise ValueError("as many token ids as entries of their mask expected")
        tools = {name: int(plain[name]) for name in USE}  # type: ignore[call-overload]
    tokens = len(ids) if not isinstance(mask, list) else sum(mask)
    return Sample(str(plain["problem_id"]), sample, float(reward), bool(plain["finished"]), tokens, tools)
